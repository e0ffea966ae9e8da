"""Draws the pictures and captions of a recipe into flat files that training maps into memory."""

from __future__ import annotations

import json
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .config import NATIVE_SIZE, Workspace
from .drawing import Spec, caption, draw, sample_spec

# Separate streams, so that held-out pictures and the judge's were never seen in training.
TRAIN_STREAM, HELD_OUT_STREAM, JUDGE_STREAM = 1, 2, 3

# Words around a prompt that name no attribute; people write them, so the encoder learns to ignore them.
FILLERS_EN = ["high quality", "4k", "8k", "product photo", "studio lighting", "e-commerce", "best quality", "detailed",
              "professional photography", "sharp focus", "catalog picture", "centered", "photo of"]
FILLERS_ZH = ["高清", "电商主图", "产品摄影", "高质量", "商品图", "细节清晰", "4k", "专业摄影", "精美", "居中", "一张图片"]
# What people put into a negative prompt. Blurred pictures are captioned with these.
NEGATIVES = ["low resolution, blurry", "低分辨率, 模糊", "blurry", "模糊", "low quality, blurry", "低质量, 模糊",
             "低分辨率，模糊", "blurry, low quality, low resolution", "lowres, bad quality", "低清, 模糊, 变形",
             "worst quality, deformed, blurry", "低分辨率"]


def specs_of(stream: int, count: int, seed: int) -> list[Spec]:
    """The first `count` specs of a stream; a longer list starts with the shorter one."""
    rng = np.random.default_rng([seed, stream])
    return [sample_spec(rng) for _ in range(count)]


def blur(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a low-resolution or unfocused picture of the same scene looks like. uint8 [h, w, 3]."""
    image = Image.fromarray(picture)
    side = picture.shape[0]
    if rng.random() < 0.5:
        small = int(side / rng.uniform(4, 9))
        image = image.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BILINEAR)
    else:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.010, 0.025) * side))
    return np.asarray(image)


def _render_one(job: tuple[Spec, int, int | None]) -> np.ndarray:
    spec, size, blur_seed = job
    picture = draw(spec, size)
    return picture if blur_seed is None else blur(picture, np.random.default_rng(blur_seed))


def render(specs: list[Spec], size: int, path: Path, processes: int, blurred: bool = False) -> None:
    """Writes uint8 [len(specs), size, size, 3]; a finished file is left alone."""
    if path.exists():
        return
    part = path.with_suffix(".part")
    out = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(specs), size, size, 3))
    jobs = [(spec, size, i if blurred else None) for i, spec in enumerate(specs)]
    with get_context("spawn").Pool(processes) as pool:
        for i, picture in enumerate(pool.imap(_render_one, jobs, chunksize=16)):
            out[i] = picture
    out.flush()
    part.rename(path)


def padded_caption(spec: Spec, rng: np.random.Generator) -> str:
    """A caption in either language, now and then with filler words around it."""
    language = "zh" if rng.random() < 0.5 else "en"
    text = caption(spec, rng, language)
    if rng.random() < 0.25:
        fillers = list(rng.choice(FILLERS_ZH if language == "zh" else FILLERS_EN, size=rng.integers(1, 4), replace=False))
        comma = "，" if language == "zh" and rng.random() < 0.5 else ", "
        text = comma.join([*fillers, text] if rng.random() < 0.3 else [text, *fillers])
    return text


def captions_of(specs: list[Spec], per_picture: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng([seed, 99])
    return [[padded_caption(spec, rng) for _ in range(per_picture)] for spec in specs]


def blurred_captions_of(specs: list[Spec], per_picture: int, seed: int) -> list[list[str]]:
    """Negative words alone (6 in 10) or beside the caption."""
    rng = np.random.default_rng([seed, 98])

    def one(spec: Spec) -> str:
        words = str(rng.choice(NEGATIVES))
        return words if rng.random() < 0.6 else f"{padded_caption(spec, rng)}, {words}"

    return [[one(spec) for _ in range(per_picture)] for spec in specs]


def prepare(work: Workspace, processes: int) -> None:
    """Draws every picture and writes every caption of the recipe."""
    recipe = work.recipe
    train = specs_of(TRAIN_STREAM, recipe.train_pictures, recipe.seed)
    held_out = specs_of(HELD_OUT_STREAM, recipe.held_out_pictures, recipe.seed)
    judge = specs_of(JUDGE_STREAM, recipe.judge_pictures, recipe.seed)
    # Blurred scenes come from the tail, so that each is also known sharp.
    tail = train[-recipe.blurred_pictures :]
    texts = captions_of(train, recipe.captions_per_picture, recipe.seed)
    blurred_texts = blurred_captions_of(tail, recipe.captions_per_picture, recipe.seed)
    work.path("captions.json").write_text(json.dumps([texts, blurred_texts], ensure_ascii=False), encoding="utf-8")
    render(held_out, NATIVE_SIZE, work.path("held-out-256.npy"), processes)
    render(train, NATIVE_SIZE, work.path("train-256.npy"), processes)
    render(train[: recipe.train_pictures_512], 2 * NATIVE_SIZE, work.path("train-512.npy"), processes)
    render(held_out[:64], 2 * NATIVE_SIZE, work.path("held-out-512.npy"), processes)
    render(tail, NATIVE_SIZE, work.path("blurred-256.npy"), processes, blurred=True)
    render(judge, NATIVE_SIZE // 2, work.path("judge-128.npy"), processes)


def load_captions(work: Workspace) -> tuple[list[list[str]], list[list[str]]]:
    """(captions of the training pictures, captions of the blurred ones), each [pictures][per picture]."""
    texts, blurred = json.loads(work.path("captions.json").read_text(encoding="utf-8"))
    return texts, blurred


def attributes(specs: list[Spec]) -> np.ndarray:
    """int64 [n, 5]: product, colour, background, pattern, style."""
    return np.array([[s.product, s.colour, s.background, s.pattern, s.style] for s in specs], dtype=np.int64)
