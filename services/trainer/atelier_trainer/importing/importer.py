"""Writes a bundle from a source: one network in memory at a time, every graph held against torch before it counts."""

from __future__ import annotations

import gc
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ..graphs import export_graph, round_to_half
from .borrowing import borrow
from .manifest import write_manifest
from .networks import Graph, graphs_of
from .progress import Progress
from .refusal import ImportRefused
from .source import Source

# Largest difference from torch, of values up to 1 or of the largest value: in float32 and in float16 arithmetic.
BOUND, BOUND_HALF = 1e-3, 5e-2


@dataclass(frozen=True)
class Wishes:
    id: str
    name: str
    half: bool = False
    external_data: bool = False
    license: str | None = None
    force: bool = False
    # Manifests of lenders by the part that they lend.
    lenders: dict[str, dict] | None = None
    # Where the model came from, for the manifest's reader.
    origin: str = ""


def write_bundle(source: Source, out: Path, wishes: Wishes) -> dict:
    """The manifest of the bundle that now lies in `out`; after a failure nothing lies there that did not before."""
    if out.exists() and not wishes.force:
        raise ImportRefused(f"--out: {out} exists; --force replaces it")
    if out.exists() and not (out / "atelier.json").exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ImportRefused(f"--out: {out} exists and is no bundle (it has no atelier.json); --force replaces bundles only")
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_space(source, out.parent, wishes.half)
    unfinished = out.parent / f".{out.name}.importing-{os.getpid()}"
    try:
        unfinished.mkdir()
        progress = Progress(3 * sum(source.sizes.values()))
        for network in source.sizes:
            _write_network(source, network, unfinished, wishes, progress)
        _write_configs(source, unfinished)
        uses = {part: borrow(unfinished, part, lender) for part, lender in (wishes.lenders or {}).items()}
        progress.say("writing digests")
        imported = {"importedFrom": wishes.origin, "arithmetic": "float16" if wishes.half else "float32"}
        manifest = write_manifest(unfinished, source, id=wishes.id, name=wishes.name, license=wishes.license, imported=imported, uses=uses)
        _put_in_place(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    progress.say(f"{out}: {sum(part['bytes'] for part in manifest['parts'].values()) / 1e6:.1f} MB")
    return manifest


def _check_space(source: Source, folder: Path, half: bool) -> None:
    # A float32 graph is written once by torch and once under its own names; a source may be float16 already.
    needed = sum(source.sizes.values()) + 3 * max(source.sizes.values()) * (1 if half else 2)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ImportRefused(f"--out: {folder} has {free / 1e9:.1f} GB free; some {needed / 1e9:.1f} GB are needed while importing")


def _write_network(source: Source, network: str, folder: Path, wishes: Wishes, progress: Progress) -> None:
    size = source.sizes[network]
    progress.say(f"{network}: reading {size / 1e6:.1f} MB")
    module = source.load(network)
    progress.did(size)
    # SDXL's VAE overflows in float16: its weights may be rounded, its arithmetic not.
    stays = network == "vae" and source.family == "sdxl" and source.config("vae").get("force_upcast", True)
    if wishes.half:
        round_to_half(module)
    graphs = graphs_of(source, network, module)
    for name, graph in graphs.items():
        progress.say(f"{name}: tracing")
        feeds = (graph.inputs, *graph.checks)
        expected = [_run_torch(graph, feed) for feed in feeds]
        in_half = wishes.half and not stays
        path = folder / name / "model.onnx"
        # The encoder and decoder of one VAE share the module, so what is turned to float16 is turned back.
        written = graph.in_half() if in_half else graph
        export_graph(written.module, graph.inputs, list(graph.outputs), graph.axes, path, wishes.external_data)
        if in_half:
            graph.module.float()
        progress.did(size / len(graphs))
        if name == list(graphs)[-1]:
            del module, graph, written, graphs
            gc.collect()
        _check_graph(name, path, feeds, expected, in_half, progress)
        progress.did(size / (2 if network == "vae" else 1))


@torch.no_grad()
def _run_torch(graph: Graph, feed: dict[str, torch.Tensor]) -> list[np.ndarray]:
    outputs = graph.module(*feed.values())
    return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _check_graph(name: str, path: Path, feeds: tuple, expected: list, half: bool, progress: Progress) -> None:
    """In onnxruntime, at the traced shape and at others, against float32 torch of the same weights."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common class
        raise ImportRefused(f"{name}/model.onnx was written and onnxruntime does not open it: {error}") from error
    worst = largest = 0.0
    for feed, wanted in zip(feeds, expected, strict=True):
        for ours, theirs in zip(session.run(None, {key: value.numpy() for key, value in feed.items()}), wanted, strict=True):
            if not np.isfinite(ours).all():
                why = "float16 does not hold its numbers: import it without --fp16" if half else "its weights overflow"
                raise ImportRefused(f"{name}/model.onnx gives values that are not finite; {why}")
            worst, largest = max(worst, float(np.abs(ours - theirs).max())), max(largest, float(np.abs(theirs).max()))
    bound = (BOUND_HALF if half else BOUND) * max(1.0, largest)
    if worst > bound:
        raise ImportRefused(f"{name}/model.onnx differs from torch by {worst:.2g}; at most {bound:.2g} is right for values up to {largest:.3g}")
    kind = "float16" if half else "float32"
    progress.say(f"{name}: {kind}, differs from torch by {worst:.1e} at most, of values up to {largest:.3g} (bound {bound:.1e})")


def _write_configs(source: Source, folder: Path) -> None:
    index = {**source.model_index, "safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    files = {"model_index.json": (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode(),
             "scheduler/scheduler_config.json": source.scheduler}
    for network, content in source.configs.items():
        for name in ("vae_decoder", "vae_encoder") if network == "vae" else (network,):
            files[f"{name}/config.json"] = content
    for tokenizer, own in source.tokenizers.items():
        files |= {f"{tokenizer}/{name}": content for name, content in own.items()}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _put_in_place(unfinished: Path, out: Path) -> None:
    """By renaming, so that whoever looks finds the old bundle or the new one, and never half of one."""
    if not out.exists():
        unfinished.rename(out)
        return
    replaced = out.parent / f".{out.name}.replaced-{os.getpid()}"
    out.rename(replaced)
    try:
        unfinished.rename(out)
    except OSError:
        replaced.rename(out)
        raise
    shutil.rmtree(replaced)
