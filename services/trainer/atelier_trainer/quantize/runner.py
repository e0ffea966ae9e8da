"""Pictures from a bundle's graphs, as the worker makes them: plain onnxruntime sessions and diffusers' DPM-Solver++."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder")
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32}

Feeds = dict[str, np.ndarray]
# Called with a network's name and what it is fed, before each run.
Observer = Callable[[str, Feeds], None]


def open_session(graph: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph if isinstance(graph, bytes) else str(graph), options,
                                        providers=["CPUExecutionProvider"])


class Runner:
    """A bundle's networks, opened. `graphs` names folders that take the place of the bundle's own."""

    def __init__(self, bundle: Path, threads: int, graphs: Path | None = None) -> None:
        from transformers import CLIPTokenizer

        self._bundle = bundle
        self.manifest = _json(bundle / "atelier.json")
        self._sessions = {
            name: open_session((graphs if graphs and (graphs / name / "model.onnx").exists() else bundle) / name / "model.onnx", threads)
            for name in NETWORKS if (bundle / name / "model.onnx").exists()
        }
        second = ["tokenizer_2"] if "text_encoder_2" in self._sessions else []
        self._tokenizers = [CLIPTokenizer.from_pretrained(bundle / name) for name in ("tokenizer", *second)]
        vae = _json(bundle / "vae_decoder/config.json")
        self._scaling, self._shift = vae.get("scaling_factor", 0.18215), vae.get("shift_factor") or 0.0
        self._channels = _json(bundle / "unet/config.json")["in_channels"]
        # The graph of a second encoder's pooled text has no sequence; of its hidden states it is the last but one.
        self._layers = {name: _json(bundle / name / "config.json").get("num_hidden_layers") for name in self._sessions
                        if name.startswith("text")}
        self._observers: list[Observer] = []

    def observe(self, observer: Observer) -> None:
        self._observers.append(observer)

    def has(self, network: str) -> bool:
        return network in self._sessions

    def session(self, network: str) -> onnxruntime.InferenceSession:
        return self._sessions[network]

    @property
    def guidance(self) -> float:
        return float(self.manifest["defaultGuidanceScale"])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that the model was trained at."""
        native = self.manifest["nativeSize"]
        return native["width"], native["height"]

    def pictures(self, prompts: Sequence[str], *, steps: int, seed: int, size: tuple[int, int]) -> np.ndarray:
        """uint8 [n, height, width, 3]; the n-th picture starts from noise of seed + n, whatever the others are."""
        latents = self.latents(prompts, steps=steps, seed=seed, size=size)
        pixels = self.run("vae_decoder", {"latent_sample": latents / self._scaling + self._shift})[0]
        return (np.clip(pixels.astype(np.float32).transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)

    def encode_pictures(self, pictures: np.ndarray) -> None:
        """Only for its observers: nothing here starts from a picture."""
        self.run("vae_encoder", {"sample": pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1})

    def latents(self, prompts: Sequence[str], *, steps: int, seed: int, size: tuple[int, int]) -> np.ndarray:
        import torch
        from diffusers import DPMSolverMultistepScheduler

        schedule = DPMSolverMultistepScheduler.from_config(_json(self._bundle / "scheduler/scheduler_config.json"))
        schedule.set_timesteps(steps)
        width, height = size
        shape = (self._channels, height // 8, width // 8)
        latents = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(prompts))])
        texts = self._conditioning([*[""] * len(prompts), *prompts], size)
        for t in schedule.timesteps:
            noise = self.predict(torch.cat([latents, latents]).numpy(), float(t), texts)
            without, with_text = np.split(noise.astype(np.float32), 2)
            guided = torch.from_numpy(without + self.guidance * (with_text - without))
            latents = schedule.step(guided, t, latents).prev_sample
        return latents.numpy()

    def predict(self, sample: np.ndarray, timestep: float, texts: Feeds) -> np.ndarray:
        port = next(i for i in self._sessions["unet"].get_inputs() if i.name == "timestep")
        count = len(sample) if port.shape and isinstance(port.shape[0], str) else 1
        timesteps = np.full([count] if port.shape else [], timestep)
        return self.run("unet", {"sample": sample, "timestep": timesteps, **texts})[0]

    def _conditioning(self, prompts: Sequence[str], size: tuple[int, int]) -> Feeds:
        """What the U-Net is fed of the texts, one row each: SDXL's comes from two encoders, with the size beside it."""
        hidden, pooled = [], None
        for name, tokenizer in zip(self._layers, self._tokenizers, strict=True):
            ids = np.array(tokenizer(list(prompts), padding="max_length", max_length=77, truncation=True)["input_ids"])
            outputs = dict(zip([o.name for o in self._sessions[name].get_outputs()], self.run(name, {"input_ids": ids})))
            last_but_one = f"hidden_states.{self._layers[name] - 1}"
            hidden.append(outputs[last_but_one if last_but_one in outputs else "last_hidden_state"])
            pooled = outputs.get("text_embeds", pooled)
        feeds = {"encoder_hidden_states": np.concatenate(hidden, axis=-1)}
        if pooled is not None:
            width, height = size
            ids = np.tile(np.array([height, width, 0, 0, height, width], np.float32), (len(prompts), 1))
            feeds |= {"text_embeds": pooled, "time_ids": ids}
        return feeds

    def run(self, network: str, feeds: Feeds) -> list[np.ndarray]:
        session = self._sessions[network]
        typed = {port.name: np.ascontiguousarray(feeds[port.name], NUMPY_TYPES[port.type]) for port in session.get_inputs()}
        for observer in self._observers:
            observer(network, typed)
        return session.run(None, typed)


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
