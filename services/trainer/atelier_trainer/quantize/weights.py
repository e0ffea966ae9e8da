"""Symmetric eight-bit weights, one scale per output channel."""

from __future__ import annotations

import numpy as np

# Symmetric: -128 is not used, so that a weight and its negative round alike.
LEVELS = 127


def quantize_per_channel(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Float weights to (int8 of the same shape, float32 scales along `axis`); a channel of zeros gets the scale 1.

    `scale = max|w| / 127` of the channel, so every weight is off by half a scale at most.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values.astype(np.float32)).max(axis=others)
    scales = np.where(largest > 0, largest / LEVELS, 1).astype(np.float32)
    steps = np.rint(values.astype(np.float32) / along(scales, values.ndim, axis))
    return np.clip(steps, -LEVELS, LEVELS).astype(np.int8), scales


def along(scales: np.ndarray, dimensions: int, axis: int) -> np.ndarray:
    """The scales in a shape that broadcasts against weights of so many dimensions."""
    shape = [1] * dimensions
    shape[axis] = -1
    return scales.reshape(shape)


def rounded(values: np.ndarray, axis: int) -> np.ndarray:
    """What the float weights become by way of eight bits, in their own type."""
    steps, scales = quantize_per_channel(values, axis)
    return (steps.astype(np.float32) * along(scales, values.ndim, axis)).astype(values.dtype)
