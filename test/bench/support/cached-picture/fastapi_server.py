"""The same bytes from Redis with FastAPI: a key worked out from the request, as a cache in front of a model is written."""

import hashlib
import sys

import redis.asyncio
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

url, key, media_type, port = sys.argv[1:]
client = redis.asyncio.from_url(url)
app = FastAPI()


class Request(BaseModel):
    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    steps: int = 25
    seed: int | None = None


@app.post("/generate")
async def generate(request: Request) -> Response:
    hashlib.sha256(request.model_dump_json().encode()).hexdigest()
    return Response(await client.get(key), media_type=media_type)


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
