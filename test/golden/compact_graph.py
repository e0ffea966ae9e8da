"""Small files for committed graphs: short names for what lies between weights. What the graph computes stays."""

import tempfile
import warnings
from pathlib import Path

import onnx
import torch

from atelier_trainer.graphs import UnetGraph, _name_weights, _share_equal_nodes, _store_half


def compact(path: Path) -> None:
    """Half of a tiny model's file would be the trace's long names."""
    model = onnx.load(str(path))
    graph = model.graph
    kept = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    short = {"": ""}
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name not in kept and not name.endswith((".weight", ".bias", ".transposed")):
                short[name] = f"v{len(short)}"
            node.output[i] = short.get(name, name)
        for i, name in enumerate(node.input):
            node.input[i] = short.get(name, name)
        node.ClearField("name")
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_scalar_timestep(unet: torch.nn.Module, path: Path) -> None:
    """The U-Net as optimum exports it: one int64 timestep without dimensions for the whole batch, opset 14."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = {
        "sample": torch.randn(2, 4, 9, 11), "timestep": torch.tensor(981),
        "encoder_hidden_states": torch.randn(2, 16, unet.config.cross_attention_dim),
    }
    axes = {
        "sample": {0: "batch_size", 2: "height", 3: "width"}, "timestep": {},
        "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"},
        "out_sample": {0: "batch_size", 2: "height", 3: "width"},
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = Path(folder) / "traced.onnx"
        torch.onnx.export(UnetGraph(unet.eval()), tuple(inputs.values()), str(traced), input_names=list(inputs),
                          output_names=["out_sample"], dynamic_axes=axes, opset_version=14, dynamo=False)
        model = onnx.load(str(traced))
    _name_weights(model)
    _store_half(model)
    _share_equal_nodes(model)
    onnx.save(model, str(path))
    compact(path)
