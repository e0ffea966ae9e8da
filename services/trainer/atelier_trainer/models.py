"""The networks, as plain diffusers/transformers classes, so that every serving stack can read them."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

from .config import LATENT_CHANNELS, NATIVE_SIZE, TEXT_WIDTH, TOKENS_MAX, VAE_FACTOR, Recipe

CLIP_PIXELS = 128
# transformers' CLIP image statistics; kept, so that any CLIP preprocessor feeds this pair as well.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def text_config(vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, projection_dim=TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=TOKENS_MAX, hidden_act="quick_gelu",
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
        attn_implementation="eager",
    )


def new_text_encoder(vocabulary: int) -> CLIPTextModel:
    return CLIPTextModel(text_config(vocabulary))


def new_clip_pair(vocabulary: int) -> CLIPModel:
    vision = CLIPVisionConfig(
        hidden_size=144, intermediate_size=432, projection_dim=TEXT_WIDTH, num_hidden_layers=4,
        num_attention_heads=4, image_size=CLIP_PIXELS, patch_size=16, hidden_act="quick_gelu",
        attn_implementation="eager",
    )
    text = text_config(vocabulary)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_WIDTH,
                        attn_implementation="eager")
    return CLIPModel(config)


def new_vae(recipe: Recipe) -> AutoencoderKL:
    levels = len(recipe.vae_channels)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=NATIVE_SIZE,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.vae_channels, layers_per_block=1, norm_num_groups=recipe.vae_groups,
        mid_block_add_attention=False, scaling_factor=1.0,
    )
    with torch.no_grad():  # nearly noiseless latents from the first step on: KL then only keeps them bounded
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6.0
    return vae.to(memory_format=torch.channels_last)


def new_unet(recipe: Recipe) -> UNet2DConditionModel:
    deeper = len(recipe.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=NATIVE_SIZE // VAE_FACTOR, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=recipe.unet_channels, layers_per_block=1, norm_num_groups=recipe.unet_groups,
        # No attention at full resolution: it would be most of the cost at 512x512 and buys little here.
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=recipe.unet_heads,  # diffusers reads this as the number of heads
    ).to(memory_format=torch.channels_last)
