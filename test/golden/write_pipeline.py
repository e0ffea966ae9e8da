"""
Writes data/pipeline.json and data/pipeline/*.png: pictures that diffusers' StableDiffusionPipeline makes on torch from
a bundle's own weights, for (prompt, seed, sampler) triples in English and Chinese, with the model's default steps and
guidance, at its native size.

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


def load_pipeline(bundle: Path, folder: Path) -> diffusers.StableDiffusionPipeline:
    command = [sys.executable, "-m", "atelier_trainer.to_diffusers", str(bundle), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "services/trainer")})
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main(bundle: Path) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    manifest_bytes = (bundle / "atelier.json").read_bytes()
    manifest = json.loads(manifest_bytes)
    settings = {
        "negativePrompt": NEGATIVE_PROMPT,
        "steps": manifest["defaultSteps"],
        "guidanceScale": manifest["defaultGuidanceScale"],
        "width": manifest["nativeSize"]["width"],
        "height": manifest["nativeSize"]["height"],
    }
    pictures = DATA / "pipeline"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = load_pipeline(bundle, Path(folder))
    original = pipeline.scheduler

    cases = []
    for number, (prompt, seed, sampler, karras) in enumerate(TRIPLES, start=1):
        scheduler_class, overrides = SCHEDULERS[sampler]
        spacing = {"use_karras_sigmas": True} if karras else {}
        pipeline.scheduler = scheduler_class.from_config(original.config, **overrides, **spacing)
        image = pipeline(
            prompt,
            negative_prompt=settings["negativePrompt"],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidanceScale"],
            width=settings["width"],
            height=settings["height"],
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
        ).images[0]
        file = f"{number:02d}-{sampler}{'-karras' if karras else ''}.png"
        Image.fromarray((image * 255).round().astype(np.uint8)).save(pictures / file, optimize=True)
        cases.append({"file": file, "prompt": prompt, "seed": seed, "sampler": sampler, "karras": karras})

    head = {
        "writtenBy": "test/golden/write_pipeline.py",
        "versions": versions(transformers),
        "bundle": {"id": manifest["id"], "manifestSha256": hashlib.sha256(manifest_bytes).hexdigest()},
        **settings,
    }
    lines = ",\n".join("    " + json.dumps(case, ensure_ascii=False) for case in cases)
    head_lines = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
    (DATA / "pipeline.json").write_text(f'{head_lines},\n  "cases": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    total = sum(file.stat().st_size for file in pictures.iterdir())
    print(f"pipeline: {len(cases)} pictures, {total / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_BUNDLE)
