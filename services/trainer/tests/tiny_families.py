"""Stable Diffusion 1.5, 2.1 and XL with everything that makes them what they are but their size.

The configurations are the published ones with fewer channels and layers. The weights are random ones that saw a few
hundred steps of noise prediction on smooth latents, so that sampling stays finite and ends on a picture with structure.
"""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from atelier_trainer.graphs import round_to_half
from atelier_trainer.tokenizer import END, START, byte_alphabet

FAMILIES = ("sd1", "sd2", "sdxl")
NATIVE_SIZE = 64  # pixels
TOKENS = 77
# Enough words that tokens of several letters occur; everything else falls apart into bytes.
WORDS = "a an the on in of and red blue green white black mug vase shirt lamp wooden table background photo".split()

SCHEDULERS = {
    "sd1": {
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "trained_betas": None, "clip_sample": False,
    },
    "sd2": {
        "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "v_prediction",
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
    },
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear",
        "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
        "use_karras_sigmas": False,
    },
}


def write_tokenizer(folder: Path, pad_token: str) -> int:
    """CLIP's tokenizer with a small vocabulary, in the files that were published with it; returns how many ids it has."""
    alphabet = byte_alphabet()
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            if (pair := (pieces[0], pieces[1])) not in merges:
                merges.append(pair)
            pieces[:2] = ["".join(pieces[:2])]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *dict.fromkeys("".join(m) for m in merges)]
    tokens += [t for t in (START, END) if t not in tokens]
    folder.mkdir(parents=True)
    dump(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    dump(folder / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True, "add_prefix_space": False,
        "errors": "replace", "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token,
    })
    dump(folder / "special_tokens_map.json", {
        "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token,
    })
    return len(tokens)


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def text_config(vocabulary: int, **figures) -> CLIPTextConfig:
    # The published ids of begin and end are wrong, and 2 is what tells transformers so.
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    heads = {"num_attention_heads": 2, "max_position_embeddings": TOKENS, "attn_implementation": "eager"}
    return CLIPTextConfig(vocab_size=vocabulary, **ids, **heads, **figures)


def new_unet(family: str) -> UNet2DConditionModel:
    shared = {"sample_size": NATIVE_SIZE // 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8}
    if family == "sdxl":
        return UNet2DConditionModel(
            **shared, block_out_channels=(8, 16, 16), down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), transformer_layers_per_block=[1, 1, 2],
            attention_head_dim=[1, 2, 2], cross_attention_dim=32 + 24, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=24 + 6 * 8,
        )
    blocks = {
        "block_out_channels": (8, 16, 16, 16), "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), "cross_attention_dim": 32,
    }
    if family == "sd1":
        return UNet2DConditionModel(**shared, **blocks, attention_head_dim=2)
    return UNet2DConditionModel(**shared, **blocks, attention_head_dim=[1, 2, 2, 2], use_linear_projection=True, upcast_attention=True)


def new_vae(family: str) -> AutoencoderKL:
    own = {"scaling_factor": 0.13025, "force_upcast": True} if family == "sdxl" else {"scaling_factor": 0.18215}
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4, sample_size=NATIVE_SIZE, **own,
    )


def new_pipeline(family: str, folder: Path, seed: int = 0) -> diffusers.DiffusionPipeline:
    """A pipeline of `family` with random weights that float16 holds; `folder` gets its tokenizers."""
    torch.manual_seed(seed)
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token="!" if family == "sd2" else END)
    activation = "gelu" if family == "sd2" else "quick_gelu"
    text = CLIPTextModel(text_config(vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     hidden_act=activation, projection_dim=32))
    parts = {
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"), "text_encoder": text, "unet": new_unet(family),
        "vae": new_vae(family),
        "scheduler": getattr(diffusers, SCHEDULERS[family]["_class_name"]).from_config(SCHEDULERS[family]),
    }
    if family == "sdxl":
        write_tokenizer(folder / "tokenizer_2", pad_token="!")
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
        parts["text_encoder_2"] = CLIPTextModelWithProjection(text_config(
            vocabulary, hidden_size=24, intermediate_size=48, num_hidden_layers=3, hidden_act="gelu", projection_dim=24))
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipeline = diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None,
                                                     requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    for module in networks(pipeline).values():
        for p in module.parameters():
            # Equal tensors (zero biases) would be one in the graph, and their names lost.
            p.data.add_(torch.randn_like(p) * 2e-3)
        round_to_half(module)
    return pipeline


