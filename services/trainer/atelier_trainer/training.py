"""What every phase shares: resumable checkpoints, EMA, learning-rate schedule, progress lines."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Ema:
    """Exponential moving average of parameters, with a warm-up so that early weights are forgotten."""

    def __init__(self, module: torch.nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.updates = 0
        self.values = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.detach() for p in module.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        for p, v in zip(module.parameters(), self.values, strict=True):
            p.copy_(v)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for mine, saved in zip(self.values, state["values"], strict=True):
            mine.copy_(saved)


def cosine_lr(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    warmup = min(warmup, max(1, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Checkpoint:
    """Everything a phase needs to go on after being killed: modules, EMA, optimiser, step, random state."""

    def __init__(self, path: Path, minutes: float, **parts: Any) -> None:
        self.path, self.minutes, self.parts = path, minutes, parts
        self._saved_at = time.monotonic()

    def load(self) -> int:
        """Returns the step to continue from; 0 without a checkpoint."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=False)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["torch_rng"])
        np.random.set_state(state["numpy_rng"])
        return state["step"]

    def maybe_save(self, step: int) -> bool:
        if time.monotonic() - self._saved_at < self.minutes * 60:
            return False
        self.save(step)
        return True

    def save(self, step: int) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"step": step, "torch_rng": torch.get_rng_state(), "numpy_rng": np.random.get_state()}
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)
        self._saved_at = time.monotonic()


class Progress:
    """One line per `every` steps: step, mean losses since the last line, samples per second."""

    def __init__(self, phase: str, every: int) -> None:
        self.phase, self.every = phase, every
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = self._samples = 0
        self._since = time.monotonic()

    def add(self, step: int, steps: int, samples: int, **losses: float) -> None:
        self._count += 1
        self._samples += samples
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if (step + 1) % self.every == 0:
            means = " ".join(f"{name} {total / self._count:.4f}" for name, total in self._sums.items())
            rate = self._samples / (time.monotonic() - self._since)
            print(f"{time.strftime('%H:%M:%S')} {self.phase} {step + 1}/{steps} {means} {rate:.1f} samples/s", flush=True)
            self._reset()


def psnr(a: torch.Tensor, b: torch.Tensor, peak: float = 2.0) -> float:
    """Mean of per-picture PSNR in dB of float [n, c, h, w] whose range is `peak` wide."""
    mse = (a - b).square().flatten(1).mean(1)
    return float((10 * torch.log10(peak * peak / mse)).mean())
