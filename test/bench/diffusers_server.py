"""
The other side of the engine bench: Stable Diffusion as people deploy it, diffusers' pipeline behind FastAPI.

Usage: diffusers_server.py FOLDER THREADS PORT LOCK, FOLDER in diffusers' layout. POST /generate makes one picture and answers
with its PNG. The pipeline keeps a request's state in its scheduler, so calls take turns. GET /versions says what runs.

With LOCK "thread" the endpoint is what FastAPI's guide has for blocking work: a plain function, run by a pool of threads,
here with a lock, without which the second concurrent user gets an exception. torch is three times slower there than in
the main thread on 4 cores. With LOCK "main" the endpoint blocks the event loop, and is the fastest such server that we
found.
"""

import io
import sys
import threading

import diffusers
import torch
import transformers
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

SAMPLERS = {
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}


class Request(BaseModel):
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: str
    seed: int


def application(folder: str, lock: str) -> FastAPI:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    app = FastAPI()
    turn = threading.Lock()

    @app.get("/versions")
    def versions() -> dict:
        return {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}

    def draw(request: Request) -> Response:
        scheduler, settings = SAMPLERS[request.sampler]
        with torch.inference_mode():
            pipeline.scheduler = scheduler.from_config(config, **settings)
            image = pipeline(
                request.prompt,
                negative_prompt=request.negative_prompt,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(request.seed),
            ).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")

    async def in_main_thread(request: Request) -> Response:
        return draw(request)

    def in_pool(request: Request) -> Response:
        with turn:
            return draw(request)

    app.post("/generate")(in_main_thread if lock == "main" else in_pool)

    return app


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))  # OMP_NUM_THREADS, set by the parent, holds for every thread
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    uvicorn.run(application(sys.argv[1], sys.argv[4]), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
