"""Trains the tiny CLIP image/text pair; its text tower is where the U-Net's text encoder starts from.

Beside the contrastive loss, both towers predict the caption's attributes. Without that the text encoder
carries too little about colour and product, and the U-Net then learns neither.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from .config import TEXT_WIDTH, Workspace
from .dataset import HELD_OUT_STREAM, TRAIN_STREAM, attributes, captions_of, load_captions, specs_of
from .drawing import BACKGROUNDS, COLOURS, PATTERNS, PRODUCTS, STYLES
from .models import CLIP_MEAN, CLIP_PIXELS, CLIP_STD, new_clip_pair
from .tokenizer import CaptionTokenizer, train_tokenizer
from .training import Checkpoint, Ema, Progress, cosine_lr

BPE_DROPOUT = 0.1
ATTRIBUTE_SIZES = tuple(len(terms) for terms in (PRODUCTS, COLOURS, BACKGROUNDS, PATTERNS, STYLES))
ATTRIBUTE_NAMES = ("product", "colour", "background", "pattern", "style")


def make_tokenizer(work: Workspace) -> None:
    """Learns merges from fresh captions of the training stream."""
    recipe = work.recipe
    if work.path("tokenizer").exists():
        return
    per_spec = 4
    specs = specs_of(TRAIN_STREAM, recipe.captions_for_vocabulary // per_spec, recipe.seed)
    texts = [text for row in captions_of(specs, per_spec, recipe.seed + 1) for text in row]
    train_tokenizer(texts, recipe.vocabulary, work.path("tokenizer"))


def token_table(work: Workspace, captions: list[list[str]]) -> torch.Tensor:
    """int32 [pictures, captions per picture, 77], with BPE-dropout in all but the first two captions."""
    plain = CaptionTokenizer(work.path("tokenizer"))
    dropped = CaptionTokenizer(work.path("tokenizer"), BPE_DROPOUT)
    per_picture = len(captions[0])
    columns = [
        torch.tensor((plain if k < 2 else dropped)([row[k] for row in captions]), dtype=torch.int32)
        for k in range(per_picture)
    ]
    return torch.stack(columns, 1)


def clip_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """float [n, 3, 128, 128] in 0..1 to CLIP's normalised pixels."""
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (pictures - mean) / std


