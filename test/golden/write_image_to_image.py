"""
Writes data/image-to-image.json, .f32 and data/image-to-image/*.png, from a bundle's own weights on torch:

  pictures that diffusers' StableDiffusionImg2ImgPipeline makes from pictures of data/pipeline
  what diffusers' AutoencoderKL.tiled_decode and its whole decode make of one latent

Run: OMP_NUM_THREADS=1 python test/golden/write_image_to_image.py [deploy/models/atelier-tiny]
after write_pipeline.py, whose pictures it starts from.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from golden_file import DATA, GoldenFile, versions
from PIL import Image
from write import SCHEDULERS
from write_pipeline import DEFAULT_BUNDLE, NEGATIVE_PROMPT, PARTS, load_pipeline, sha256

# From a picture of the native size, and from one that is larger: made in one pass, whatever the hires fix says.
CASES = (
    {"init": "03-dpmpp_2m.png", "prompt": "红色马克杯，白色背景", "seed": 101, "sampler": "dpmpp_2m", "strength": 0.6},
    {"init": "10-euler.png", "prompt": "a teapot in watercolour", "seed": 102, "sampler": "euler_a", "strength": 0.45},
    {"init": "04-dpmpp_2m.png", "prompt": "a purple sofa", "seed": 103, "sampler": "ddim", "strength": 1.0},
    {"init": "22-euler_a.png", "prompt": "a blue mug on a beach", "seed": 104, "sampler": "unipc", "strength": 0.3},
)

# A latent of 32x32 in tiles of 16, 12 apart: the last in each direction is of 8.
TILED_INIT = "05-dpmpp_2m-karras.png"
TILE = 16


def save(image: np.ndarray, file: Path) -> None:
    Image.fromarray((image * 255).round().astype(np.uint8)).save(file, optimize=True)


def image_to_image(pipeline, original, manifest: dict, pictures: Path) -> list[dict]:
    cases = []
    for number, case in enumerate(CASES, start=1):
        scheduler_class, overrides = SCHEDULERS[case["sampler"]]
        pipeline.scheduler = scheduler_class.from_config(original.config, **overrides)
        made = pipeline(
            prompt=case["prompt"],
            negative_prompt=NEGATIVE_PROMPT,
            image=Image.open(DATA / "pipeline" / case["init"]).convert("RGB"),
            strength=case["strength"],
            num_inference_steps=manifest["defaultSteps"],
            guidance_scale=manifest["defaultGuidanceScale"],
            generator=torch.Generator("cpu").manual_seed(case["seed"]),
            output_type="np",
        ).images[0]
        file = f"{number:02d}-{case['sampler']}.png"
        save(made, pictures / file)
        height, width, _ = made.shape
        cases.append({"file": file, **case, "width": width, "height": height})
    return cases


@torch.no_grad()
def tiled_decode(pipeline, pictures: Path, golden: GoldenFile) -> None:
    vae = pipeline.vae
    picture = pipeline.image_processor.preprocess(Image.open(DATA / "pipeline" / TILED_INIT).convert("RGB"))
    latent = vae.encode(picture).latent_dist.mode()
    whole = vae.decode(latent).sample
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_latent_min_size, vae.tile_sample_min_size = TILE, TILE * factor
    vae.enable_tiling()
    tiled = vae.decode(latent).sample
    for name, pixels in (("tiled", tiled), ("whole", whole)):
        save((pixels[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy(), pictures / f"{name}.png")
    _, channels, height, width = latent.shape
    golden.add({"latent": latent}, tile=TILE, shape={"channels": channels, "height": height, "width": width})


def main(bundle: Path) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    manifest = json.loads((bundle / "atelier.json").read_text())
    pictures = DATA / "image-to-image"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        from_words = load_pipeline(bundle, Path(folder))
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**from_words.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    cases = image_to_image(pipeline, from_words.scheduler, manifest, pictures)
    golden = GoldenFile("image-to-image")
    tiled_decode(pipeline, pictures, golden)
    parts = (*PARTS, "vae_encoder/model.onnx")
    golden.write(
        "test/golden/write_image_to_image.py",
        versions=versions(transformers),
        bundle={"id": manifest["id"], "parts": {part: sha256(bundle / part) for part in parts}},
        negativePrompt=NEGATIVE_PROMPT,
        steps=manifest["defaultSteps"],
        guidanceScale=manifest["defaultGuidanceScale"],
        imageToImage=cases,
    )
    total = sum(file.stat().st_size for file in pictures.iterdir())
    print(f"image-to-image: {len(cases)} pictures, {total / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_BUNDLE)
