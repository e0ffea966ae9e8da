"""The published figures of Stable Diffusion 1.5, 2.1 and XL: a single-file checkpoint holds weights and none of these.

Source: the config.json files of stable-diffusion-v1-5, stable-diffusion-2-1 and stable-diffusion-xl-base-1.0.
"""

from __future__ import annotations

_SAMPLING = {"act_fn": "silu", "center_input_sample": False, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0,
             "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
             "norm_num_groups": 32}
_FOUR_LEVELS = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
_THREE_LEVELS = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
UNETS = {
    "sd1": {"_class_name": "UNet2DConditionModel", "sample_size": 64, **_SAMPLING, **_FOUR_LEVELS,
            "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd2": {"_class_name": "UNet2DConditionModel", "sample_size": 96, **_SAMPLING, **_FOUR_LEVELS,
            "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True,
            "upcast_attention": True},
    "sdxl": {"_class_name": "UNet2DConditionModel", "sample_size": 128, **_SAMPLING, **_THREE_LEVELS,
             "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True,
             "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
             "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
}


def _vae(sample_size: int, scaling_factor: float, **own: object) -> dict:
    return {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "out_channels": 3, "sample_size": sample_size, "scaling_factor": scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * 4, **own,
    }


VAES = {"sd1": _vae(512, 0.18215), "sd2": _vae(768, 0.18215), "sdxl": _vae(1024, 0.13025, force_upcast=True)}


def _text(hidden: int, heads: int, layers: int, act: str, projection: int, architecture: str = "CLIPTextModel") -> dict:
    return {
        "architectures": [architecture], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
        # The published ids of begin and end are wrong, and 2 is what tells transformers so.
        "eos_token_id": 2, "hidden_act": act, "hidden_size": hidden, "initializer_factor": 1.0, "initializer_range": 0.02,
        "intermediate_size": 4 * hidden, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
        "num_attention_heads": heads, "num_hidden_layers": layers, "pad_token_id": 1, "projection_dim": projection,
        "vocab_size": 49408,
    }


_CLIP_L = _text(768, 12, 12, "quick_gelu", 768)
TEXT_ENCODERS = {
    "sd1": {"text_encoder": _CLIP_L},
    # The checkpoint has 24 layers, and the model was trained on the last but one.
    "sd2": {"text_encoder": _text(1024, 16, 23, "gelu", 512)},
    "sdxl": {"text_encoder": _CLIP_L,
             "text_encoder_2": _text(1280, 20, 32, "gelu", 1280, "CLIPTextModelWithProjection")},
}

_BETAS = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
          "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}
SCHEDULERS = {
    "sd1": {"_class_name": "PNDMScheduler", **_BETAS, "prediction_type": "epsilon"},
    "sd2": {"_class_name": "DDIMScheduler", **_BETAS, "prediction_type": "v_prediction"},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", **_BETAS, "interpolation_type": "linear", "prediction_type": "epsilon",
             "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False},
}

# Pixels per side, smallest and largest; steps, guidance and sampler when a request names none.
DEFAULTS = {
    "sd1": {"sizeMin": 256, "sizeMax": 1024, "defaultSteps": 25, "defaultGuidanceScale": 7.5, "defaultSampler": "dpmpp_2m"},
    "sd2": {"sizeMin": 256, "sizeMax": 1536, "defaultSteps": 25, "defaultGuidanceScale": 7.5, "defaultSampler": "dpmpp_2m"},
    "sdxl": {"sizeMin": 512, "sizeMax": 2048, "defaultSteps": 30, "defaultGuidanceScale": 5, "defaultSampler": "euler"},
}


def configs_of(family: str) -> dict[str, dict]:
    return {**TEXT_ENCODERS[family], "unet": UNETS[family], "vae": VAES[family]}