def networks(pipeline: diffusers.DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def settle(pipeline: diffusers.DiffusionPipeline, steps: int = 400, seed: int = 0) -> None:
    """Teaches the U-Net to take noise off smooth latents, and gives the decoder's pictures their full contrast."""
    generator = torch.Generator().manual_seed(seed)
    unet, scheduler = pipeline.unet.train().requires_grad_(True), diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    with torch.no_grad():
        for encoder in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if encoder is not None:  # as small as they are initialised, two prompts would hardly differ
                for name, p in encoder.named_parameters():
                    p.mul_(4) if p.dim() == 2 else None
        prompts = [" ".join(WORDS[int(i)] for i in torch.randint(3, len(WORDS), (4,), generator=generator)) for _ in range(64)]
        text, extras = _encode(pipeline, prompts)
    hues = text.mean(1) @ torch.randn(text.shape[2], 4, generator=generator)
    hues = (hues - hues.mean(0)) / hues.std(0)
    for _ in range(steps):
        pick = torch.randint(0, len(prompts), (8,), generator=generator)
        latents = _smooth(8, generator) * 0.7 + 0.7 * hues[pick][:, :, None, None]
        noise, t = torch.randn(latents.shape, generator=generator), torch.randint(0, 1000, (8,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, t)
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, t) if velocity else noise
        added = None if extras is None else {"text_embeds": extras[pick], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 8)}
        loss = (unet(noisy, t, text[pick], added_cond_kwargs=added, return_dict=False)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
    unet.requires_grad_(False)
    print(f"{type(pipeline).__name__}: last loss {loss.item():.3f}")
    with torch.no_grad():
        latents = _smooth(16, generator) * 0.7 + 0.7 * hues[:16][:, :, None, None]
        picture = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        spread = picture.std((0, 2, 3))
        last = pipeline.vae.decoder.conv_out
        last.bias.copy_((last.bias - picture.mean((0, 2, 3))) * 0.45 / spread)
        last.weight.mul_((0.45 / spread)[:, None, None, None])
    for module in networks(pipeline).values():
        round_to_half(module)


def _encode(pipeline: diffusers.DiffusionPipeline, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    if hasattr(pipeline, "text_encoder_2"):
        text, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, device="cpu")
        return text, pooled
    return pipeline.encode_prompt(prompts, "cpu", 1, False)[0], None


def _smooth(count: int, generator: torch.Generator) -> torch.Tensor:
    coarse = torch.randn(count, 4, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bicubic", align_corners=True)


def save_folder(pipeline: diffusers.DiffusionPipeline, folder: Path) -> None:
    """The diffusers folder as it is published: safetensors, the scheduler's own figures, the tokenizers' own files."""
    for name, module in networks(pipeline).items():
        module.save_pretrained(folder / name)
    family = "sdxl" if hasattr(pipeline, "text_encoder_2") else "sd1" if pipeline.scheduler.config._class_name == "PNDMScheduler" else "sd2"
    dump(folder / "scheduler/scheduler_config.json", SCHEDULERS[family])
    index = {
        "_class_name": type(pipeline).__name__, "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", SCHEDULERS[family]["_class_name"]], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family == "sdxl":
        index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                  "tokenizer_2": ["transformers", "CLIPTokenizer"], "force_zeros_for_empty_prompt": True}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    dump(folder / "model_index.json", index)
