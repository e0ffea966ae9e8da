"""
The other side of the engine bench: Stable Diffusion as people deploy it, diffusers' pipeline behind FastAPI.

Usage: diffusers_server.py FOLDER THREADS PORT, FOLDER in diffusers' layout. POST /generate makes one picture and answers
with its PNG. The pipeline keeps a request's state in its scheduler, so calls take turns: a lock, without which the second
concurrent user gets an exception. GET /versions says what runs.
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


def application(folder: str) -> FastAPI:
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

    @app.post("/generate")
    def generate(request: Request) -> Response:
        scheduler, settings = SAMPLERS[request.sampler]
        with turn, torch.inference_mode():
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

    return app


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    uvicorn.run(application(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
