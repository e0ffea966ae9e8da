"""`python -m atelier_trainer COMMAND`: one command per phase, `train` for all of them in order."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from .importing import command as importing
from .quantize import options as quantize

PHASES = ("draw", "tokenizer", "clip", "vae", "latents", "decoder", "unet", "judge")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="atelier_trainer", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/atelier/train",
                        help="folder of pictures and checkpoints; an interrupted phase goes on from there")
    parser.add_argument("--recipe", choices=("full", "toy"), default="full")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    commands = parser.add_subparsers(dest="command", required=True)
    for phase in PHASES:
        commands.add_parser(phase, help=f"run the phase `{phase}` only")
    train = commands.add_parser("train", help="every phase in order, then export")
    train.add_argument("--out", type=Path, required=True, help="bundle folder to write")
    export = commands.add_parser("export", help="write the bundle from the latest weights")
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--random", action="store_true", help="untrained weights in the final layout")
    export.add_argument("--wall-minutes", type=int, default=None, help="how long training took, for the manifest")
    evaluate = commands.add_parser("evaluate", help="score 200 unseen prompts with the judge; print one JSON line")
    evaluate.add_argument("--prompts", type=int, default=200)
    evaluate.add_argument("--hires", action="store_true", help="score the 512 px pictures of the hires fix instead")
    evaluate.add_argument("--negative", default="")
    evaluate.add_argument("--grid", type=Path, default=None, help="also save the first pictures here")
    sheet = commands.add_parser("sheet", help="write the contact sheet")
    sheet.add_argument("--out", type=Path, required=True)
    toy = commands.add_parser("toy", help="train everything for a few steps, export, compare torch with onnxruntime")
    toy.add_argument("--out", type=Path, required=True)
    importing.add_arguments(commands.add_parser("import", help="write a bundle from a published model"))
    quantize.add_arguments(commands.add_parser("quantize", help="write a bundle with eight-bit weights"))
    return parser


def run_phase(work: "Workspace", phase: str, threads: int) -> None:  # noqa: F821
    from . import clip_pair, dataset, unet, vae

    if phase == "judge":
        from .evaluate import train_judge

        train_judge(work)
        return
    {
        "draw": lambda: dataset.prepare(work, threads),
        "tokenizer": lambda: clip_pair.make_tokenizer(work),
        "clip": lambda: clip_pair.train_clip_pair(work),
        "vae": lambda: vae.train_vae(work),
        "latents": lambda: vae.compute_latents(work),
        "decoder": lambda: vae.train_decoder(work),
        "unet": lambda: unet.train_unet(work),
    }[phase]()


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    import torch

    from .config import RECIPES, Workspace

    torch.set_num_threads(args.threads)
    if args.command == "import":
        return importing.run(args)
    if args.command == "quantize":
        from .quantize.command import run

        return run(args)
    recipe = replace(RECIPES["toy" if args.command == "toy" else args.recipe], seed=args.seed)
    work = Workspace(args.work, recipe)
    if args.command in PHASES:
        run_phase(work, args.command, args.threads)
        return 0
    from .export import export_bundle, parity

    if args.command in ("train", "toy"):
        started = time.monotonic()
        for phase in PHASES:
            run_phase(work, phase, args.threads)
        minutes = round((time.monotonic() - started) / 60)
        export_bundle(work, args.out, trained={"wallTimeMinutes": minutes, "threads": args.threads})
    elif args.command == "export":
        trained = {} if args.wall_minutes is None else {"wallTimeMinutes": args.wall_minutes}
        export_bundle(work, args.out, untrained=args.random, trained=trained)
    if args.command in ("toy", "export", "train"):
        worst = parity(args.out)
        print(f"torch against onnxruntime, largest difference: {worst}", flush=True)
        return 0 if max(worst.values()) <= 1e-3 else 1
    from .evaluate import contact_sheet, evaluate

    if args.command == "evaluate":
        evaluate(work, args.prompts, args.hires, args.negative, args.grid)
    elif args.command == "sheet":
        contact_sheet(work, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