def augment(x: torch.Tensor) -> torch.Tensor:
    """Small shifts, flips, brightness, blur and noise: generated pictures are softer than drawn ones. [n, 3, s, s] in 0..1."""
    n, _, side, _ = x.shape
    if torch.rand(()) < 0.5:
        x = x.flip(-1)
    dy, dx = (int(v) for v in torch.randint(-6, 7, (2,)))
    x = F.pad(x, (6, 6, 6, 6), mode="replicate")[..., 6 + dy : 6 + dy + side, 6 + dx : 6 + dx + side]
    pick = torch.rand(())
    if pick < 0.3:
        small = int(torch.randint(side // 3, side, ()))
        x = F.interpolate(F.interpolate(x, size=small, mode="area"), size=side, mode="bilinear", align_corners=False)
    elif pick < 0.5:
        x = x + 0.03 * torch.randn_like(x)
    return (x * (0.94 + 0.12 * torch.rand(n, 1, 1, 1))).clamp(0, 1)


class AttributeHeads(torch.nn.Module):
    """One linear classifier per attribute on an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(TEXT_WIDTH, n) for n in ATTRIBUTE_SIZES)

    def loss(self, embeds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return sum(F.cross_entropy(head(embeds), labels[:, i]) for i, head in enumerate(self.heads))

    def accuracy(self, embeds: torch.Tensor, labels: torch.Tensor) -> list[float]:
        return [float((head(embeds).argmax(1) == labels[:, i]).float().mean()) for i, head in enumerate(self.heads)]


def embed_text(model: CLIPModel, ids: torch.Tensor) -> torch.Tensor:
    """[n, 77] ids to [n, 128], not normalised."""
    return model.text_projection(model.text_model(input_ids=ids).pooler_output)


def embed_pictures(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """[n, 3, 128, 128] normalised pixels to [n, 128], not normalised."""
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def _small_pictures(work: Workspace, name: str) -> torch.Tensor:
    """uint8 [n, 3, 128, 128], kept in memory (0.7 GB for 14,000)."""
    path = work.path(f"{name}-128.pt")
    if not path.exists():
        pictures = np.load(work.path(f"{name}-256.npy"), mmap_mode="r")
        small = torch.empty(len(pictures), 3, CLIP_PIXELS, CLIP_PIXELS, dtype=torch.uint8)
        for i in range(0, len(pictures), 64):
            x = torch.from_numpy(pictures[i : i + 64].copy()).permute(0, 3, 1, 2).float()
            small[i : i + 64] = F.avg_pool2d(x, 2).round().to(torch.uint8)
        torch.save(small, path)
    return torch.load(path)


def train_clip_pair(work: Workspace) -> None:
    """Writes `clip.pt` (EMA weights)."""
    if work.path("clip.pt").exists():
        return
    recipe = work.recipe
    torch.manual_seed(recipe.seed)
    tokens = token_table(work, load_captions(work)[0])
    pictures = _small_pictures(work, "train")
    labels = torch.from_numpy(attributes(specs_of(TRAIN_STREAM, recipe.train_pictures, recipe.seed)))
    model = new_clip_pair(CaptionTokenizer(work.path("tokenizer")).vocabulary)
    heads = torch.nn.ModuleDict({"text": AttributeHeads(), "image": AttributeHeads()})
    trained = torch.nn.ModuleDict({"clip": model, "heads": heads})
    ema = Ema(trained)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = Checkpoint(work.path("clip.ckpt"), recipe.checkpoint_minutes, model=trained, ema=ema, optimizer=optimizer)
    step = checkpoint.load()
    progress = Progress("clip", 100)
    while step < recipe.clip_steps:
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, recipe.clip_steps, 1e-3, warmup=200)
        rows = torch.randint(0, len(pictures), (recipe.clip_batch,))
        ids = tokens[rows, torch.randint(0, tokens.shape[1], rows.shape)].long()
        text = embed_text(model, ids)
        image = embed_pictures(model, clip_pixels(augment(pictures[rows].float().div_(255))))
        scale = model.logit_scale.exp().clamp(max=50.0)
        logits = scale * F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T
        target = torch.arange(len(rows))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        attribute = heads["text"].loss(text, labels[rows]) + heads["image"].loss(image, labels[rows])
        loss = contrast + 0.5 * attribute
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        ema.update(trained)
        progress.add(step, recipe.clip_steps, len(rows), contrast=contrast.item(), attribute=attribute.item())
        step += 1
        if checkpoint.maybe_save(step) or step == recipe.clip_steps:
            _save(work, trained, ema, "clip.pt" if step == recipe.clip_steps else "clip-early.pt")
    report(work)


def _save(work: Workspace, trained: torch.nn.ModuleDict, ema: Ema, name: str) -> None:
    kept = {k: v.clone() for k, v in trained.state_dict().items()}
    for (key, _), value in zip(trained.named_parameters(), ema.values, strict=True):
        kept[key] = value.clone()
    torch.save(kept, work.path(name))


def load_clip_pair(work: Workspace) -> tuple[CLIPModel, torch.nn.ModuleDict]:
    """(pair, attribute heads) of the last weights written."""
    model = new_clip_pair(CaptionTokenizer(work.path("tokenizer")).vocabulary)
    heads = torch.nn.ModuleDict({"text": AttributeHeads(), "image": AttributeHeads()})
    name = "clip.pt" if work.path("clip.pt").exists() else "clip-early.pt"
    torch.nn.ModuleDict({"clip": model, "heads": heads}).load_state_dict(torch.load(work.path(name)))
    return model.eval(), heads.eval()


@torch.no_grad()
def report(work: Workspace) -> dict[str, object]:
    """Held-out figures: attribute accuracy of both towers, and the right caption found among 64."""
    recipe = work.recipe
    model, heads = load_clip_pair(work)
    specs = specs_of(HELD_OUT_STREAM, recipe.held_out_pictures, recipe.seed)
    labels = torch.from_numpy(attributes(specs))
    ids = token_table(work, captions_of(specs, 1, recipe.seed + 5))[:, 0].long()
    text = embed_text(model, ids)
    pictures = torch.from_numpy(np.load(work.path("held-out-256.npy"))).permute(0, 3, 1, 2).float().div_(255)
    image = embed_pictures(model, clip_pixels(F.avg_pool2d(pictures, 2)))
    logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    group = min(64, len(specs))
    top1 = float((logits[:group, :group].argmax(1) == torch.arange(group)).float().mean())
    figures = {
        "textAccuracy": dict(zip(ATTRIBUTE_NAMES, heads["text"].accuracy(text, labels), strict=True)),
        "imageAccuracy": dict(zip(ATTRIBUTE_NAMES, heads["image"].accuracy(image, labels), strict=True)),
        "captionAmong64": top1,
    }
    print(f"clip held-out {figures}", flush=True)
    return figures
