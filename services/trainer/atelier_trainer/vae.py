"""Trains the VAE on whole pictures, freezes its latents, then fine-tunes the decoder against them.

Whole pictures, not crops: GroupNorm on a flat crop loses the absolute colour. The loss counts chroma
more than luma, since a product in the wrong tint is worse than one slightly soft.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from .config import LATENT_CHANNELS, NATIVE_SIZE, VAE_FACTOR, Workspace
from .models import new_vae
from .training import Checkpoint, Ema, Progress, cosine_lr, psnr

KL_WEIGHT = 2e-5
COLOUR_WEIGHT = 20.0
# After whitening, the variance half of the encoder's output is this constant: img2img samples then equal the mean
# to 0.25 % of a latent's spread.
LOGVAR = -12.0


def to_input(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in -1..1, channels last."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_pictures(images: torch.Tensor) -> np.ndarray:
    """The inverse of `to_input`, clipped."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def picture_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    difference = output - target
    chroma = difference - difference.mean(1, keepdim=True)
    horizontal = difference[..., :, 1:] - difference[..., :, :-1]
    vertical = difference[..., 1:, :] - difference[..., :-1, :]
    return (
        difference.abs().mean() + 2 * difference.square().mean() + chroma.abs().mean() + 4 * chroma.square().mean()
        + 0.5 * (horizontal.abs().mean() + vertical.abs().mean())
    )


def _load(work: Workspace, size: int) -> np.ndarray:
    """The training pictures at `size`; 128 px ones are box-averaged from 256 px on the fly."""
    name = "train-512.npy" if size == 2 * NATIVE_SIZE else "train-256.npy"
    return np.load(work.path(name), mmap_mode="r")


def _batch(pictures: np.ndarray, size: int, count: int) -> torch.Tensor:
    rows = np.sort(np.random.randint(0, len(pictures), count))
    x = to_input(pictures[rows])
    if x.shape[-1] > size:
        x = F.avg_pool2d(x, x.shape[-1] // size)
    if np.random.rand() < 0.5:
        x = x.flip(-1)
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def held_out_db(work: Workspace, vae: AutoencoderKL, count: int = 48, size: int = NATIVE_SIZE) -> float:
    pictures = np.load(work.path(f"held-out-{size}.npy"), mmap_mode="r")[:count]
    values = [
        psnr(vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1), x)
        for x in (to_input(p[None]).contiguous(memory_format=torch.channels_last) for p in pictures)
    ]
    return float(np.mean(values))


@torch.no_grad()
def save_grid(work: Workspace, vae: AutoencoderKL, name: str) -> None:
    pictures = np.load(work.path("held-out-256.npy"), mmap_mode="r")[:8]
    x = to_input(pictures)
    y = to_pictures(vae.decode(vae.encode(x).latent_dist.mean).sample)
    Image.fromarray(np.concatenate([np.concatenate(list(pictures), 1), np.concatenate(list(y), 1)], 0)).save(work.path(name))


