"""What both kinds of source, a diffusers folder and a single file, come down to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .refusal import ImportRefused

# Formats that run code when they are read. torch writes pickles under any of these names.
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})

CLASSES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
LATENTS_PER_PIXEL = 8


@dataclass(frozen=True)
class Source:
    """A model that can be read one network at a time. Networks go by the names of their diffusers folders."""

    family: str
    model_index: dict
    # Configurations as written; a bytes value is a file to be copied as it is.
    scheduler: bytes
    configs: Mapping[str, bytes]
    # Files by name, by folder.
    tokenizers: Mapping[str, Mapping[str, bytes]]
    # Weights in the source, in bytes, by network.
    sizes: Mapping[str, int]
    # Gives one network in float32, ready to run. Every parameter was in the source.
    load: Callable[[str], torch.nn.Module]
    license: str | None = None

    def config(self, network: str) -> dict:
        return json.loads(self.configs[network])

    @property
    def native_size(self) -> int:
        """Pixels per side that the U-Net was trained at."""
        return int(self.config("unet").get("sample_size") or 64) * LATENTS_PER_PIXEL

    @property
    def prediction(self) -> str:
        """What the U-Net predicts: "epsilon" or "v_prediction"."""
        return json.loads(self.scheduler).get("prediction_type", "epsilon")


def refuse_pickle(path: Path, called: str) -> None:
    if path.suffix.lower() in PICKLES:
        raise ImportRefused(f"{called} is a pickle by its name, and reading a pickle can run any code: convert it to safetensors")


def read_header(path: Path, called: str) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file, which is thereby known to be whole. No weights are read."""
    refuse_pickle(path, called)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except SafetensorError as error:
        raise ImportRefused(f"{called} is truncated or no safetensors file: {error}") from error
    except OSError as error:
        raise ImportRefused(f"{called} cannot be read: {error.strerror or error}") from error


def parse_json(content: bytes, called: str) -> dict:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ImportRefused(f"{called} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImportRefused(f"{called} does not hold a JSON object")
    return value


def check_finite(network: torch.nn.Module, called: str) -> torch.nn.Module:
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ImportRefused(f"{called}: the weight {name} holds a number that is not finite")
    return network.eval().requires_grad_(False)


def check_configs(family: str, configs: Mapping[str, dict]) -> None:
    """Refuses, by file and field, what the worker could only follow wrongly."""
    unet, vae = configs["unet"], configs["vae"]
    latents = vae.get("latent_channels", 4)
    if unet.get("in_channels", 4) != latents:
        kind = " (inpainting and instruction models take further channels)" if unet["in_channels"] > latents else ""
        raise ImportRefused(f"unet/config.json: in_channels is {unet['in_channels']}, the VAE's latent_channels {latents}{kind}")
    for field in ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if unet.get(field) is not None:
            raise ImportRefused(f"unet/config.json: {field} is {unet[field]!r}, a conditioning that is not served")
    wanted = "text_time" if family == "sdxl" else None
    if unet.get("addition_embed_type") != wanted:
        raise ImportRefused(f"unet/config.json: addition_embed_type is {unet.get('addition_embed_type')!r}; {family} has {wanted!r}")
    if len(vae.get("block_out_channels", ())) != 4:
        raise ImportRefused(f"vae/config.json: block_out_channels is {vae.get('block_out_channels')}; "
                            "four of them make the 8 pixels per latent that are served")
    for field in ("latents_mean", "latents_std"):
        if vae.get(field) is not None:
            raise ImportRefused(f"vae/config.json: {field} is set, and latents are scaled by scaling_factor only")
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in configs]
    for name in encoders:
        if configs[name].get("max_position_embeddings", 77) != 77:
            raise ImportRefused(f"{name}/config.json: max_position_embeddings is {configs[name]['max_position_embeddings']}, not 77")
    width, hidden = unet.get("cross_attention_dim"), [configs[name].get("hidden_size") for name in encoders]
    if not all(isinstance(size, int) for size in hidden) or width != sum(hidden):
        raise ImportRefused(f"unet/config.json: cross_attention_dim is {width}, the text encoders' hidden_size {hidden}; they do not belong together")
    if family == "sdxl":
        needed = configs["text_encoder_2"].get("projection_dim", 0) + 6 * unet.get("addition_time_embed_dim", 0)
        if unet.get("projection_class_embeddings_input_dim") != needed:
            raise ImportRefused(
                f"unet/config.json: projection_class_embeddings_input_dim is {unet.get('projection_class_embeddings_input_dim')}; "
                f"the pooled text and six sizes make {needed} (the refiner, which takes five and a score, is not served)")
