"""
The other side of the engine bench: diffusers' StableDiffusionPipeline on torch, driven a line at a time.

Usage: diffusers_engine.py FOLDER THREADS, FOLDER in diffusers' layout. Says {"ready": versions}; then for each line
{"prompt", "negative_prompt", "steps", "guidance_scale", "width", "height", "seed", "out"} makes one picture, writes its
bytes (RGB, row-major) to `out` and says {"ms": wall time of the call}. The time ends with the picture in memory: no file
format is encoded in it.
"""

import json
import sys
import time

import diffusers
import torch
import transformers


def main(folder: str, threads: int) -> None:
    torch.set_num_threads(threads)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    print(json.dumps({"ready": versions}), flush=True)

    for line in sys.stdin:
        call = json.loads(line)
        out = call.pop("out")
        generator = torch.Generator("cpu").manual_seed(call.pop("seed"))
        steps = call.pop("steps")
        started = time.perf_counter()
        image = pipeline(**call, num_inference_steps=steps, generator=generator).images[0]
        ms = (time.perf_counter() - started) * 1000
        with open(out, "wb") as file:
            file.write(image.convert("RGB").tobytes())
        print(json.dumps({"ms": ms}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
