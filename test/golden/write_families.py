"""
Writes families/golden-{sd1,sd2,sdxl}, data/families.json and data/families/*.png: small models of the three families,
imported as any published model is, and the pictures that diffusers' own pipelines make of them.

  families/golden-*                  bundles by `python -m atelier_trainer import`; golden-sd2 borrows golden-sd1's VAE
  families/sd15-scalar-timestep      golden-sd1's U-Net as optimum exports it: one int64 timestep for the whole batch
  data/families.json                 "cases" from text, "imageToImage" from a picture and text

The weights are random ones, settled for some hundred steps; they differ from run to run of another machine, and the
pictures belong to the very files that the JSON names by digest.

Run: OMP_NUM_THREADS=1 python test/golden/write_families.py
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "services/trainer"), str(ROOT / "services/trainer/tests")]

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from compact_graph import compact, write_scalar_timestep  # noqa: E402
from golden_file import DATA, versions  # noqa: E402
from PIL import Image  # noqa: E402
from tiny_families import FAMILIES, new_pipeline, save_folder, settle  # noqa: E402
from write import SCHEDULERS  # noqa: E402

from atelier_trainer.__main__ import main as trainer  # noqa: E402
from atelier_trainer.importing.borrowing import borrow, read_manifest, whole_digest  # noqa: E402
from atelier_trainer.importing.manifest import MANIFEST, describe_parts  # noqa: E402

BUNDLES = ROOT / "test/golden/families"
PICTURES = DATA / "families"

# prompt, negative prompt, width, height, steps, guidance, sampler, Karras spacing, seed
CASES = {
    "sd1": (
        ("a red mug on a white table", "blue background", 64, 64, 8, 7.5, "dpmpp_2m", False, 1),
        ("国潮风T恤, 白色背景", "低分辨率, 模糊", 64, 96, 8, 5, "ddim", False, 2),
        ("a black lamp", "", 64, 64, 10, 7.5, "euler", False, 3),
        ("a green shirt and a blue vase", "", 64, 64, 6, 1, "unipc", False, 4),
        ("photo of a vase", "mug", 72, 64, 8, 4, "euler_a", False, 5),
    ),
    "sd2": (
        ("a red mug on a white table", "blue background", 64, 64, 8, 7.5, "dpmpp_2m", False, 11),
        ("蓝色马克杯, 木桌", "模糊", 96, 64, 8, 5, "ddim", False, 12),
        ("a black lamp! wow!!", "", 64, 64, 10, 7.5, "euler", True, 13),
        ("a green shirt and a blue vase", "", 64, 64, 6, 1, "dpmpp_2m", True, 14),
        ("photo of a vase", "mug", 64, 64, 6, 4, "lcm", False, 15),
    ),
    "sdxl": (
        ("a red mug on a white table", "blue background", 64, 64, 8, 5, "euler", False, 21),
        ("国潮风T恤, 白色背景", "低分辨率, 模糊", 64, 96, 8, 5, "dpmpp_2m", False, 22),
        ("wow! a black lamp !!", "", 64, 64, 8, 5, "euler", False, 23),
        ("a green shirt and a blue vase", "", 64, 64, 6, 1, "dpmpp_2m", True, 24),
        ("photo of a vase", "mug!", 96, 72, 8, 6, "euler_a", False, 25),
    ),
}
IMAGE_CASES = {
    "sd1": ("a blue vase", "white background", 64, 64, 10, 5, "dpmpp_2m", False, 31),
    "sd2": ("a red mug", "", 96, 64, 10, 5, "ddim", False, 32),
    "sdxl": ("a green shirt", "", 64, 96, 10, 5, "euler", False, 33),
}
STRENGTH = 0.6


def write_models(scratch: Path) -> dict[str, str]:
    """Settles and imports the three models; returns their bundles' digests."""
    shutil.rmtree(BUNDLES, ignore_errors=True)
    vae = None
    for family in FAMILIES:
        pipeline = new_pipeline(family, scratch / family)
        settle(pipeline)
        if family == "sd1":
            vae = pipeline.vae
            write_scalar_timestep(pipeline.unet, BUNDLES / "sd15-scalar-timestep/unet.onnx")
        if family == "sd2":
            pipeline.vae = vae
        save_folder(pipeline, scratch / family)
        out = BUNDLES / f"golden-{family}"
        command = ["--threads", "1", "import", str(scratch / family), "--out", str(out), "--name", f"Golden {family}", "--license", "Apache-2.0"]
        assert trainer([*command, "--id", out.name]) == 0
        for graph in out.rglob("model.onnx"):
            compact(graph)
        lender = read_manifest(BUNDLES / "golden-sd1") if family == "sd2" else None
        uses = {} if lender is None else {part: borrow(out, part, lender) for part in ("vae_decoder", "vae_encoder")}
        manifest = {**read_manifest(out), **({"uses": uses} if uses else {}), "parts": describe_parts(out)}
        (out / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    manifests = {f"golden-{family}": read_manifest(BUNDLES / f"golden-{family}") for family in FAMILIES}
    return {id: whole_digest(manifest, manifests) for id, manifest in manifests.items()}


def load(folder: Path) -> diffusers.DiffusionPipeline:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: diffusers.DiffusionPipeline, original, case: dict, image: Image.Image | None = None) -> np.ndarray:
    scheduler_class, overrides = SCHEDULERS[case["sampler"]]
    spacing = {"use_karras_sigmas": True} if case["karras"] else {}
    pipeline.scheduler = scheduler_class.from_config(original.config, **overrides, **spacing)
    # What SDXL makes zeros of is a negative prompt that is not there, not one that is empty.
    negative = case["negativePrompt"] or (None if case["bundle"] == "golden-sdxl" else "")
    size = {"height": case["height"], "width": case["width"]} if image is None else {"image": image, "strength": STRENGTH}
    made = pipeline(prompt=case["prompt"], negative_prompt=negative, **size, num_inference_steps=case["steps"],
                    guidance_scale=case["guidanceScale"], generator=torch.Generator("cpu").manual_seed(case["seed"]), output_type="np")
    pixels = (made.images[0] * 255).round().astype(np.uint8)
    assert pixels.shape == (case["height"], case["width"], 3) and pixels.std() > 20, f"{case}: {pixels.shape}, std {pixels.std():.1f}"
    return pixels


