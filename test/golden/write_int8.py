"""
Writes data/int8/: the graphs and the manifest of golden-sd1 in eight bits, as `python -m atelier_trainer quantize` makes
them. All else of the bundle is golden-sd1's own. The graphs are gzipped: between their weights is mostly text.

Run, after write_families.py: PYTHONPATH=services/trainer python test/golden/write_int8.py
"""

import gzip
import shutil
import sys
import tempfile
from pathlib import Path

from atelier_trainer.__main__ import main as trainer

GOLDEN = Path(__file__).parent
NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def main() -> int:
    target = GOLDEN / "data/int8"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "int8"
        # In networks so small what is around the weights weighs as much as they do.
        loose = ["--size-max", "0.6", "--half-size-max", "1", "--quality-min", "45"]
        code = trainer(["--threads", "1", "quantize", str(GOLDEN / "families/golden-sd1"), "--out", str(out), *loose])
        if code != 0:
            return code
        for name in NETWORKS:
            packed = gzip.compress((out / name / "model.onnx").read_bytes(), mtime=0)
            (target / f"{name}.onnx.gz").write_bytes(packed)
        shutil.copy(out / "atelier.json", target / "atelier.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
