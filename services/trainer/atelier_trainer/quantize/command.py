"""`python -m atelier_trainer quantize BUNDLE --out DIR`: an INT8 bundle, and what it costs."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from . import graph, report
from .bundle import BundleProblem, bytes_of, complete, networks_of, new_folder, read_manifest
from .keep_list import Choice, Measured, TooLarge, choose
from .runner import Runner
from .sensitivity import CALIBRATION_SEED, calibration_feeds, measure

CALIBRATION_PROMPTS = ("a red t-shirt on a white background", "蓝色马克杯，白色圆点，木桌", "a green teapot on marble", "黑色手提包，白色背景")
CALIBRATION_STEPS = 12


def run(args: argparse.Namespace) -> int:
    """The exit code: 0, or 1 with the reason on standard error."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that what is unfinished is cleared away
    try:
        result = quantize_bundle(args, say)
    except (BundleProblem, TooLarge) as problem:
        say(f"error: {problem}")
        return 1
    if not result["qualityMet"]:
        say(f"note: {result['calibrationPsnr']} dB on the calibration prompts is the best within this size; "
            f"{args.quality_min} were asked for")
    if not args.json:
        print(report.table(result))
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return 0


def quantize_bundle(args: argparse.Namespace, say) -> dict:
    bundle, dynamic = args.bundle, args.mode == "dynamic"
    _check(args)
    manifest = read_manifest(bundle)
    with new_folder(args.out) as folder:
        names = networks_of(bundle)
        models = {name: _load(bundle / name / "model.onnx") for name in names}
        already = [name for name in names if graph.is_quantised(models[name])]
        if already:
            raise BundleProblem(f"{bundle}: {', '.join(already)} already has eight-bit weights")
        layers = {name: graph.layers_of(model) for name, model in models.items()}
        if dynamic and any(_computes_in_half(model) for model in models.values()):
            raise BundleProblem(f"{bundle} computes in float16, and dynamic quantisation in float32: use --mode weight-only")
        original = Runner(bundle, args.threads)
        choice, measured = _search(args, manifest, original, models, layers, folder, say)

        notes = _notes(args, choice, measured)
        complete(folder, bundle, manifest, notes)
        sizes = _sizes(bundle, folder, models)
        _check_size(args, sizes)
        result = {
            "quantize": manifest["id"], "id": manifest["id"] + "-int8", "mode": args.mode,
            "layers": len(measured), "kept": len(choice.keep), "keep": [f"{m.network}/{m.name}" for m in choice.keep],
            "calibrationPsnr": None if choice.quality is None else round(choice.quality, 2), "qualityMet": choice.met,
            "bytes": sizes, "ratio": sizes["ofFloat32"],
        }
        if args.report:
            quantised = Runner(folder, args.threads)
            result["quality"] = report.compare(original, quantised, bundle, count=args.prompts, steps=args.steps,
                                               threads=args.threads, judge=args.judge, say=say)
            say(f"speed: {report.LOOPS} loops of {report.LOOP_STEPS} steps each, taking turns")
            result["speed"] = {**report.speed(original, quantised, CALIBRATION_PROMPTS[0]), "threads": args.threads}
        say(f"wrote {args.out}")
    return result


def _load(path: Path):
    try:
        return graph.load_folded(path)
    except DecodeError as error:
        raise BundleProblem(f"{path} is not a whole ONNX file: {error}") from error


def _check(args: argparse.Namespace) -> None:
    for name in ("size_max", "half_size_max"):
        if not 0 < getattr(args, name) <= 1:
            raise BundleProblem(f"--{name.replace('_', '-')} is {getattr(args, name)}; it is a share, above 0 and at most 1")
    for name in ("keep_max", "prompts", "steps"):
        value = getattr(args, name)
        if value is not None and value < (0 if name == "keep_max" else 1):
            raise BundleProblem(f"--{name.replace('_', '-')} is {value}")


