"""Every number of the recipe in one place: sizes, step budgets, seeds.

Budgets are steps, not wall time, so that a slower machine trains the same model (weights are still
not bit-reproducible across machines; the committed ones carry digests).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

NATIVE_SIZE = 256  # pixels
VAE_FACTOR = 8  # pixels per latent, per side
LATENT_CHANNELS = 4
TOKENS_MAX = 77
TEXT_WIDTH = 128


@dataclass(frozen=True)
class Recipe:
    """One run's budgets. `FULL` made the committed weights; `TOY` proves the code in a minute."""

    name: str
    seed: int = 7

    # Pictures. 512 px pictures are a prefix of the 256 px ones (same specs, same scenes).
    train_pictures: int = 14_000
    train_pictures_512: int = 2_000
    blurred_pictures: int = 800  # taught as "low resolution, blurry", so that negative prompts mean something
    held_out_pictures: int = 400
    captions_per_picture: int = 12
    captions_for_vocabulary: int = 30_000
    vocabulary: int = 1_600

    # CLIP image/text pair
    clip_steps: int = 3_000
    clip_batch: int = 64

    # VAE: (pixels, batch, steps) phases, then a decoder-only fine-tune against frozen latents
    vae_channels: tuple[int, ...] = (16, 24, 48, 96)
    vae_groups: int = 8
    vae_phases: tuple[tuple[int, int, int], ...] = ((128, 12, 1_100), (256, 4, 500))
    vae_lr: float = 1.5e-3
    decoder_steps: int = 1_200
    decoder_lr: float = 8e-4

    # U-Net
    unet_channels: tuple[int, ...] = (48, 96, 128)
    unet_groups: int = 16
    unet_heads: int = 4
    unet_steps: int = 12_000
    unet_batch: int = 10
    unet_lr: float = 1.3e-3
    unet_text_lr: float = 3e-4
    empty_caption_rate: float = 0.1
    bucket_512_from: float = 0.84  # share of the steps after which every second batch is 64x64 latents
    bucket_512_batch: int = 3

    # The judge of `evaluate`: a CNN on separately seeded drawings
    judge_pictures: int = 6_000
    judge_steps: int = 600

    checkpoint_minutes: float = 5.0


FULL = Recipe(name="full")
TOY = replace(
    FULL,
    name="toy",
    train_pictures=24,
    train_pictures_512=4,
    blurred_pictures=4,
    held_out_pictures=8,
    captions_per_picture=2,
    captions_for_vocabulary=400,
    vocabulary=700,
    clip_steps=3,
    clip_batch=8,
    vae_channels=(8, 8, 16, 16),
    vae_phases=((128, 2, 2), (256, 1, 1)),
    decoder_steps=2,
    unet_channels=(16, 32, 32),
    unet_steps=4,
    unet_batch=2,
    bucket_512_from=0.5,
    bucket_512_batch=1,
    judge_pictures=16,
    judge_steps=3,
)

RECIPES = {"full": FULL, "toy": TOY}


@dataclass(frozen=True)
class Workspace:
    """Where a run keeps pictures, checkpoints and logs; nothing in it is committed."""

    root: Path
    recipe: Recipe = field(default=FULL)

    def path(self, name: str) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root / name
