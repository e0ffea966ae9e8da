"""What eight bits cost each layer, on what the networks really see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from .graph import DYNAMIC, Layer, with_float_weights_as_inputs
from .keep_list import Measured
from .runner import Feeds, Runner, open_session
from .weights import rounded

# U-Net runs that are kept, evenly over the steps: early ones decide the layout, late ones the detail.
UNET_RUNS = 3
CALIBRATION_SEED = 1


def calibration_feeds(runner: Runner, prompts: Sequence[str], *, steps: int, size: tuple[int, int]) -> dict[str, list[Feeds]]:
    """What each network is fed while the bundle makes these pictures."""
    seen: dict[str, list[Feeds]] = {}
    runner.observe(lambda network, feeds: seen.setdefault(network, []).append({k: v.copy() for k, v in feeds.items()}))
    pictures = runner.pictures(prompts, steps=steps, seed=CALIBRATION_SEED, size=size)
    if runner.has("vae_encoder"):
        runner.encode_pictures(pictures)
    rows = np.unique(np.linspace(0, len(seen["unet"]) - 1, UNET_RUNS).round().astype(int))
    return {**seen, "unet": [seen["unet"][i] for i in rows]}


def measure(network: str, model: onnx.ModelProto, layers: Sequence[Layer], feeds: Sequence[Feeds], *, dynamic: bool,
            threads: int, progress: Callable[[int], None]) -> list[Measured]:
    """Each layer alone in eight bits, all others in float: the error of the network's first output.

    One session serves all: it is fed the weights. Runs len(layers) + 1 times over `feeds`.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    session = open_session(with_float_weights_as_inputs(model, layers, dynamic).SerializeToString(), threads)
    ports = {port.name for port in session.get_inputs()}
    weights: Feeds = {layer.weight: stored[layer.weight] for layer in layers}
    switches: Feeds = {name: np.array(False) for name in ports if name.endswith(DYNAMIC)}
    output = session.get_outputs()[0].name

    def outputs(changed: Feeds) -> list[np.ndarray]:
        return [session.run([output], {**each, **weights, **switches, **changed})[0].astype(np.float64) for each in feeds]

    truth = outputs({})
    scale = sum(float((y**2).sum()) for y in truth)
    measured = []
    for done, layer in enumerate(layers, 1):
        changed = {layer.weight: rounded(stored[layer.weight], layer.axis)}
        if layer.weight + DYNAMIC in ports:
            changed[layer.weight + DYNAMIC] = np.array(True)
        error = sum(float(((y - y0) ** 2).sum()) for y, y0 in zip(outputs(changed), truth, strict=True))
        measured.append(Measured(network, layer.weight, error / max(scale, 1e-30), layer.bytes_saved))
        progress(done)
    return measured
