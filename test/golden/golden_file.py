"""Writes a golden file: NAME.json says what the cases are, NAME.f32 holds their numbers (little-endian float32)."""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

DATA = Path(__file__).parent / "data"


def versions(*others) -> dict[str, str]:
    """Name and version of every library whose numbers are being written down."""
    return {module.__name__: module.__version__.split("+")[0] for module in (torch, diffusers, np, *others)}


class GoldenFile:
    """Collects cases and their arrays; an array becomes `{"offset", "length"}`, counted in float32 values."""

    def __init__(self, name: str):
        self.name = name
        self.cases: list[dict] = []
        self._arrays: list[np.ndarray] = []
        self._length = 0

    def add(self, arrays: dict[str, torch.Tensor | np.ndarray], **facts) -> None:
        case = dict(facts)
        for key, array in arrays.items():
            flat = np.ascontiguousarray(array, dtype="<f4").reshape(-1)
            assert np.isfinite(flat).all(), f"{self.name}: {facts}: {key} holds a number that is not finite"
            case[key] = {"offset": self._length, "length": flat.size}
            self._arrays.append(flat)
            self._length += flat.size
        self.cases.append(case)

    def write(self, written_by: str, **facts) -> None:
        DATA.mkdir(exist_ok=True)
        values = np.concatenate(self._arrays)
        (DATA / f"{self.name}.f32").write_bytes(values.tobytes())
        head = {"writtenBy": written_by, "versions": versions(), **facts}
        lines = ",\n".join("    " + json.dumps(case, ensure_ascii=False) for case in self.cases)
        head_lines = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
        (DATA / f"{self.name}.json").write_text(f'{head_lines},\n  "cases": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
        print(f"{self.name}: {len(self.cases)} cases, {values.nbytes / 1024:.0f} KiB")
