"""The command line of `quantize`, apart from the rest: reading it loads no numerical library."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--mode", choices=("weight-only", "dynamic"), default="weight-only",
                        help="dynamic: MatMul and Gemm compute in integers, too")
    parser.add_argument("--size-max", type=float, default=0.30, help="of the networks' bytes as float32 (0.30)")
    parser.add_argument("--half-size-max", type=float, default=0.55, help="of the networks' bytes as float16 (0.55)")
    parser.add_argument("--keep-max", type=int, default=None, help="most layers kept in float")
    parser.add_argument("--quality-min", type=float, default=50.0,
                        help="dB of PSNR on the calibration prompts, reached by keeping layers in float while the size holds (50)")
    parser.add_argument("--json", action="store_true", help="one JSON line and nothing else on standard output")
    parser.add_argument("--report", action="store_true", help="compare pictures and speed with the original's")
    parser.add_argument("--prompts", type=int, default=100, help="pictures of the report, every second one of a Chinese prompt")
    parser.add_argument("--steps", type=int, default=12, help="steps of the report's pictures")
    parser.add_argument("--judge", type=Path, default=None, help="judge.pt of a training run, for the report")
