"""Writes the ONNX bundle, and reads its weights back.

Weights are stored as float16 with a Cast at load inside the graph: half the size, the same speed.
The torch weights are rounded to float16 before the export, so torch and onnxruntime compute with the
same numbers, and a diffusers folder rebuilt from the bundle is the same model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from onnx import TensorProto, numpy_helper
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from .clip_pair import embed_pictures, embed_text, load_clip_pair
from .config import NATIVE_SIZE, VAE_FACTOR, Workspace
from .drawing import BACKGROUNDS, COLOURS, PATTERNS, PRODUCTS, STYLES
from .graphs import (
    TRANSPOSED, TextEncoderGraph, UnetGraph, VaeDecoderGraph, VaeEncoderGraph, export_graph, round_to_half,
)
from .models import CLIP_MEAN, CLIP_PIXELS, CLIP_STD, new_clip_pair, new_text_encoder, new_unet, new_vae
from .tokenizer import CaptionTokenizer
from .unet import SCHEDULER, load_unet
from .vae import load_vae, to_input

# What the hires fix does between its two passes. Of strengths 0.12 to 0.6 side by side, those up to 0.3 look alike and
# above it outlines fray: the 512 px bucket was short. 0.2 costs 5 of 25 steps.
HIRES_FIX = {"abovePixels": 320 * 320, "strength": 0.2, "upscale": "bicubic", "latentScaleMax": 4}


class _ClipText(torch.nn.Module):
    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.wrapped = model

    def forward(self, input_ids):
        return torch.nn.functional.normalize(embed_text(self.wrapped, input_ids), dim=-1)


class _ClipVision(torch.nn.Module):
    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.wrapped = model

    def forward(self, pixel_values):
        return torch.nn.functional.normalize(embed_pictures(self.wrapped, pixel_values), dim=-1)


def _dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(model: torch.nn.Module, class_name: str) -> dict:
    config = json.loads(json.dumps(dict(model.config)) if isinstance(model.config, dict) else model.config.to_json_string())
    for local in ("_name_or_path", "_use_default_values", "torch_dtype", "dtype", "transformers_version"):
        config.pop(local, None)
    if class_name.startswith("CLIP"):
        config["architectures"] = [class_name]
    return config


def export_bundle(work: Workspace, out: Path, untrained: bool = False, trained: dict | None = None) -> None:
    """Writes the whole folder `out` from the latest weights in `work`; `untrained` needs only the tokenizer."""
    vocabulary = CaptionTokenizer(work.path("tokenizer")).vocabulary
    if untrained:
        torch.manual_seed(work.recipe.seed)
        unet, text_encoder = new_unet(work.recipe), new_text_encoder(vocabulary)
        vae, pair = new_vae(work.recipe), new_clip_pair(vocabulary)
        for module in (unet, text_encoder, vae, pair):
            # Equal tensors (zero biases) would be merged in the graph, and their names lost.
            for p in module.parameters():
                p.data.add_(torch.randn_like(p) * 2e-3)
    else:
        (unet, text_encoder), vae, (pair, _) = load_unet(work), load_vae(work), load_clip_pair(work)
    for module in (unet, text_encoder, vae, pair):
        round_to_half(module)
    if out.exists():
        for name in ("tokenizer", "text_encoder", "unet", "vae_decoder", "vae_encoder", "scheduler", "clip"):
            shutil.rmtree(out / name, ignore_errors=True)
    _write_graphs(out, unet, text_encoder, vae, pair)
    _write_configs(work, out, unet, text_encoder, vae, pair)
    write_manifest(work, out, vae, trained or {})
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"bundle {out}: {size / 1e6:.2f} MB", flush=True)


def _write_graphs(out: Path, unet, text_encoder, vae, pair) -> None:
    ids = torch.full((2, 77), text_encoder.config.eos_token_id)
    ids[:, 0] = text_encoder.config.bos_token_id
    ids[:, 1] = 300
    # An odd number of latents: the trace then keeps the resize-to-skip branch, which every multiple of 8 px needs.
    latents = torch.randn(2, 4, 33, 35)
    export_graph(
        UnetGraph(unet), {"sample": latents, "timestep": torch.tensor([999.0, 10.5]),
                      "encoder_hidden_states": torch.randn(2, 77, unet.config.cross_attention_dim)},
        ["out_sample"],
        {"sample": {0: "batch", 2: "height", 3: "width"}, "timestep": {0: "batch"},
         "encoder_hidden_states": {0: "batch", 1: "sequence"}, "out_sample": {0: "batch", 2: "height", 3: "width"}},
        out / "unet/model.onnx",
    )
    export_graph(TextEncoderGraph(text_encoder), {"input_ids": ids}, ["last_hidden_state", "pooler_output"],
            {"input_ids": {0: "batch", 1: "sequence"}, "last_hidden_state": {0: "batch", 1: "sequence"},
             "pooler_output": {0: "batch"}}, out / "text_encoder/model.onnx")
    export_graph(VaeDecoderGraph(vae), {"latent_sample": latents}, ["sample"],
            {"latent_sample": {0: "batch", 2: "height", 3: "width"}, "sample": {0: "batch", 2: "height", 3: "width"}},
            out / "vae_decoder/model.onnx")
    export_graph(VaeEncoderGraph(vae), {"sample": torch.randn(2, 3, 256, 264)}, ["latent_parameters"],
            {"sample": {0: "batch", 2: "height", 3: "width"},
             "latent_parameters": {0: "batch", 2: "height", 3: "width"}}, out / "vae_encoder/model.onnx")
    export_graph(_ClipText(pair), {"input_ids": ids}, ["text_embeds"],
            {"input_ids": {0: "batch", 1: "sequence"}, "text_embeds": {0: "batch"}}, out / "clip/text_model.onnx")
    export_graph(_ClipVision(pair), {"pixel_values": torch.randn(2, 3, CLIP_PIXELS, CLIP_PIXELS)}, ["image_embeds"],
            {"pixel_values": {0: "batch"}, "image_embeds": {0: "batch"}}, out / "clip/vision_model.onnx")


def _write_configs(work: Workspace, out: Path, unet, text_encoder, vae, pair) -> None:
    shutil.copytree(work.path("tokenizer"), out / "tokenizer")
    _dump(out / "model_index.json", {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False,
        "safety_checker": [None, None], "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    })
    _dump(out / "scheduler/scheduler_config.json", SCHEDULER)
    _dump(out / "unet/config.json", _config(unet, "UNet2DConditionModel"))
    _dump(out / "text_encoder/config.json", _config(text_encoder, "CLIPTextModel"))
    _dump(out / "vae_decoder/config.json", _config(vae, "AutoencoderKL"))
    _dump(out / "vae_encoder/config.json", _config(vae, "AutoencoderKL"))
    _dump(out / "clip/config.json", _config(pair, "CLIPModel"))
    _dump(out / "clip/preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": CLIP_PIXELS}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": CLIP_PIXELS, "width": CLIP_PIXELS}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD),
    })
    terms = {
        name: [{"id": t.id, "en": list(t.en), "zh": list(t.zh)} for t in group]
        for name, group in (("products", PRODUCTS), ("colours", COLOURS), ("backgrounds", BACKGROUNDS),
                            ("patterns", PATTERNS), ("styles", STYLES))
    }
    _dump(out / "clip/terms.json", {"logitScale": float(pair.logit_scale.exp().clamp(max=50.0)), **terms})


@torch.no_grad()
def preview_matrix(work: Workspace, vae: AutoencoderKL) -> tuple[list[list[float]], list[float]]:
    """Least-squares map from a latent's 4 channels to the mean RGB (0..1) of its 8x8 pixels: ([4][3], [3])."""
    path = work.path("held-out-256.npy")
    if not path.exists():
        return [[0.0] * 3] * 4, [0.0] * 3
    x = to_input(np.load(path, mmap_mode="r")[:100])
    z = torch.cat([vae.encode(p[None]).latent_dist.mean for p in x])
    target = torch.nn.functional.avg_pool2d((x + 1) / 2, VAE_FACTOR).permute(0, 2, 3, 1).reshape(-1, 3)
    features = torch.cat([z.permute(0, 2, 3, 1).reshape(-1, 4), torch.ones(len(target), 1)], 1)
    solution = torch.linalg.lstsq(features, target).solution
    rows = [[round(float(v), 5) for v in row] for row in solution]
    return rows[:4], rows[4]