def init_image(width: int, height: int, seed: int) -> Image.Image:
    """Soft colours, as a photo has, and a hard edge."""
    coarse = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)[0]
    pixels[:, height // 3 : height // 2, width // 4 : width // 2] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy())


def described(family: str, file: str, case: tuple) -> dict:
    fields = ("prompt", "negativePrompt", "width", "height", "steps", "guidanceScale", "sampler", "karras", "seed")
    return {"bundle": f"golden-{family}", "file": file, **dict(zip(fields, case, strict=True))}


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    cases, image_cases = [], []
    with tempfile.TemporaryDirectory() as folder:
        bundles = write_models(Path(folder))
        for family in FAMILIES:
            pipeline = load(Path(folder) / family)
            original = pipeline.scheduler
            for case in CASES[family]:
                cases.append(described(family, f"{len(cases) + 1:02d}-golden-{family}.png", case))
                Image.fromarray(draw(pipeline, original, cases[-1])).save(PICTURES / cases[-1]["file"], optimize=True)
            kind = diffusers.StableDiffusionXLImg2ImgPipeline if family == "sdxl" else diffusers.StableDiffusionImg2ImgPipeline
            own = {} if family == "sdxl" else {"requires_safety_checker": False}
            components = {**pipeline.components}
            from_image = kind(**components, **own)
            from_image.set_progress_bar_config(disable=True)
            case = {**described(family, f"image-golden-{family}.png", IMAGE_CASES[family]), "initImage": f"init-{family}.png", "strength": STRENGTH}
            init = init_image(case["width"], case["height"], case["seed"])
            init.save(PICTURES / case["initImage"], optimize=True)
            Image.fromarray(draw(from_image, original, case, init)).save(PICTURES / case["file"], optimize=True)
            image_cases.append(case)
    lines = lambda rows: ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in rows)  # noqa: E731
    head = {"writtenBy": "test/golden/write_families.py", "versions": versions(transformers), "bundles": bundles}
    text = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
    (DATA / "families.json").write_text(
        f'{text},\n  "cases": [\n{lines(cases)}\n  ],\n  "imageToImage": [\n{lines(image_cases)}\n  ]\n}}\n', encoding="utf-8")
    for folder in (BUNDLES, PICTURES):
        print(f"{folder.relative_to(ROOT)}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