def train_vae(work: Workspace) -> None:
    """Writes `vae.pt` (EMA weights, latents whitened)."""
    if work.path("vae.pt").exists():
        return
    recipe = work.recipe
    torch.manual_seed(recipe.seed)
    np.random.seed(recipe.seed)
    vae = new_vae(recipe)
    ema = Ema(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint(work.path("vae.ckpt"), recipe.checkpoint_minutes, model=vae, ema=ema, optimizer=optimizer)
    step = checkpoint.load()
    # A linear reading of the latents as small colours. Without it the encoder settled on one warm-to-cool axis, took
    # red for orange and green for blue, and stayed there: the way to a second axis through the decoder is too long.
    colours = torch.nn.Conv2d(LATENT_CHANNELS, 3, 1)
    colours_optimizer = torch.optim.Adam(colours.parameters(), lr=3e-3)
    first = True
    plan = [(size, batch) for size, batch, steps in recipe.vae_phases for _ in range(steps)]
    progress = Progress("vae", 25)
    pictures, loaded = None, 0
    while step < len(plan):
        size, count = plan[step]
        if loaded != size:
            pictures, loaded = _load(work, size), size
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, len(plan), recipe.vae_lr)
        x = _batch(pictures, size, count)
        posterior = vae.encode(x).latent_dist
        z = posterior.sample()
        y = vae.decode(z).sample
        if first:
            _fit(colours, posterior.mean.detach(), F.avg_pool2d(x, VAE_FACTOR))
            first = False
        miss = colours(z) - F.avg_pool2d(x, VAE_FACTOR)
        colour_loss = miss.square().mean() + 4 * (miss - miss.mean(1, keepdim=True)).square().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = picture_loss(y, x) + KL_WEIGHT * kl * LATENT_CHANNELS + COLOUR_WEIGHT * colour_loss
        optimizer.zero_grad(set_to_none=True)
        colours_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        colours_optimizer.step()
        ema.update(vae)
        progress.add(step, len(plan), count, loss=loss.item(), kl=kl.item(), colour=colour_loss.item(), dB=psnr(y.detach(), x))
        step += 1
        if checkpoint.maybe_save(step):
            _report(work, vae, ema, step)
    ema.copy_to(vae)
    print(f"vae held-out {held_out_db(work, vae):.2f} dB", flush=True)
    whiten(work, vae)
    print(f"vae held-out after whitening {held_out_db(work, vae):.2f} dB", flush=True)
    save_grid(work, vae, "vae-grid.png")
    torch.save(vae.state_dict(), work.path("vae.pt"))


@torch.no_grad()
def _fit(colours: torch.nn.Conv2d, z: torch.Tensor, target: torch.Tensor) -> None:
    """Sets the 1x1 convolution to the least-squares map from latents to colours, so that a resumed run is not jolted."""
    features = torch.cat([z, torch.ones_like(z[:, :1])], 1).permute(0, 2, 3, 1).reshape(-1, LATENT_CHANNELS + 1)
    solution = torch.linalg.lstsq(features, target.permute(0, 2, 3, 1).reshape(-1, 3)).solution
    colours.weight.copy_(solution[:LATENT_CHANNELS].T[:, :, None, None])
    colours.bias.copy_(solution[LATENT_CHANNELS])


def _report(work: Workspace, vae: AutoencoderKL, ema: Ema, step: int) -> None:
    averaged = new_vae(work.recipe)
    averaged.load_state_dict(vae.state_dict())
    ema.copy_to(averaged)
    save_grid(work, averaged, "vae-grid.png")
    print(f"vae step {step} held-out {held_out_db(work, averaged, 16):.2f} dB", flush=True)


@torch.no_grad()
def whiten(work: Workspace, vae: AutoencoderKL, pictures_max: int = 256) -> None:
    """Gives the latents mean 0 and unit covariance over channels, exactly, by folding the affine map into the two 1x1 convolutions.

    Trained latents are mostly luma four times over; colour lies in directions a tenth as wide, which the noise hides
    until the last steps, so that the U-Net would choose colours too late. Stable Diffusion's single `scaling_factor`
    can neither turn the axes nor move the mean; with this it is simply 1.
    """
    pictures = np.load(work.path("train-256.npy"), mmap_mode="r")
    rows = np.linspace(0, len(pictures) - 1, min(pictures_max, len(pictures))).astype(int)
    latents = torch.cat([vae.encode(to_input(pictures[i : i + 1])).latent_dist.mean for i in rows])
    flat = latents.permute(1, 0, 2, 3).reshape(LATENT_CHANNELS, -1).double()
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    print(f"latent mean {mean.tolist()} variances along the principal axes {values.tolist()}", flush=True)
    forward = (vectors @ torch.diag(values.rsqrt()) @ vectors.T).float()  # ZCA: the rotation nearest to none
    backward = (vectors @ torch.diag(values.sqrt()) @ vectors.T).float()
    mean = mean.float()
    post = vae.post_quant_conv  # decoder side: z = backward z' + mean
    matrix = post.weight[:, :, 0, 0].clone()
    post.bias += matrix @ mean
    post.weight.copy_((matrix @ backward)[:, :, None, None])
    quant = vae.quant_conv  # encoder side: z' = forward (z - mean)
    matrix = quant.weight[:LATENT_CHANNELS, :, 0, 0].clone()
    quant.weight[:LATENT_CHANNELS] = (forward @ matrix)[:, :, None, None]
    quant.bias[:LATENT_CHANNELS] = forward @ (quant.bias[:LATENT_CHANNELS] - mean)
    quant.weight[LATENT_CHANNELS:] = 0.0
    quant.bias[LATENT_CHANNELS:] = LOGVAR


