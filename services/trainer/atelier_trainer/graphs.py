"""Torch modules as ONNX graphs: traced, every weight under its module path, float16 where that loses nothing."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from onnx import TensorProto, helper, numpy_helper
from transformers import CLIPTextModel

OPSET = 17
# Linear weights stand transposed in MatMul nodes; this suffix says so.
TRANSPOSED = ".weight.transposed"
# Protobuf ends at 2 GiB. Weights of more than this lie in one file beside the graph.
INSIDE_BYTES_MAX = 1 << 30
EXTERNAL_SUFFIX = "_data"


class UnetGraph(torch.nn.Module):
    """`timestep` is float32, one per row: samplers with fractional timesteps and mixed step batches need both."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.wrapped = unet

    def forward(self, sample, timestep, encoder_hidden_states):
        return self.wrapped(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class TextEncoderGraph(torch.nn.Module):
    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.wrapped = encoder

    def forward(self, input_ids):
        out = self.wrapped(input_ids=input_ids)
        return out.last_hidden_state, out.pooler_output


class VaeDecoderGraph(torch.nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.wrapped = vae

    def forward(self, latent_sample):
        return self.wrapped.decode(latent_sample, return_dict=False)[0]


class VaeEncoderGraph(torch.nn.Module):
    """Means of the latents, then logarithms of their variances, along the channels."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.wrapped = vae

    def forward(self, sample):
        parameters = self.wrapped.encoder(sample)
        return parameters if self.wrapped.quant_conv is None else self.wrapped.quant_conv(parameters)


@torch.no_grad()
def round_to_half(module: torch.nn.Module) -> torch.nn.Module:
    for p in module.parameters():
        p.copy_(p.half().float())
    return module.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def export_graph(wrapper: torch.nn.Module, inputs: dict[str, torch.Tensor], outputs: list[str],
                 axes: dict[str, dict[int, str]], path: Path, external_data: bool = False) -> None:
    """Writes `path`, and `path` + "_data" beside it where the weights would not fit (or `external_data` asks for it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Over 2 GiB torch scatters one file per weight around the graph: let it do so out of the way.
    scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                wrapper.eval(), tuple(inputs.values()), str(scratch / "traced.onnx"), input_names=list(inputs),
                output_names=outputs, dynamic_axes=axes, opset_version=OPSET, dynamo=False, do_constant_folding=True,
            )
        model = onnx.load(str(scratch / "traced.onnx"))
    finally:
        shutil.rmtree(scratch)
    _name_weights(model)
    store_half(model)
    share_equal_nodes(model)
    save_graph(model, path, external_data)


def save_graph(model: onnx.ModelProto, path: Path, external_data: bool) -> None:
    """Writes and checks the graph; its weights go to one file beside it where they are asked to, or too large to be inside."""
    weights_bytes = sum(len(i.raw_data) for i in model.graph.initializer)
    if external_data or weights_bytes > INSIDE_BYTES_MAX:
        (path.parent / (path.name + EXTERNAL_SUFFIX)).unlink(missing_ok=True)  # onnx would append to it
        onnx.save(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True,
                  location=path.name + EXTERNAL_SUFFIX, size_threshold=1024, convert_attribute=False)
        (path.parent / (path.name + EXTERNAL_SUFFIX)).chmod(path.stat().st_mode)  # onnx lets nobody else read it
    else:
        onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


def _strip(name: str) -> str:
    """Drops the export wrapper's own attribute from a parameter's path."""
    return name.removeprefix("wrapped.")


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for initializer in model.graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in names:
                node.input[i] = names[name]


def _name_weights(model: onnx.ModelProto) -> None:
    """Gives every weight its module path; folded Linear weights get theirs from the MatMul node's name."""
    names: dict[str, str] = {}
    for initializer in model.graph.initializer:
        if not initializer.name.startswith("onnx::"):
            names[initializer.name] = _strip(initializer.name)
    # What folding leaves behind: Linear weights as transposed MatMul operands, and GroupNorm's scale and shift
    # as the [channels, 1, 1] operands of a Mul and an Add.
    suffixes = {"MatMul": TRANSPOSED, "Mul": ".weight", "Add": ".bias"}
    anonymous = {i.name for i in model.graph.initializer if i.name.startswith("onnx::") and len(i.dims) > 0}
    taken = set(names.values())
    for node in model.graph.node:
        for name in node.input:
            if node.op_type in suffixes and name in anonymous and name not in names:
                module = node.name.strip("/").rpartition("/")[0].replace("/", ".")
                path = _strip(module) + suffixes[node.op_type]
                if path in taken:
                    raise ValueError(f"two weights of the graph got one name, {path}")
                taken.add(path)
                names[name] = path
    _rename(model, names)


def store_half(model: onnx.ModelProto) -> None:
    """Float initializers whose values float16 holds exactly become float16 plus a Cast that is folded at load."""
    casts = []
    for initializer in model.graph.initializer:
        if initializer.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(initializer)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < 4 or not np.array_equal(half.astype(np.float32), values):
            continue
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def share_equal_nodes(model: onnx.ModelProto) -> None:
    """Of nodes that compute the same from the same only the first stays: a trace repeats every shape and constant."""
    kept: list[onnx.NodeProto] = []
    first: dict[tuple, onnx.NodeProto] = {}
    same: dict[str, str] = {}
    outputs = {o.name for o in model.graph.output}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        attributes = sorted(node.attribute, key=lambda a: a.name)
        key = (node.op_type, node.domain, tuple(node.input), tuple(a.SerializeToString(deterministic=True) for a in attributes))
        if key in first and not outputs.intersection(node.output):
            same.update(zip(node.output, first[key].output, strict=True))
        else:
            first.setdefault(key, node)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