def write_manifest(work: Workspace, out: Path, vae: AutoencoderKL, trained: dict) -> None:
    matrix, bias = preview_matrix(work, vae)
    parts = {
        f.relative_to(out).as_posix(): {"sha256": hashlib.sha256(f.read_bytes()).hexdigest(), "bytes": f.stat().st_size}
        for f in sorted(out.rglob("*")) if f.is_file() and f.name not in ("atelier.json", "README.md")
    }
    _dump(out / "atelier.json", {
        "schemaVersion": 1, "id": "atelier-tiny", "name": "Atelier Tiny", "family": "sd", "license": "Apache-2.0",
        "nativeSize": {"width": NATIVE_SIZE, "height": NATIVE_SIZE}, "defaultSize": {"width": 512, "height": 512},
        "sizeMultiple": 8, "sizeMin": 128, "sizeMax": 1024,
        "defaultSteps": 25, "defaultGuidanceScale": 2.5, "defaultSampler": "dpmpp_2m",
        "hiresFix": HIRES_FIX, "previewMatrix": matrix, "previewBias": bias, "parts": parts,
        "trained": {"recipe": work.recipe.name, "seed": work.recipe.seed, **trained},
    })


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Float32 parameters of a bundle's ONNX file by their torch names."""
    weights = {}
    for initializer in onnx.load(str(path)).graph.initializer:
        if initializer.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        values = torch.from_numpy(numpy_helper.to_array(initializer).astype(np.float32))
        name = initializer.name.removesuffix(".half")
        if name.endswith(TRANSPOSED):
            name, values = name.removesuffix(".transposed"), values.T.contiguous()
        weights[name] = values
    return weights


