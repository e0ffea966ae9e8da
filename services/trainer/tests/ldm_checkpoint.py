"""A diffusers pipeline as the single-file checkpoint that Stability AI's own code would have saved.

Written from the original code's module names (CompVis/latent-diffusion, openaimodel.py and model.py; open_clip), so that
the import's reading of such files is not tested against itself.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

UNET_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
               "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET_TOP = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
            "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_single_file(pipeline, path: Path) -> None:
    weights = {f"model.diffusion_model.{k}": v for k, v in _unet(pipeline.unet).items()}
    weights |= {f"first_stage_model.{k}": v for k, v in _vae(pipeline.vae).items()}
    if hasattr(pipeline, "text_encoder_2"):
        weights |= _clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        weights |= _open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    elif pipeline.unet.config.use_linear_projection:
        weights |= _open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        weights |= _clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    weights["alphas_cumprod"] = torch.linspace(0.9991, 0.0047, 1000)
    save_file({key: value.contiguous().clone() for key, value in weights.items()}, str(path))


def _unet(unet) -> dict[str, torch.Tensor]:
    per_block = unet.config.layers_per_block + 1
    renamed = {}
    for key, value in unet.state_dict().items():
        module, _, kind = key.rpartition(".")
        if module in UNET_TOP:
            renamed[f"{UNET_TOP[module]}.{kind}"] = value
            continue
        side, block, layer, index, rest = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", key).groups()
        block, index = int(block or 0), int(index)
        if layer == "resnets":
            part, _, kind = rest.rpartition(".")
            rest = f"{UNET_RESNET[part]}.{kind}"
        if side == "mid":
            renamed[f"middle_block.{2 * index if layer == 'resnets' else 1}.{rest}"] = value
        elif layer == "downsamplers":
            renamed[f"input_blocks.{(block + 1) * per_block}.0.{rest.replace('conv', 'op')}"] = value
        elif side == "down":
            renamed[f"input_blocks.{1 + block * per_block + index}.{int(layer == 'attentions')}.{rest}"] = value
        elif layer == "upsamplers":
            attends = hasattr(unet.up_blocks[block], "attentions")
            renamed[f"output_blocks.{(block + 1) * per_block - 1}.{1 + attends}.{rest}"] = value
        else:
            renamed[f"output_blocks.{block * per_block + index}.{int(layer == 'attentions')}.{rest}"] = value
    return renamed


def _vae(vae) -> dict[str, torch.Tensor]:
    levels = len(vae.config.block_out_channels)
    renamed = {}
    for key, value in vae.state_dict().items():
        new = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            head, part = new.split("mid_block.attentions.0.")
            name, _, kind = part.rpartition(".")
            new = f"{head}mid.attn_1.{VAE_ATTENTION[name]}.{kind}"
            value = value[:, :, None, None] if kind == "weight" and value.dim() == 2 else value
        new = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", new)
        renamed[new] = value
    return renamed


def _clip(encoder, prefix: str) -> dict[str, torch.Tensor]:
    weights = {f"{prefix}text_model.{key}": value for key, value in encoder.state_dict().items()}
    return {**weights, f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def _open_clip(encoder, prefix: str) -> dict[str, torch.Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    renamed = {"token_embedding.weight": state["embeddings.token_embedding.weight"],
               "positional_embedding": state["embeddings.position_embedding.weight"],
               "ln_final.weight": state["final_layer_norm.weight"], "ln_final.bias": state["final_layer_norm.bias"],
               "text_projection": state.get("text_projection.weight", torch.eye(encoder.config.hidden_size)).T,
               "logit_scale": torch.tensor(4.6)}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    layers = encoder.config.num_hidden_layers
    for layer in range(layers):
        for old, new in names.items():
            for kind in ("weight", "bias"):
                renamed[f"transformer.resblocks.{layer}.{new}.{kind}"] = state[f"encoder.layers.{layer}.{old}.{kind}"]
        for kind in ("weight", "bias"):
            joined = [state[f"encoder.layers.{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            renamed[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(joined)
    if "text_projection.weight" not in state:
        # Stable Diffusion 2 reads the last layer but one, and its checkpoints hold the last one all the same.
        last = {key: value for key, value in renamed.items() if f"resblocks.{layers - 1}." in key}
        renamed |= {key.replace(f"resblocks.{layers - 1}.", f"resblocks.{layers}."): value + 1 for key, value in last.items()}
    return {prefix + key: value for key, value in renamed.items()}