def load_vae(work: Workspace) -> AutoencoderKL:
    """The VAE with the best decoder so far."""
    vae = new_vae(work.recipe)
    vae.load_state_dict(torch.load(work.path("vae.pt")))
    for name in ("decoder.pt", "decoder-early.pt"):
        if work.path(name).exists():
            vae.load_state_dict(torch.load(work.path(name)), strict=False)
            break
    return vae.eval()


@torch.no_grad()
def compute_latents(work: Workspace) -> None:
    """Writes `latents-*.npy`, float16 [n, 4, h/8, w/8], of the training pictures."""
    vae = load_vae(work)
    for name in ("train-256", "blurred-256", "train-512"):
        target = work.path(f"latents-{name}.npy")
        if target.exists():
            continue
        pictures = np.load(work.path(f"{name}.npy"), mmap_mode="r")
        side = pictures.shape[1] // VAE_FACTOR
        latents = np.zeros((len(pictures), LATENT_CHANNELS, side, side), np.float16)
        for i in range(0, len(pictures), 4):
            x = to_input(pictures[i : i + 4]).contiguous(memory_format=torch.channels_last)
            latents[i : i + 4] = vae.encode(x).latent_dist.mean.numpy()
        np.save(work.path("latents.part.npy"), latents)
        work.path("latents.part.npy").rename(target)
        print(f"{target.name}: {latents.shape} deviation {latents.astype(np.float32).std():.3f}", flush=True)


def train_decoder(work: Workspace) -> None:
    """Writes `decoder.pt`: decoder and post_quant_conv only; latents stay as they are."""
    if work.path("decoder.pt").exists():
        return
    recipe = work.recipe
    torch.manual_seed(recipe.seed + 1)
    np.random.seed(recipe.seed + 1)
    vae = new_vae(recipe)
    vae.load_state_dict(torch.load(work.path("vae.pt")))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    trained = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    ema = Ema(trained)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=recipe.decoder_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint(work.path("decoder.ckpt"), recipe.checkpoint_minutes, model=trained, ema=ema, optimizer=optimizer)
    step = checkpoint.load()
    data = {
        size: (_load(work, size), np.load(work.path(f"latents-train-{size}.npy"))) for size in (NATIVE_SIZE, 2 * NATIVE_SIZE)
    }
    progress = Progress("decoder", 50)
    while step < recipe.decoder_steps:
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, recipe.decoder_steps, recipe.decoder_lr)
        # Every tenth step is one 512 px picture, so that GroupNorm's statistics there are known as well.
        size, count = (2 * NATIVE_SIZE, 1) if step % 10 == 9 else (NATIVE_SIZE, 3)
        pictures, latents = data[size]
        rows = np.sort(np.random.randint(0, len(latents), count))
        x = to_input(pictures[rows]).contiguous(memory_format=torch.channels_last)
        z = torch.from_numpy(latents[rows].astype(np.float32))
        # Generated latents are never exact: a little noise teaches the decoder to forgive.
        z = z + 0.03 * torch.randn_like(z)
        y = vae.decode(z).sample
        loss = picture_loss(y, x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        ema.update(trained)
        progress.add(step, recipe.decoder_steps, count, loss=loss.item(), dB=psnr(y.detach(), x))
        step += 1
        if checkpoint.maybe_save(step):
            _save_decoder(work, trained, ema, "decoder-early.pt")
    _save_decoder(work, trained, ema, "decoder.pt")
    vae = load_vae(work)
    save_grid(work, vae, "decoder-grid.png")
    print(f"decoder held-out {held_out_db(work, vae):.2f} dB, at 512 {held_out_db(work, vae, 12, 512):.2f} dB", flush=True)


def _save_decoder(work: Workspace, trained: torch.nn.Module, ema: Ema, name: str) -> None:
    kept = {k: v.clone() for k, v in trained.state_dict().items()}
    for (key, _), value in zip(trained.named_parameters(), ema.values, strict=True):
        kept[key] = value.clone()
    torch.save(kept, work.path(name))
