"""Reads a single-file checkpoint in the naming of Stability AI's own code, offline: nothing is fetched to know its shape.

The renaming of weights is diffusers' (loaders/single_file_utils.py), for the pinned version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors import safe_open

from . import figures
from .clip_vocabulary import END, EXCLAMATION, read_vocabulary, write_tokenizer
from .refusal import ImportRefused
from .source import CLASSES, LATENTS_PER_PIXEL, Source, check_configs, check_finite, parse_json, read_header

Shapes = Mapping[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
# Where each family keeps its text encoders; this is what tells them apart.
ENCODERS = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
}
# Named so that a refusal can say what the file is instead.
STRANGERS = {
    "control_model.": "a ControlNet", "conditioner.embedders.0.model.": "the SDXL refiner", "joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3", "double_blocks.": "a FLUX transformer",
    "model.diffusion_model.double_blocks.": "a FLUX transformer", "lora_": "a LoRA adapter", "down_blocks.": "one network of a diffusers folder",
    "text_model.": "one network of a diffusers folder", "edm_": "a model of EDM preconditioning (Playground 2.5)",
}


def open_checkpoint(path: Path, tokenizer: Path | None, configs: Path | None = None, prediction: str | None = None) -> Source:
    """`configs` names a diffusers folder whose config.json files replace the published figures; its weights are not read."""
    shapes = read_header(path, path.name)
    family = family_of(shapes, path.name)
    parsed = figures.configs_of(family) if configs is None else {
        name: _json(configs / name / "config.json") for name in figures.configs_of(family)
    }
    scheduler = dict(figures.SCHEDULERS[family]) if configs is None else _json(configs / "scheduler/scheduler_config.json")
    if prediction is None and "v_pred" in shapes:  # how SDXL fine-tunes say so
        prediction = "v_prediction"
    if prediction is not None:
        scheduler["prediction_type"] = prediction
        if family == "sd2" and prediction == "epsilon" and configs is None:  # 2.1-base, which is made for 512 px
            parsed["unet"] = {**parsed["unet"], "sample_size": 512 // LATENTS_PER_PIXEL}
    if "ztsnr" in shapes:
        scheduler["rescale_betas_zero_snr"] = True
    _check_channels(shapes, path.name)
    check_configs(family, parsed)
    if tokenizer is None and configs is not None:
        tokenizer = configs / "tokenizer"
    if tokenizer is None:
        raise ImportRefused(
            f"{path.name} holds no tokenizer, as no single-file checkpoint does: name CLIP's vocabulary with --tokenizer, a folder with "
            "vocab.json and merges.txt (any model's tokenizer/ folder has it) or OpenAI's bpe_simple_vocab_16e6.txt.gz")
    vocabulary, merges = read_vocabulary(tokenizer)
    rows = parsed["text_encoder"]["vocab_size"]
    if max(vocabulary.values()) >= rows:
        raise ImportRefused(f"--tokenizer: {tokenizer} has ids up to {max(vocabulary.values())}, the text encoder a vocabulary of {rows}")
    pads = {"sd1": {"tokenizer": END}, "sd2": {"tokenizer": EXCLAMATION}, "sdxl": {"tokenizer": END, "tokenizer_2": EXCLAMATION}}[family]
    prefixes = {**ENCODERS[family], "unet": UNET, "vae": VAE}
    sizes = _sizes(path, prefixes)
    return Source(
        family=family, model_index=_model_index(family, scheduler), scheduler=_dump(scheduler),
        configs={name: _dump(config) for name, config in parsed.items()},
        tokenizers={name: write_tokenizer(vocabulary, merges, pad) for name, pad in pads.items()}, sizes=sizes,
        load=lambda name: _load(path, name, prefixes[name], parsed[name]),
    )


def family_of(shapes: Shapes, called: str) -> str:
    """By the names of its text encoders' weights; refuses what is not a whole Stable Diffusion 1, 2 or XL model."""
    has = lambda prefix: any(key.startswith(prefix) for key in shapes)  # noqa: E731
    for prefix, kind in STRANGERS.items():
        if has(prefix):
            raise ImportRefused(f"{called} is {kind}, by its weight {next(k for k in shapes if k.startswith(prefix))}; "
                                "Stable Diffusion 1.x, 2.x and XL checkpoints can be imported")
    if not has(UNET):
        first = next(iter(sorted(shapes)), "none")
        raise ImportRefused(f"{called} has no U-Net: no weight begins with {UNET} (its first is {first})")
    families = [family for family, encoders in ENCODERS.items() if all(has(prefix) for prefix in encoders.values())]
    if len(families) != 1:
        wanted = ", ".join(prefix for encoders in ENCODERS.values() for prefix in encoders.values())
        raise ImportRefused(f"{called} has no text encoder that is known: no weights begin with any of {wanted}")
    if not has(VAE):
        raise ImportRefused(f"{called} has no VAE: no weight begins with {VAE}")
    return families[0]


