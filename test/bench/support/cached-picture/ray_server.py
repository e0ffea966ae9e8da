"""The same bytes from Redis with Ray Serve: one deployment behind its HTTP proxy, on loopback."""

import sys
import time

import ray
import redis.asyncio
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

url, key, media_type, port = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})


@serve.deployment(num_replicas=1, max_ongoing_requests=128)
class Cached:
    def __init__(self) -> None:
        self.client = redis.asyncio.from_url(url)

    async def __call__(self, request: Request) -> Response:
        await request.json()
        return Response(await self.client.get(key), media_type=media_type)


serve.run(Cached.bind(), route_prefix="/generate")
while True:
    time.sleep(60)
