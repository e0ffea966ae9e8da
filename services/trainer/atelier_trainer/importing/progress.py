"""How far an import is, a line at a time, so that it reads the same on a terminal and in a log."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Counts work in bytes of weights: reading, tracing and checking each take time in proportion to them."""

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = max(total, 1.0)
        self._done = 0.0
        self._clock = clock
        self._started = clock()

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    def say(self, text: str) -> None:
        percent = min(int(100 * self._done / self._total), 100)
        print(f"[{percent:3d} %] {self.seconds:7.1f} s  {text}", flush=True)

    def did(self, work: float) -> None:
        self._done += work
