"""Scores generated pictures with a judge trained on other drawings, and makes the contact sheet."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .clip_pair import ATTRIBUTE_NAMES, ATTRIBUTE_SIZES, augment
from .config import LATENT_CHANNELS, NATIVE_SIZE, VAE_FACTOR, Workspace
from .dataset import HELD_OUT_STREAM, JUDGE_STREAM, attributes, specs_of
from .drawing import COLOURS, PRODUCTS, Spec, caption, sample_spec
from .export import HIRES_FIX
from .tokenizer import CaptionTokenizer
from .training import Progress, cosine_lr
from .unet import denoise, load_unet, sample_latents
from .vae import load_vae, to_pictures

EVALUATION_SEED = 2026
SHEET_PROMPTS = [
    "国潮风T恤, 白色背景", "a blue mug with white dots, wooden table", "a yellow umbrella, sky blue background", "红色灯笼，喜庆红色背景",
    "a white sneaker on a light grey background", "粉色连衣裙，碎花，米色背景", "a green teapot on marble", "黑色手提包，白色背景",
    "a nordic style hoodie, beige background", "紫色花瓶，大理石背景", "an orange sofa in a green garden", "国潮风月饼，喜庆红色背景",
    "a brown backpack, light grey background", "蓝色条纹帽子，白色背景", "watercolour painting of a pink dress", "水彩风格的绿色雨伞，白色背景",
    "a red guochao teapot, white background", "黑色格子卫衣，浅灰背景", "a purple sneaker, wooden table", "黄色马克杯，花园背景",
]


class Judge(torch.nn.Module):
    """A small CNN: 128 px picture to product and colour (and the other attributes, for information)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 48, 96, 128, 192)
        self.body = torch.nn.Sequential(*[
            torch.nn.Sequential(torch.nn.Conv2d(a, b, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(b), torch.nn.ReLU(),
                                torch.nn.Conv2d(b, b, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(b), torch.nn.ReLU())
            for a, b in zip(widths, widths[1:])
        ])
        self.heads = torch.nn.ModuleList(torch.nn.Linear(widths[-1], n) for n in ATTRIBUTE_SIZES)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = self.body(x * 2 - 1).mean((2, 3))
        return [head(features) for head in self.heads]


def _small(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, s, s, 3] to float [n, 3, 128, 128] in 0..1."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(255)
    return F.avg_pool2d(x, x.shape[-1] // 128) if x.shape[-1] > 128 else x


def train_judge(work: Workspace) -> None:
    """Writes `judge.pt`; prints its accuracy on held-out drawings, which bounds what `evaluate` can measure."""
    if work.path("judge.pt").exists():
        return
    recipe = work.recipe
    torch.manual_seed(recipe.seed + 2)
    pictures = np.load(work.path("judge-128.npy"))
    labels = torch.from_numpy(attributes(specs_of(JUDGE_STREAM, recipe.judge_pictures, recipe.seed)))
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    progress = Progress("judge", 100)
    for step in range(recipe.judge_steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, recipe.judge_steps, 2e-3)
        rows = np.random.default_rng([recipe.seed, step]).integers(0, len(pictures), 32)
        outputs = judge(augment(_small(pictures[rows])))
        loss = sum(F.cross_entropy(o, labels[rows][:, i]) for i, o in enumerate(outputs))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress.add(step, recipe.judge_steps, 32, loss=loss.item())
    torch.save(judge.state_dict(), work.path("judge.pt"))
    print(f"judge on held-out drawings {judge_accuracy(work)}", flush=True)


def load_judge(work: Workspace) -> Judge:
    judge = Judge()
    judge.load_state_dict(torch.load(work.path("judge.pt")))
    return judge.eval()


@torch.no_grad()
def judge_accuracy(work: Workspace) -> dict[str, float]:
    pictures = np.load(work.path("held-out-256.npy"))
    labels = torch.from_numpy(attributes(specs_of(HELD_OUT_STREAM, len(pictures), work.recipe.seed)))
    outputs = load_judge(work)(_small(pictures))
    return {name: round(float((o.argmax(1) == labels[:, i]).float().mean()), 4)
            for i, (name, o) in enumerate(zip(ATTRIBUTE_NAMES, outputs, strict=True))}


def evaluation_prompts(count: int) -> list[tuple[Spec, str]]:
    """Unseen prompts, every second one Chinese, products and colours in equal shares. Each names product and colour."""
    rng = np.random.default_rng(EVALUATION_SEED)
    prompts = []
    for i in range(count):
        spec = replace(sample_spec(rng), product=i // 2 % len(PRODUCTS), colour=(i // 2 * 3 + i // 28) % len(COLOURS))
        language = "zh" if i % 2 else "en"
        names = [n for n in getattr(COLOURS[spec.colour], language)]
        text = caption(spec, rng, language)
        for _ in range(60):  # captions sometimes leave the colour out; this test needs it named
            if any(name.lower() in text.lower() for name in names):
                break
            text = caption(spec, rng, language)
        prompts.append((spec, text))
    return prompts


@torch.no_grad()
def hires(unet, vae, text_encoder, tokenizer: CaptionTokenizer, latents: torch.Tensor, prompts: list[str], negative: str,
          strength: float = HIRES_FIX["strength"], upscale: str = HIRES_FIX["upscale"], steps: int = 25,
          guidance: float = 2.5, seed: int = 11) -> np.ndarray:
    """The second pass: native latents enlarged twice, refined at `strength`, decoded. uint8 [n, 512, 512, 3]."""
    encode = lambda texts: text_encoder(input_ids=torch.tensor(tokenizer(texts))).last_hidden_state  # noqa: E731
    corners = {} if upscale == "nearest" else {"align_corners": False}
    wide = F.interpolate(latents, scale_factor=2, mode=upscale, **corners)
    wide = denoise(unet, wide, encode(prompts), encode([negative] * len(prompts)), guidance, steps, strength, seed)
    return np.concatenate([to_pictures(vae.decode(z[None]).sample) for z in wide])


@torch.no_grad()
def evaluate(work: Workspace, count: int, use_hires: bool, negative: str, grid: Path | None) -> dict[str, object]:
    """Prints per-attribute misses and, as its last line, one JSON object."""
    unet, text_encoder = load_unet(work)
    vae, judge = load_vae(work), load_judge(work)
    tokenizer = CaptionTokenizer(work.path("tokenizer"))
    prompts = evaluation_prompts(count)
    labels = torch.from_numpy(attributes([spec for spec, _ in prompts]))
    hits = torch.zeros(count, len(ATTRIBUTE_NAMES), dtype=torch.bool)
    shown, started = [], time.monotonic()
    for i in range(0, count, 10):
        texts = [text for _, text in prompts[i : i + 10]]
        latents = sample_latents(work, unet, text_encoder, texts, seed=EVALUATION_SEED + i, negative=negative)
        pictures = (hires(unet, vae, text_encoder, tokenizer, latents, texts, negative) if use_hires
                    else to_pictures(vae.decode(latents).sample))
        for k, output in enumerate(judge(_small(pictures))):
            hits[i : i + 10, k] = output.argmax(1) == labels[i : i + 10, k]
        shown.append(pictures)
    for i, (_, text) in enumerate(prompts):
        wrong = [ATTRIBUTE_NAMES[k] for k in (0, 1) if not hits[i, k]]
        if wrong:
            print(f"missed {', '.join(wrong)}: {text}")
    if grid is not None:
        flat = np.concatenate(shown)[:60]
        rows = [np.concatenate(list(flat[i : i + 10]), 1) for i in range(0, len(flat) // 10 * 10, 10)]
        Image.fromarray(np.concatenate(rows, 0)).save(grid)
    even = torch.arange(count) % 2 == 0
    result = {
        "evaluation": "hires" if use_hires else "native", "prompts": count, "negative": negative,
        **{name: round(float(hits[:, k].float().mean()), 4) for k, name in enumerate(ATTRIBUTE_NAMES[:2])},
        "productEn": round(float(hits[even, 0].float().mean()), 4), "productZh": round(float(hits[~even, 0].float().mean()), 4),
        "colourEn": round(float(hits[even, 1].float().mean()), 4), "colourZh": round(float(hits[~even, 1].float().mean()), 4),
        "judge": judge_accuracy(work), "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return result


@torch.no_grad()
def contact_sheet(work: Workspace, out: Path, columns: int = 5, seed: int = 5) -> None:
    """`SHEET_PROMPTS` at 512 px through the hires fix, one picture each, none chosen by hand."""
    unet, text_encoder = load_unet(work)
    vae, tokenizer = load_vae(work), CaptionTokenizer(work.path("tokenizer"))
    negative = "低分辨率, 模糊"
    latents = sample_latents(work, unet, text_encoder, SHEET_PROMPTS, seed=seed, negative=negative)
    pictures = hires(unet, vae, text_encoder, tokenizer, latents, SHEET_PROMPTS, negative, seed=seed)
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows, 0)).save(out, quality=80)
