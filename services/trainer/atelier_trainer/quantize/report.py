"""How pictures of two bundles compare, and how long they take."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .runner import Runner, open_session

REPORT_SEED = 1000
BATCH = 4
LOOP_STEPS = 25
LOOPS = 5


def psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    """In dB, of uint8 pictures; equal ones give 99, which no other difference of whole levels reaches."""
    error = float(((picture.astype(np.float64) - reference) ** 2).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def mean_psnr(pictures: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    return statistics.fmean(psnr(a, b) for a, b in zip(pictures, references, strict=True))


class ClipScore:
    """Cosine of picture and prompt, times 100, by the bundle's own CLIP pair. It knows only what it was trained on."""

    def __init__(self, bundle: Path, threads: int) -> None:
        from transformers import CLIPTokenizer

        folder = bundle / "clip"
        self._text = open_session(folder / "text_model.onnx", threads)
        self._vision = open_session(folder / "vision_model.onnx", threads)
        self._tokenizer = CLIPTokenizer.from_pretrained(bundle / "tokenizer")
        config = json.loads((folder / "preprocessor_config.json").read_text())
        self._side = config["crop_size"]["height"]
        self._mean, self._std = np.array(config["image_mean"]), np.array(config["image_std"])

    @staticmethod
    def at_hand(bundle: Path) -> bool:
        return (bundle / "clip/text_model.onnx").is_file() and (bundle / "clip/vision_model.onnx").is_file()

    def scores(self, prompts: Sequence[str], pictures: np.ndarray) -> np.ndarray:
        """One for each prompt and its own picture."""
        from PIL import Image

        ids = self._tokenizer(list(prompts), padding="max_length", max_length=77, truncation=True)["input_ids"]
        side = (self._side, self._side)
        small = np.stack([np.asarray(Image.fromarray(p).resize(side, Image.Resampling.BICUBIC)) for p in pictures])
        pixels = ((small / 255 - self._mean) / self._std).transpose(0, 3, 1, 2).astype(np.float32)
        texts = self._text.run(None, {"input_ids": np.array(ids, np.int64)})[0]
        return 100 * (texts * self._vision.run(None, {"pixel_values": pixels})[0]).sum(axis=1)


def compare(original: Runner, quantised: Runner, bundle: Path, *, count: int, steps: int, threads: int, judge: Path | None,
            say: Callable[[str], None]) -> dict:
    """`count` prompts, every second one Chinese, each drawn by both from the same noise."""
    from ..evaluate import evaluation_prompts

    specs = evaluation_prompts(count)
    prompts = [text for _, text in specs]
    both: dict[str, list[np.ndarray]] = {"original": [], "int8": []}
    for start in range(0, count, BATCH):
        some = prompts[start : start + BATCH]
        for name, runner in (("original", original), ("int8", quantised)):
            both[name].append(runner.pictures(some, steps=steps, seed=REPORT_SEED + start, size=original.size))
        say(f"pictures {min(start + BATCH, count)}/{count}")
    pictures = {name: np.concatenate(batches) for name, batches in both.items()}
    decibels = [psnr(a, b) for a, b in zip(pictures["int8"], pictures["original"], strict=True)]
    width, height = original.size
    result: dict = {
        "prompts": count, "steps": steps, "size": f"{width}x{height}",
        "psnrMean": round(statistics.fmean(decibels), 2), "psnrMedian": round(statistics.median(decibels), 2),
        "psnrMin": round(min(decibels), 2), "clip": None, "judge": None,
    }
    if ClipScore.at_hand(bundle):
        clip = ClipScore(bundle, threads)
        result["clip"] = {name: round(float(clip.scores(prompts, some).mean()), 3) for name, some in pictures.items()}
    if judge is not None and judge.is_file():
        result["judge"] = {name: _recognised(judge, specs, some) for name, some in pictures.items()}
    return result