def _search(args, manifest: dict, original: Runner, models: dict, layers: dict, folder: Path, say) -> tuple[Choice, list[Measured]]:
    """Writes the chosen graphs into `folder`."""
    dynamic = args.mode == "dynamic"

    def write(keep) -> None:
        for name, model in models.items():
            kept = {m.name for m in keep if m.network == name}
            graph.write(graph.quantize(model, layers[name], kept, dynamic), folder / name / "model.onnx")

    say(f"{manifest['id']}: {len(CALIBRATION_PROMPTS)} calibration pictures of {CALIBRATION_STEPS} steps")
    feeds = calibration_feeds(original, CALIBRATION_PROMPTS, steps=CALIBRATION_STEPS, size=original.size)
    drawn = {"steps": CALIBRATION_STEPS, "seed": CALIBRATION_SEED, "size": original.size}
    truth = original.pictures(CALIBRATION_PROMPTS, **drawn)
    measured: list[Measured] = []
    for name, model in models.items():
        def progress(done: int, name: str = name) -> None:
            if done % 20 == 0 or done == len(layers[name]):
                say(f"{name}: {done}/{len(layers[name])} layers measured")
        measured += measure(name, model, layers[name], feeds[name], dynamic=dynamic, threads=args.threads, progress=progress)

    written: list = [None]

    def quality_of(keep) -> float:
        write(keep)
        written[0] = tuple(keep)
        made = Runner(args.bundle, args.threads, graphs=folder).pictures(CALIBRATION_PROMPTS, **drawn)
        quality = report.mean_psnr(made, truth)
        say(f"{len(keep)} layers in float: {quality:.2f} dB")
        return quality

    write(())
    written[0] = ()
    sizes = _sizes(args.bundle, folder, models)
    bytes_max = int(min(args.size_max * sizes["float32"], args.half_size_max * sizes["float16"]))
    choice = choose(measured, bytes_all_int8=sizes["int8"], bytes_max=bytes_max, keep_max=args.keep_max,
                    quality_min=args.quality_min, quality_of=quality_of)
    if written[0] != choice.keep:
        write(choice.keep)
    return choice, measured


def _computes_in_half(model) -> bool:
    return any(t.data_type == graph.TensorProto.FLOAT16 and len(t.dims) > 1 for t in model.graph.initializer)


def _sizes(bundle: Path, folder: Path, models: dict) -> dict:
    """Bytes of the networks. As float32 and float16: the original's graphs with every stored float in that type."""
    full = sum(_bytes_as(model, 4) for model in models.values())
    half = sum(_bytes_as(model, 2) for model in models.values())
    int8 = sum(_graph_bytes(folder / name) for name in models)
    return {
        "stored": sum(_graph_bytes(bundle / name) for name in models), "float32": full, "float16": half, "int8": int8,
        "ofFloat32": round(int8 / full, 4), "ofFloat16": round(int8 / half, 4),
        "folder": bytes_of(bundle), "folderInt8": bytes_of(folder),
    }


def _graph_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("model.onnx"))


def _bytes_as(model, width: int) -> int:
    floats = [t for t in model.graph.initializer if t.data_type in graph.FLOATS]
    stored = sum(numpy_helper.to_array(t).nbytes for t in floats)
    return model.ByteSize() - stored + sum(int(np.prod(t.dims)) * width for t in floats)


def _check_size(args, sizes: dict) -> None:
    """`choose` adds up what each layer saves; this is what was written."""
    if sizes["ofFloat32"] > args.size_max or sizes["ofFloat16"] > args.half_size_max:
        raise TooLarge(f"it has {sizes['ofFloat32']:.1%} of float32 and {sizes['ofFloat16']:.1%} of float16; "
                       f"{args.size_max:.1%} and {args.half_size_max:.1%} are allowed")


def _notes(args, choice: Choice, measured: list[Measured]) -> dict:
    return {
        "mode": args.mode, "weights": "int8, symmetric, one scale per output channel",
        # Activations are rounded by one scale for the whole batch: a picture then depends on who shares it.
        "batchInvariant": args.mode == "weight-only",
        "layers": len(measured), "keep": [f"{m.network}/{m.name}" for m in choice.keep],
        "calibration": {"prompts": list(CALIBRATION_PROMPTS), "steps": CALIBRATION_STEPS, "seed": CALIBRATION_SEED,
                        "psnr": None if choice.quality is None else round(choice.quality, 2)},
    }
