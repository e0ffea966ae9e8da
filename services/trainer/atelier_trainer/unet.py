"""Trains the U-Net on frozen latents, with the text encoder learning along slowly."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from .clip_pair import load_clip_pair, token_table
from .config import LATENT_CHANNELS, NATIVE_SIZE, VAE_FACTOR, Workspace
from .dataset import load_captions
from .models import new_text_encoder, new_unet
from .tokenizer import CaptionTokenizer
from .training import Checkpoint, Ema, Progress, cosine_lr
from .vae import load_vae, to_pictures

TRAIN_TIMESTEPS = 1000
# Above this noise level the layout of a 512 px picture is decided, which is the 256 px pass's work.
BUCKET_512_TIMESTEP_MAX = 600
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1", "algorithm_type": "dpmsolver++",
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": TRAIN_TIMESTEPS,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": False, "solver_order": 2, "solver_type": "midpoint",
    "steps_offset": 1, "timestep_spacing": "trailing", "trained_betas": None, "clip_sample": False,
    "set_alpha_to_one": False, "thresholding": False, "use_karras_sigmas": False, "final_sigmas_type": "zero",
    "lower_order_final": True,
}
SAMPLE_PROMPTS = [
    "a red t-shirt on a white background", "blue mug with white dots, wooden table", "国潮风T恤, 白色背景",
    "绿色茶壶，大理石背景", "black handbag, beige background", "黄色雨伞", "pink dress with stripes", "红色灯笼, 红色背景",
    "a white sneaker on light grey", "棕色沙发", "nordic hoodie, snowflakes", "紫色花瓶, 水彩",
]


def scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler.from_config(SCHEDULER)


def initial_text_encoder(work: Workspace) -> CLIPTextModel:
    """A text encoder with the weights of the CLIP pair's text tower."""
    pair, _ = load_clip_pair(work)
    encoder = new_text_encoder(pair.config.text_config.vocab_size)
    tower = {k.removeprefix("text_model."): v for k, v in pair.text_model.state_dict().items()}
    prefix = "text_model." if next(iter(encoder.state_dict())).startswith("text_model.") else ""
    encoder.load_state_dict({prefix + k: v for k, v in tower.items()})
    return encoder


class _Data:
    """Latents and token tables in memory; batches of (latents, ids)."""

    def __init__(self, work: Workspace) -> None:
        self.recipe = work.recipe
        texts, blurred = load_captions(work)
        sharp, soft = np.load(work.path("latents-train-256.npy")), np.load(work.path("latents-blurred-256.npy"))
        self.latents = torch.from_numpy(np.concatenate([sharp, soft]))
        self.tokens = token_table(work, [*texts[: len(sharp)], *blurred[: len(soft)]])
        self._work, self._latents_512 = work, None
        self.empty = torch.tensor(CaptionTokenizer(work.path("tokenizer"))([""])[0])

    def batch(self, count: int, wide: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if wide and self._latents_512 is None:
            self._latents_512 = torch.from_numpy(np.load(self._work.path("latents-train-512.npy")))
        pool = self._latents_512 if wide else self.latents
        rows = torch.randint(0, len(pool), (count,))
        ids = self.tokens[rows, torch.randint(0, self.tokens.shape[1], (count,))].long()
        empty = torch.rand(count) < self.recipe.empty_caption_rate
        return pool[rows].float(), torch.where(empty[:, None], self.empty, ids)


def train_unet(work: Workspace) -> None:
    """Writes `unet.pt`: {"unet", "text_encoder"} EMA weights; `unet-early.pt` at every checkpoint."""
    if work.path("unet.pt").exists():
        return
    recipe = work.recipe
    torch.manual_seed(recipe.seed)
    np.random.seed(recipe.seed)
    data = _Data(work)
    unet, text_encoder = new_unet(recipe), initial_text_encoder(work)
    text_encoder.train()
    trained = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    ema = Ema(trained)
    optimizer = torch.optim.AdamW(
        [{"params": unet.parameters(), "peak": recipe.unet_lr},
         {"params": text_encoder.parameters(), "peak": recipe.unet_text_lr}],
        lr=recipe.unet_lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True,
    )
    checkpoint = Checkpoint(work.path("unet.ckpt"), recipe.checkpoint_minutes, model=trained, ema=ema, optimizer=optimizer)
    step = checkpoint.load()
    alphas = scheduler().alphas_cumprod
    progress = Progress("unet", 50)
    while step < recipe.unet_steps:
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, recipe.unet_steps, group["peak"])
        wide = step >= recipe.bucket_512_from * recipe.unet_steps and step % 2 == 1
        x, ids = data.batch(recipe.bucket_512_batch if wide else recipe.unet_batch, wide)
        t_max = BUCKET_512_TIMESTEP_MAX if wide else TRAIN_TIMESTEPS
        # More high noise than uniform: that is where product, colour and place are decided.
        t = (t_max * torch.rand(len(x)) ** 0.6).long()
        alpha, sigma = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
        noise = torch.randn_like(x)
        noisy = (alpha * x + sigma * noise).contiguous(memory_format=torch.channels_last)
        context = text_encoder(input_ids=ids).last_hidden_state
        loss = F.mse_loss(unet(noisy, t, context).sample, alpha * noise - sigma * x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        ema.update(trained)
        progress.add(step, recipe.unet_steps, len(x), **{"loss512" if wide else "loss": loss.item()})
        step += 1
        if checkpoint.maybe_save(step) or step == recipe.unet_steps:
            _save(work, trained, ema, "unet.pt" if step == recipe.unet_steps else "unet-early.pt")
            save_samples(work, f"samples-{step:06d}.png")


def _save(work: Workspace, trained: torch.nn.ModuleDict, ema: Ema, name: str) -> None:
    kept = {k: v.clone() for k, v in trained.state_dict().items()}
    for (key, _), value in zip(trained.named_parameters(), ema.values, strict=True):
        kept[key] = value.clone()
    torch.save(kept, work.path("unet.pt.part"))
    work.path("unet.pt.part").rename(work.path(name))


def load_unet(work: Workspace) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """(U-Net, text encoder) of the last weights written."""
    name = "unet.pt" if work.path("unet.pt").exists() else "unet-early.pt"
    unet = new_unet(work.recipe)
    text_encoder = new_text_encoder(CaptionTokenizer(work.path("tokenizer")).vocabulary)
    torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).load_state_dict(torch.load(work.path(name)))
    return unet.eval(), text_encoder.eval()