def _recognised(judge: Path, specs: Sequence[tuple], pictures: np.ndarray) -> dict[str, float]:
    """Shares of pictures whose product and colour the judge of `evaluate` names right."""
    import torch

    from ..clip_pair import ATTRIBUTE_NAMES
    from ..dataset import attributes
    from ..evaluate import Judge, _small

    network = Judge()
    network.load_state_dict(torch.load(judge))
    labels = torch.from_numpy(attributes([spec for spec, _ in specs]))
    with torch.no_grad():
        outputs = network.eval()(_small(pictures))
    return {ATTRIBUTE_NAMES[k]: round(float((outputs[k].argmax(1) == labels[:, k]).float().mean()), 4) for k in (0, 1)}


def speed(original: Runner, quantised: Runner, prompt: str) -> dict:
    """Milliseconds, medians of runs that take turns: one U-Net run of a guided picture, and a whole loop of 25 of them."""
    runners = {"original": original, "int8": quantised}
    steps: dict[str, list[float]] = {name: [] for name in runners}
    loops: dict[str, list[float]] = {name: [] for name in runners}
    for name, runner in runners.items():
        def timed(network: str, _feeds: object, times: list[float] = steps[name]) -> None:
            if network == "unet":
                times.append(time.perf_counter())
        runner.observe(timed)
    for _ in range(LOOPS + 1):
        for name, runner in runners.items():
            started = time.perf_counter()
            runner.latents([prompt], steps=LOOP_STEPS, seed=REPORT_SEED, size=original.size)
            loops[name].append(1000 * (time.perf_counter() - started))
    # The first loop warms up. Within a loop, one run's start to the next one's.
    step_ms = {name: statistics.median(1000 * np.diff(np.array(times).reshape(-1, LOOP_STEPS)[1:]).ravel())
               for name, times in steps.items()}
    loop_ms = {name: statistics.median(times[1:]) for name, times in loops.items()}
    return {
        "unetMs": {name: round(float(ms), 2) for name, ms in step_ms.items()},
        "loopMs": {name: round(ms, 1) for name, ms in loop_ms.items()},
        "ratio": round(loop_ms["original"] / loop_ms["int8"], 3),
    }


def table(result: dict) -> str:
    size, quality, pace = result["bytes"], result.get("quality"), result.get("speed")
    lines = [
        f"{result['id']}: {result['mode']}, {result['kept']} of {result['layers']} layers kept in float",
        f"  {'':34}{'original':>12}{'int8':>12}",
        _row("networks, as stored, MB", size["stored"] / 1e6, size["int8"] / 1e6),
        _row("networks, as float16, MB", size["float16"] / 1e6, size["int8"] / 1e6, f"{size['ofFloat16']:.1%}"),
        _row("networks, as float32, MB", size["float32"] / 1e6, size["int8"] / 1e6, f"{size['ofFloat32']:.1%}"),
        _row("whole folder, MB", size["folder"] / 1e6, size["folderInt8"] / 1e6, f"{size['folderInt8'] / size['folder']:.1%}"),
    ]
    if quality is not None:
        lines.append(f"  {quality['prompts']} prompts, {quality['steps']} steps, {quality['size']}: PSNR mean {quality['psnrMean']} dB, "
                     f"median {quality['psnrMedian']}, worst {quality['psnrMin']}")
        if quality["clip"] is not None:
            lines.append(_row("CLIP score", quality["clip"]["original"], quality["clip"]["int8"]))
        for name in quality["judge"]["original"] if quality["judge"] else ():
            lines.append(_row(f"{name} recognised, %", *(100 * quality["judge"][k][name] for k in ("original", "int8"))))
    if pace is not None:
        lines.append(_row("U-Net run, 2 rows, ms", pace["unetMs"]["original"], pace["unetMs"]["int8"]))
        lines.append(_row("25 steps, ms", pace["loopMs"]["original"], pace["loopMs"]["int8"], f"{pace['ratio']:.2f}x as fast"))
    return "\n".join(lines)


def _row(name: str, original: float, int8: float, note: str = "") -> str:
    return f"  {name:34}{original:>12.2f}{int8:>12.2f}  {note}".rstrip()