def _fill(module: torch.nn.Module, *sources: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Loads every parameter from the sources; one that none holds is an error."""
    merged = {k: v for source in sources for k, v in source.items()}
    state = module.state_dict()
    parameters = dict(module.named_parameters())
    missing = [name for name in parameters if name not in merged]
    if missing:
        raise KeyError(f"{len(missing)} parameters are not in the bundle, the first is {missing[0]}")
    module.load_state_dict({k: merged[k].reshape(state[k].shape) if k in parameters else v for k, v in state.items()})
    return module.eval()


def load_bundle(folder: Path) -> dict[str, torch.nn.Module]:
    """The bundle's networks as torch modules: unet, text_encoder, vae, clip."""
    config = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))  # noqa: E731
    clip = CLIPModel(CLIPConfig(**{**config("clip/config.json"), "attn_implementation": "eager"}))
    clip_weights = {**read_weights(folder / "clip/text_model.onnx"), **read_weights(folder / "clip/vision_model.onnx")}
    clip_weights["logit_scale"] = torch.tensor(config("clip/terms.json")["logitScale"]).log()
    return {
        "unet": _fill(UNet2DConditionModel.from_config(config("unet/config.json")), read_weights(folder / "unet/model.onnx")),
        "text_encoder": _fill(CLIPTextModel(CLIPTextConfig(**{**config("text_encoder/config.json"), "attn_implementation": "eager"})),
                              read_weights(folder / "text_encoder/model.onnx")),
        "vae": _fill(AutoencoderKL.from_config(config("vae_decoder/config.json")),
                     read_weights(folder / "vae_encoder/model.onnx"), read_weights(folder / "vae_decoder/model.onnx")),
        "clip": _fill(clip, clip_weights),
    }


@torch.no_grad()
def parity(folder: Path) -> dict[str, float]:
    """Largest absolute difference of each graph on onnxruntime against the modules rebuilt from it, at two sizes."""
    modules = load_bundle(folder)
    generator = torch.Generator().manual_seed(3)
    randn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    width = modules["unet"].config.cross_attention_dim
    vocabulary = modules["text_encoder"].config.vocab_size
    ids = torch.randint(0, vocabulary, (3, 77), generator=generator)
    ids[:, -5:] = vocabulary - 1
    cases = {
        "text_encoder": (TextEncoderGraph(modules["text_encoder"]), [(ids,), (ids[:1, :40],)]),
        "unet": (UnetGraph(modules["unet"]), [
            (randn(1, 4, 32, 32), torch.tensor([999.0]), randn(1, 77, width)),
            (randn(3, 4, 21, 40), torch.tensor([10.5, 500.0, 0.0]), randn(3, 154, width))]),
        "vae_decoder": (VaeDecoderGraph(modules["vae"]), [(randn(1, 4, 32, 32),), (randn(2, 4, 17, 40),)]),
        "vae_encoder": (VaeEncoderGraph(modules["vae"]), [(randn(1, 3, 256, 256),), (randn(2, 3, 136, 320),)]),
        "clip/text_model": (_ClipText(modules["clip"]), [(ids,)]),
        "clip/vision_model": (_ClipVision(modules["clip"]), [(randn(3, 3, CLIP_PIXELS, CLIP_PIXELS),)]),
    }
    worst = {}
    for name, (module, inputs) in cases.items():
        path = folder / f"{name}.onnx" if name.startswith("clip/") else folder / name / "model.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        worst[name] = 0.0
        for arguments in inputs:
            feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
            expected = module(*arguments)
            expected = expected if isinstance(expected, tuple) else (expected,)
            for ours, theirs in zip(session.run(None, feed), expected, strict=True):
                worst[name] = max(worst[name], float(np.abs(ours - theirs.numpy()).max()))
    return worst
