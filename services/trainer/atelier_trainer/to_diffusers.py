"""`python -m atelier_trainer.to_diffusers BUNDLE OUT`: rebuilds a diffusers folder (safetensors) from the ONNX bundle.

The weights are the bundle's own, read from its graphs, so diffusers computes with the same numbers.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from .export import load_bundle


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="atelier_trainer.to_diffusers", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    modules = load_bundle(args.bundle)
    for name in ("unet", "text_encoder", "vae", "clip"):
        modules[name].save_pretrained(args.out / name)
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(args.bundle / name, args.out / name, dirs_exist_ok=True)
    shutil.copy(args.bundle / "model_index.json", args.out / "model_index.json")
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
