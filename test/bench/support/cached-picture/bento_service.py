"""The same bytes from Redis with BentoML: one service, mounted routes of Starlette left aside for its own API."""

import os

import bentoml
import redis.asyncio


@bentoml.service(workers=1, traffic={"max_concurrency": 256})
class Cached:
    def __init__(self) -> None:
        self.client = redis.asyncio.from_url(os.environ["REDIS_URL"])

    @bentoml.api(route="/generate")
    async def generate(self, prompt: str, ctx: bentoml.Context, seed: int = 0, width: int = 512, height: int = 512) -> bytes:
        ctx.response.headers["content-type"] = os.environ["MEDIA_TYPE"]
        return await self.client.get(os.environ["REDIS_KEY"])
