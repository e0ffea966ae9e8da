"""
Writes what torch and diffusers do, for the TypeScript samplers to be held against:

  noise      torch.randn of a seeded CPU generator
  schedules  the noise levels of a training schedule (alphas_cumprod)
  samplers   every latent on the way of every sampler, in many configurations
  upscales   torch.nn.functional.interpolate, as the two-stage generation upsamples latents

Run: OMP_NUM_THREADS=1 python test/golden/write.py
in an environment with test/golden/requirements.txt. Nothing is drawn from chance; a second run writes the same bytes.
"""

import inspect

import diffusers
import numpy as np
import torch
from golden_file import GoldenFile

torch.set_num_threads(1)
diffusers.utils.logging.set_verbosity_error()

# As published with Stable Diffusion 1.5. It has no timestep_spacing: every class falls back to its own.
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}

SCHEDULERS = {
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
}
TAKES_KARRAS = ("dpmpp_2m", "dpmpp_2m_sde", "euler", "unipc")
SHAPE = (4, 4, 4)
SEED = 20_250_901


def fake_model(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """
    Stands in for a U-Net: some of each value, some of its neighbour in memory, more of the first at high noise.
    Multiplications and additions only, so that it is the same function in another language.
    """
    own = 0.5 + 0.3 * (float(timestep) / 1000)
    neighbour = torch.roll(latent.reshape(-1), 1).reshape(latent.shape)
    return own * latent + 0.1 * neighbour


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def sample(sampler: str, config: dict, steps: int, karras: bool, strength: float) -> tuple[dict, dict]:
    """Runs diffusers' loop as its pipelines do; returns the arrays and facts of one golden case."""
    scheduler_class, overrides = SCHEDULERS[sampler]
    if karras:
        overrides = {**overrides, "use_karras_sigmas": True}
    scheduler = scheduler_class.from_config(config, **overrides)
    scheduler.set_timesteps(steps)

    generator = torch.Generator("cpu").manual_seed(SEED)
    noise = torch.randn((1, *SHAPE), generator=generator)
    count = len(scheduler.timesteps)
    start = max(count - min(int(count * strength), count), 0)
    # Left to itself diffusers looks the first timestep up by value, and where Karras spacing rounds two of them to one
    # number it takes the second and then runs out of noise levels.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    if strength < 1:
        clean = randn(SEED + 1, 1, *SHAPE)
        latent = scheduler.add_noise(clean, noise, scheduler.timesteps[start : start + 1])
    else:
        latent = noise * scheduler.init_noise_sigma

    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    latents = [latent]
    for timestep in scheduler.timesteps[start:]:
        output = fake_model(scheduler.scale_model_input(latent, timestep), timestep)
        latent = scheduler.step(output, timestep, latent, return_dict=False, **extra)[0]
        latents.append(latent)
    arrays = {"timesteps": scheduler.timesteps.float(), "latents": torch.stack(latents)}
    return arrays, {"initNoiseSigma": float(scheduler.init_noise_sigma), "startIndex": start}


def sampler_cases(sampler: str):
    """Yields (group, config, options): everything about a schedule that changes what this sampler does."""
    karras = {"karras": True}
    for prediction in ("epsilon", "v_prediction"):
        config = {**SD15, "prediction_type": prediction}
        for steps in (5, 20, 25, 50):
            yield "steps", config, {"steps": steps}
            if sampler in TAKES_KARRAS:
                yield "Karras", config, {"steps": steps, **karras}
        for strength in (0.35, 0.6, 0.95):
            yield "image to image", config, {"strength": strength}
        for spacing in ("leading", "trailing", "linspace"):
            spaced = {**config, "timestep_spacing": spacing}
            yield "spacing", spaced, {}
            yield "spacing, 7 steps", spaced, {"steps": 7}
            if sampler in TAKES_KARRAS:
                yield "spacing, Karras", spaced, karras
        for steps in (1, 48):
            yield "odd step counts", config, {"steps": steps}
        yield "linear betas", {**config, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}, {}
        yield "last alpha is one", {**config, "set_alpha_to_one": True, "steps_offset": 0}, {}
    yield "nothing configured", {"_class_name": "DDPMScheduler"}, {}
    betas = [round(float(root) ** 2, 7) for root in np.linspace(0.03, 0.28, 60)]
    yield "trained betas", {**SD15, "trained_betas": betas, "num_train_timesteps": 60}, {"steps": 12}
    if sampler != "euler_a":  # whose class in diffusers does not know it
        yield "sample prediction", {**SD15, "prediction_type": "sample"}, {}

    velocity = {**SD15, "prediction_type": "v_prediction"}
    for spacing in ("trailing", "linspace"):
        zero_snr = {**velocity, "rescale_betas_zero_snr": True, "timestep_spacing": spacing}
        yield "zero terminal SNR", zero_snr, {}
        if sampler in TAKES_KARRAS:
            yield "zero terminal SNR, Karras", zero_snr, karras
    # The cosine schedule ends on a noise level of about 2,400, where a prediction of epsilon says next to nothing, and
    # from which Euler's unspaced first step falls so far that float32 keeps four digits: hence "leading".
    cosine = {**velocity, "beta_schedule": "squaredcos_cap_v2"}
    yield "cosine betas", {**cosine, "timestep_spacing": "leading"}, {}

    to_sigma_min = {**SD15, "final_sigmas_type": "sigma_min"}
    if sampler in TAKES_KARRAS:
        bounds = {"sigma_min": 0.1, "sigma_max": 10.0}
        yield "cosine betas, Karras", cosine, karras
        yield "exponential sigmas", {**SD15, "use_exponential_sigmas": True}, {}
        yield "bounded sigmas", {**SD15, **bounds}, karras
        yield "bounded sigmas", {**to_sigma_min, **bounds}, karras
        yield "final sigma is the least", to_sigma_min, {}
        yield "final sigma is the least", to_sigma_min, karras
    if sampler in ("dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        yield "order at the end", {**to_sigma_min, "lower_order_final": False}, {"steps": 10}
        yield "order at the end", {**to_sigma_min, "lower_order_final": True}, {"steps": 10}
        yield "order at the end", {**to_sigma_min, "euler_at_final": True}, {}
        for spacing in ("trailing", "linspace", "leading"):
            yield "clipped lambda", {**cosine, "lambda_min_clipped": -5.1, "timestep_spacing": spacing}, {}
    if sampler in ("ddim", "lcm"):
        yield "clipped x0", {**SD15, "clip_sample": True, "clip_sample_range": 1.5}, {}
    if sampler == "lcm":
        yield "few steps", {**SD15, "original_inference_steps": 100, "timestep_scaling": 5.0}, {"steps": 4}


def write_samplers() -> None:
    golden = GoldenFile("samplers")
    for sampler in SCHEDULERS:
        for group, config, options in sampler_cases(sampler):
            options = {"steps": 20, "karras": False, "strength": 1.0, **options}
            arrays, facts = sample(sampler, config, **options)
            golden.add(arrays, group=group, sampler=sampler, **options, config=config, **facts)
    golden.write("test/golden/write.py", shape=list(SHAPE), seed=SEED, cleanSeed=SEED + 1)


def write_noise() -> None:
    golden = GoldenFile("noise")
    seeds = (0, 1, 42, 1234567, 2**32 - 1, 2**32, 2**53 + 2, 2**64 - 1)
    for seed in seeds:
        for size in (1, 2, 7, 15, 16, 17, 31, 32, 33, 100):
            golden.add({"normals": randn(seed, size)}, seed=str(seed), sizes=[size])
        # A latent of 256x256 pixels and one of 512x512: the beginning and the end tell whether all between is in place.
        for size in (4096, 16_384):
            normals = randn(seed, size)
            golden.add({"head": normals[:64], "tail": normals[-64:]}, seed=str(seed), sizes=[size])
    # Draws that follow one another, short ones (which keep a spare number for the next) between long ones.
    for sizes in ([64, 64, 64], [3, 4], [1, 1, 1, 1], [3, 64, 2], [17, 5, 17], [64, 17, 1, 33], [4096, 64]):
        generator = torch.Generator("cpu").manual_seed(42)
        draws = [torch.randn(size, generator=generator) for size in sizes]
        golden.add({"last": draws[-1]}, seed="42", sizes=sizes)
    golden.write("test/golden/write.py")


def write_schedules() -> None:
    golden = GoldenFile("schedules")
    for betas in (
        {},
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"rescale_betas_zero_snr": True},
        {"num_train_timesteps": 137},
    ):
        config = {**SD15, **betas}
        golden.add({"alphasCumprod": diffusers.DDIMScheduler.from_config(config).alphas_cumprod}, config=config)
    golden.write("test/golden/write.py")


def write_upscales() -> None:
    golden = GoldenFile("upscales")
    for mode in ("nearest", "bilinear", "bicubic"):
        sides = ((4, 4), (8, 8)), ((4, 6), (6, 9)), ((5, 4), (13, 7)), ((4, 4), (4, 4)), ((6, 6), (4, 5)), ((2, 14), (2, 46))
        for source, target in sides:
            latent = randn(SEED, 1, 4, *source)
            corners = {} if mode == "nearest" else {"align_corners": False, "antialias": False}
            upscaled = torch.nn.functional.interpolate(latent, size=target, mode=mode, **corners)
            golden.add({"upscaled": upscaled}, mode=mode, source=source, target=target)
    golden.write("test/golden/write.py", channels=4, seed=SEED)


if __name__ == "__main__":
    write_noise()
    write_schedules()
    write_samplers()
    write_upscales()
