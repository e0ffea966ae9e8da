"""Which layers stay in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One layer: what eight bits cost it, and what they save."""

    network: str
    name: str
    # Squared error of the network's output over the output's own square, with this layer alone in eight bits.
    error: float
    bytes_saved: int


@dataclass(frozen=True)
class Choice:
    keep: tuple[Measured, ...]
    bytes_total: int
    # In dB; None where nobody asked for a quality.
    quality: float | None
    # The quality asked for was reached.
    met: bool


class TooLarge(ValueError):
    """Not even with every layer in eight bits does the bundle get as small as asked."""


def worst_first(layers: Sequence[Measured]) -> list[Measured]:
    """By error per byte saved: kept in this order, each byte given back buys the most quality."""
    return sorted(layers, key=lambda layer: (-layer.error / max(layer.bytes_saved, 1), layer.network, layer.name))


def choose(layers: Sequence[Measured], *, bytes_all_int8: int, bytes_max: int, keep_max: int | None = None,
           quality_min: float | None = None, quality_of: Callable[[Sequence[Measured]], float] | None = None) -> Choice:
    """Keeps the worst layers in float: as few as reach `quality_min`, at most `keep_max`, and only while the size holds.

    Tries 0, 1, 2, 4, 8, ... layers and then halves the gap; `quality_of` makes pictures, so each try is dear. Lists of one
    order are prefixes of one another: asking for more quality never drops a layer from the list.

    Raises TooLarge where the size cannot be met at all.
    """
    if bytes_all_int8 > bytes_max:
        raise TooLarge(f"with every layer in eight bits it has {bytes_all_int8} bytes, and {bytes_max} are allowed")
    order = worst_first(layers)
    sizes = [bytes_all_int8]
    for layer in order:
        sizes.append(sizes[-1] + layer.bytes_saved)
    fitting = max(k for k, size in enumerate(sizes) if size <= bytes_max)
    most = fitting if keep_max is None else min(fitting, keep_max)
    if quality_min is None or quality_of is None:
        return Choice((), sizes[0], None, True)

    tried: dict[int, float] = {}

    def quality(count: int) -> float:
        if count not in tried:
            tried[count] = quality_of(order[:count])
        return tried[count]

    count, low = 0, -1
    while quality(count) < quality_min and count < most:
        low, count = count, min(max(1, 2 * count), most)
    while quality(count) >= quality_min and count - low > 1:
        middle = (low + count) // 2
        if quality(middle) >= quality_min:
            count = middle
        else:
            low = middle
    return Choice(tuple(order[:count]), sizes[count], tried[count], tried[count] >= quality_min)