@torch.no_grad()
def denoise(unet: UNet2DConditionModel, latents: torch.Tensor, context: torch.Tensor, uncond: torch.Tensor,
            guidance: float, steps: int, strength: float | None = None, seed: int = 0) -> torch.Tensor:
    """DPM-Solver++ 2M with guidance. `latents` is unit noise, or with `strength` a finished latent to refine (img2img)."""
    schedule = scheduler()
    schedule.set_timesteps(steps)
    timesteps = schedule.timesteps
    if strength is not None:
        timesteps = timesteps[steps - min(int(steps * strength), steps) :]
        schedule.set_begin_index(steps - len(timesteps))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        latents = schedule.add_noise(latents, noise, timesteps[:1].repeat(len(latents)))
    both = torch.cat([uncond, context])
    for t in timesteps:
        v = unet(torch.cat([latents, latents]).contiguous(memory_format=torch.channels_last), t, both).sample
        v_uncond, v_text = v.chunk(2)
        latents = schedule.step(v_uncond + guidance * (v_text - v_uncond), t, latents).prev_sample
    return latents


@torch.no_grad()
def sample_latents(work: Workspace, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, prompts: list[str],
                   seed: int, steps: int = 25, guidance: float = 2.5, negative: str = "") -> torch.Tensor:
    """Native-size latents [n, 4, 32, 32] of the prompts, one noise per prompt from one generator."""
    tokenizer = CaptionTokenizer(work.path("tokenizer"))
    encode = lambda texts: text_encoder(input_ids=torch.tensor(tokenizer(texts))).last_hidden_state  # noqa: E731
    side = NATIVE_SIZE // VAE_FACTOR
    noise = torch.randn(len(prompts), LATENT_CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))
    return denoise(unet, noise, encode(prompts), encode([negative] * len(prompts)), guidance, steps)


@torch.no_grad()
def save_samples(work: Workspace, name: str) -> None:
    """A grid of `SAMPLE_PROMPTS`, to look at while training."""
    unet, text_encoder = load_unet(work)
    latents = sample_latents(work, unet, text_encoder, SAMPLE_PROMPTS, seed=1, steps=20)
    pictures = to_pictures(load_vae(work).decode(latents).sample)
    rows = [np.concatenate(list(pictures[i : i + 6]), 1) for i in range(0, len(pictures), 6)]
    Image.fromarray(np.concatenate(rows, 0)).save(work.path(name))
