"""
Writes data/pipeline.json and data/pipeline/*.png: pictures that diffusers' StableDiffusionPipeline makes on torch from
a bundle's own weights, for (prompt, seed, sampler) triples in English and Chinese, with the model's default steps and
guidance: at its native size, and a few at its default size by the two passes that the worker calls hires fix.

Run: OMP_NUM_THREADS=1 python test/golden/write_pipeline.py [deploy/models/atelier-tiny]
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from golden_file import DATA, versions
from PIL import Image
from write import SCHEDULERS

ROOT = Path(__file__).parents[2]
DEFAULT_BUNDLE = ROOT / "deploy/models/atelier-tiny"
NEGATIVE_PROMPT = "低分辨率, 模糊"

# Every sampler at least twice, once in each language; the default one and its Karras spacing more often.
TRIPLES = (
    ("国潮风T恤, 白色背景", 42, "dpmpp_2m", False),
    ("a red guochao t-shirt on a white background", 42, "dpmpp_2m", False),
    ("蓝色马克杯，白色圆点，木桌", 7, "dpmpp_2m", False),
    ("product photo of a green sofa, Nordic style", 1234, "dpmpp_2m", False),
    ("红色灯笼，喜庆背景", 2**32 - 1, "dpmpp_2m", True),
    ("a purple handbag with white stripes, marble", 0, "dpmpp_2m", True),
    ("水彩风格的粉色花瓶", 11, "dpmpp_2m_sde", False),
    ("a yellow umbrella in a green garden", 12, "dpmpp_2m_sde", False),
    ("黑色运动鞋，浅灰色背景", 13, "euler", False),
    ("a brown teapot on a wooden table", 14, "euler", False),
    ("orange backpack, beige background", 15, "euler", True),
    ("绿色连衣裙，天蓝色背景", 16, "euler_a", False),
    ("a white mug with red dots", 17, "euler_a", False),
    ("紫色卫衣，米色背景", 18, "ddim", False),
    ("a black cap, studio light", 19, "ddim", False),
    ("月饼，红色喜庆背景", 20, "unipc", False),
    ("a pink dress with floral pattern", 21, "unipc", False),
    ("橙色手提包，大理石背景", 22, "unipc", True),
    ("蓝色雨伞，花园", 23, "lcm", False),
    ("a red vase in watercolour", 24, "lcm", False),
)

HIRES_TRIPLES = (
    ("国潮风T恤, 白色背景", 42, "dpmpp_2m", False),
    ("a blue mug on a wooden table", 43, "euler_a", False),
)

# The files whose numbers are in the pictures.
PARTS = (
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "text_encoder/model.onnx",
    "unet/model.onnx",
    "vae_decoder/model.onnx",
    "vae_decoder/config.json",
    "scheduler/scheduler_config.json",
)


def load_pipeline(bundle: Path, folder: Path) -> diffusers.StableDiffusionPipeline:
    command = [sys.executable, "-m", "atelier_trainer.to_diffusers", str(bundle), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "services/trainer")})
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def enlarge(pipeline: diffusers.StableDiffusionPipeline, latent: torch.Tensor, size: dict, hires_fix: dict, **call):
    """The second pass: upscaled in latent space, then image to image, going on with the same generator."""
    latent_size = (size["height"] // 8, size["width"] // 8)
    corners = {} if hires_fix["upscale"] == "nearest" else {"align_corners": False, "antialias": False}
    upscaled = torch.nn.functional.interpolate(latent, size=latent_size, mode=hires_fix["upscale"], **corners)
    image_to_image = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    image_to_image.set_progress_bar_config(disable=True)
    return image_to_image(image=upscaled, strength=hires_fix["strength"], **call)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(bundle: Path) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    manifest = json.loads((bundle / "atelier.json").read_text())
    native, full = manifest["nativeSize"], manifest["defaultSize"]
    settings = {
        "negativePrompt": NEGATIVE_PROMPT,
        "steps": manifest["defaultSteps"],
        "guidanceScale": manifest["defaultGuidanceScale"],
    }
    pictures = DATA / "pipeline"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = load_pipeline(bundle, Path(folder))
    original = pipeline.scheduler

    cases = []
    wanted = [(*triple, native) for triple in TRIPLES] + [(*triple, full) for triple in HIRES_TRIPLES]
    for number, (prompt, seed, sampler, karras, size) in enumerate(wanted, start=1):
        scheduler_class, overrides = SCHEDULERS[sampler]
        spacing = {"use_karras_sigmas": True} if karras else {}
        pipeline.scheduler = scheduler_class.from_config(original.config, **overrides, **spacing)
        call = {
            "prompt": prompt,
            "negative_prompt": settings["negativePrompt"],
            "num_inference_steps": settings["steps"],
            "guidance_scale": settings["guidanceScale"],
            "generator": torch.Generator("cpu").manual_seed(seed),
        }
        if size == native:
            image = pipeline(**call, **native, output_type="np").images[0]
        else:
            latent = pipeline(**call, **native, output_type="latent").images
            image = enlarge(pipeline, latent, size, manifest["hiresFix"], **call, output_type="np").images[0]
        file = f"{number:02d}-{sampler}{'-karras' if karras else ''}.png"
        Image.fromarray((image * 255).round().astype(np.uint8)).save(pictures / file, optimize=True)
        cases.append({"file": file, "prompt": prompt, "seed": seed, "sampler": sampler, "karras": karras, **size})

    head = {
        "writtenBy": "test/golden/write_pipeline.py",
        "versions": versions(transformers),
        "bundle": {"id": manifest["id"], "parts": {part: sha256(bundle / part) for part in PARTS}},
        **settings,
    }
    lines = ",\n".join("    " + json.dumps(case, ensure_ascii=False) for case in cases)
    head_lines = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
    (DATA / "pipeline.json").write_text(f'{head_lines},\n  "cases": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    total = sum(file.stat().st_size for file in pictures.iterdir())
    print(f"pipeline: {len(cases)} pictures, {total / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_BUNDLE)