def _check_channels(shapes: Shapes, called: str) -> None:
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    if first is not None and first[1] != 4:
        raise ImportRefused(f"{called}: {UNET}input_blocks.0.0.weight takes {first[1]} channels, so it is an inpainting or "
                            "instruction model; those of 4 can be imported")


def _sizes(path: Path, prefixes: Mapping[str, str]) -> dict[str, int]:
    """Bytes by network, as the header's offsets say."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {
        name: sum(end - begin for key, tensor in header.items() if key.startswith(prefix) for begin, end in [tensor["data_offsets"]])
        for name, prefix in prefixes.items()
    }


def _load(path: Path, name: str, prefix: str, config: dict) -> torch.nn.Module:
    import diffusers
    import transformers
    from accelerate import init_empty_weights
    from diffusers.loaders import single_file_utils as ldm

    with safe_open(str(path), framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
    with init_empty_weights(include_buffers=False):
        if name in ("unet", "vae"):
            network = getattr(diffusers, "UNet2DConditionModel" if name == "unet" else "AutoencoderKL").from_config(config)
        else:
            cls = getattr(transformers, "CLIPTextModelWithProjection" if name == "text_encoder_2" else "CLIPTextModel")
            network = cls(cls.config_class(**{**config, "attn_implementation": "eager"}))
    try:
        if name == "unet":
            converted = ldm.convert_ldm_unet_checkpoint(weights, config)
        elif name == "vae":
            converted = ldm.convert_ldm_vae_checkpoint(weights, config)
        elif prefix.endswith("transformer."):
            converted = {key.removeprefix(prefix): value for key, value in weights.items()}
        else:
            converted = ldm.convert_open_clip_checkpoint(network, weights, prefix=prefix)
    except (KeyError, IndexError) as error:
        raise ImportRefused(f"{path.name}: {name} lacks the weight {error}") from error
    return check_finite(_fill(network, converted, f"{path.name}: {name}"), f"{path.name}: {name}")


def _fill(network: torch.nn.Module, weights: dict[str, torch.Tensor], called: str) -> torch.nn.Module:
    wanted = network.state_dict()
    if not hasattr(network, "text_model"):  # transformers keeps a text model's weights without the prefix that files have
        weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    for key, parameter in wanted.items():
        if key not in weights:
            raise ImportRefused(f"{called} lacks a weight of this family's: {key}")
        if weights[key].shape != parameter.shape:
            if _without_ones(weights[key].shape) == _without_ones(parameter.shape):  # 1x1 convolutions and Linear layers
                weights[key] = weights[key].reshape(parameter.shape)
                continue
            raise ImportRefused(f"{called}: {key} has the shape {list(weights[key].shape)}, the published figures make it "
                                f"{list(parameter.shape)}; --configs names a folder with other figures")
    # OpenCLIP's last layer and projection are left out on purpose; anything else too many is another architecture.
    strange = sorted(weights.keys() - wanted.keys()) if isinstance(network, ModelMixin) else []
    if strange:
        raise ImportRefused(f"{called} has {len(strange)} weights that this family has not; the first is {strange[0]}")
    network.load_state_dict({key: weights[key].float() for key in wanted}, assign=True)
    return network


def _without_ones(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]


def _model_index(family: str, scheduler: dict) -> dict:
    index: dict[str, object] = {
        "_class_name": CLASSES[family], "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }
    if family == "sdxl":
        index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                  "tokenizer_2": ["transformers", "CLIPTokenizer"], "force_zeros_for_empty_prompt": True}
    return index


def _json(path: Path) -> dict:
    if not path.exists():
        raise ImportRefused(f"--configs: {path} is missing")
    return parse_json(path.read_bytes(), str(path))


def _dump(value: dict) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
