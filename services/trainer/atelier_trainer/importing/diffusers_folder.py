"""Reads a model folder as diffusers writes it. Only safetensors are opened."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from .clip_vocabulary import read_tokenizer
from .refusal import ImportRefused
from .source import CLASSES, PICKLES, Source, check_configs, check_finite, parse_json, read_header

# The classes that make the same networks run; what a folder says on the left is served as what stands on the right.
PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
}
NETWORKS = {
    "text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection", "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}
# transformers registered this one once, and it is no weight.
IGNORED = re.compile(r"(^|\.)position_ids$")


def open_folder(folder: Path, half: bool, family: str | None = None) -> Source:
    """`half` prefers the files of a published float16 variant where the folder has both."""
    index = _read_index(folder)
    two = index["_class_name"] == "StableDiffusionXLPipeline"
    names = [name for name in NETWORKS if two or name != "text_encoder_2"]
    _check_classes(index, names)
    configs = {name: _read(folder, f"{name}/config.json") for name in names}
    parsed = {name: parse_json(content, f"{name}/config.json") for name, content in configs.items()}
    if family is None:
        # What tells 2.x from 1.x whatever its size: attention projects with Linear layers, not 1x1 convolutions.
        family = "sdxl" if two else "sd2" if parsed["unet"].get("use_linear_projection") else "sd1"
    if CLASSES[family] != index["_class_name"]:
        raise ImportRefused(f"model_index.json: _class_name is {index['_class_name']}, and {family} is a {CLASSES[family]}")
    check_configs(family, parsed)
    weights = {name: _weights(folder, name, half) for name in names}
    tokenizers = {name: read_tokenizer(folder / name, f"{name}/") for name in ("tokenizer", "tokenizer_2")[: 1 + two]}
    return Source(
        family=family, model_index=index, scheduler=_read(folder, "scheduler/scheduler_config.json"), configs=configs,
        tokenizers=tokenizers, sizes={name: sum(f.stat().st_size for f in files) for name, (files, _) in weights.items()},
        load=lambda name: _load(folder, name, weights[name][1]), license=_license(folder),
    )


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise ImportRefused(f"{name} is missing from {folder}") from None
    except OSError as error:
        raise ImportRefused(f"{name} cannot be read: {error.strerror}") from error


def _read_index(folder: Path) -> dict:
    index = parse_json(_read(folder, "model_index.json"), "model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        served = ", ".join(sorted(set(PIPELINES.values())))
        raise ImportRefused(f"model_index.json: _class_name is {name!r}, an architecture that cannot be imported (those that can: {served})")
    return {**index, "_class_name": PIPELINES[name]}


def _check_classes(index: dict, names: list[str]) -> None:
    for name in names:
        found = index.get(name)
        if not isinstance(found, list) or found[-1] != NETWORKS[name]:
            what = "absent (the refiner and pipelines that borrow a part are not served)" if found in (None, [None, None]) else repr(found)
            raise ImportRefused(f"model_index.json: {name} is {what}; a {NETWORKS[name]} is needed")


def _weights(folder: Path, name: str, half: bool) -> tuple[list[Path], str | None]:
    """The network's safetensors files and the variant that they are, checked to be whole."""
    stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
    for variant in ("fp16", None) if half else (None, "fp16"):
        suffix = "" if variant is None else f".{variant}"
        whole = folder / name / f"{stem}{suffix}.safetensors"
        index = folder / name / f"{stem}.safetensors.index{suffix}.json"
        if index.exists():
            parts = set(parse_json(index.read_bytes(), f"{name}/{index.name}").get("weight_map", {}).values())
            files = [folder / name / part for part in sorted(parts)]
        elif whole.exists():
            files = [whole]
        else:
            continue
        for file in files:
            read_header(file, f"{name}/{file.name}")
        return files, variant
    pickles = sorted(f.name for f in (folder / name).glob("*") if f.suffix.lower() in PICKLES)
    if pickles:
        raise ImportRefused(f"{name}/{pickles[0]} is a pickle by its name, and reading a pickle can run any code: convert it to safetensors "
                            f"(there is no {name}/{stem}.safetensors)")
    raise ImportRefused(f"{name}/{stem}.safetensors is missing from {folder}")


def _load(folder: Path, name: str, variant: str | None) -> torch.nn.Module:
    import diffusers
    import transformers

    by_transformers = name.startswith("text_encoder")
    cls = getattr(transformers if by_transformers else diffusers, NETWORKS[name])
    # Eager attention is what a trace can follow.
    own = {"dtype": torch.float32, "attn_implementation": "eager"} if by_transformers else {"torch_dtype": torch.float32}
    try:
        network, info = cls.from_pretrained(folder / name, variant=variant, use_safetensors=True, local_files_only=True,
                                            output_loading_info=True, **own)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ImportRefused(f"{name}: its weights do not fit its config.json: {_first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        keys = sorted(str(key) for key in info[problem] if not IGNORED.search(str(key)))
        if keys:
            raise ImportRefused(f"{name}: {len(keys)} weights are {problem.removesuffix('_keys')} for its config.json; the first is {keys[0]}")
    return check_finite(network, name)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _license(folder: Path) -> str | None:
    """What the model card's front matter says."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = card.split("---")[1] if card.startswith("---") and card.count("---") >= 2 else ""
    match = re.search(r"^license:\s*([\w.+-]{1,200})\s*$", front, re.MULTILINE)
    return match.group(1) if match else None
