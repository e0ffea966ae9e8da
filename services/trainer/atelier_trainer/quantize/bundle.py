"""Bundle folders: what is read before anything is quantised, and the new one, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .runner import NETWORKS

MANIFEST = "atelier.json"
SUFFIX = "-int8"


class BundleProblem(ValueError):
    """The folder cannot be quantised; says why, for people."""


def read_manifest(bundle: Path) -> dict:
    path = bundle / MANIFEST
    if not path.is_file():
        raise BundleProblem(f"{bundle}: no such bundle (it has no {MANIFEST})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleProblem(f"{path} is not JSON: {error}") from error
    if "quantised" in (manifest.get("trained") or {}):
        raise BundleProblem(f"{bundle}: {manifest['id']} is already quantised; quantise what it was made of instead")
    if manifest.get("uses"):
        raise BundleProblem(f"{bundle}: {manifest['id']} borrows {', '.join(manifest['uses'])}; quantise a bundle that has its own parts")
    missing = [name for name in ("unet", "vae_decoder", "text_encoder") if not (bundle / name / "model.onnx").is_file()]
    if missing:
        raise BundleProblem(f"{bundle}: it has no {', '.join(f'{name}/model.onnx' for name in missing)}")
    return manifest


def networks_of(bundle: Path) -> list[str]:
    return [name for name in NETWORKS if (bundle / name / "model.onnx").is_file()]


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its name when all went well, and is gone when not."""
    if out.exists():
        raise BundleProblem(f"{out} exists already; remove it or name another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def complete(folder: Path, bundle: Path, manifest: dict, notes: dict) -> None:
    """Adds to the quantised networks in `folder` all else that `bundle` has, and the manifest."""
    for name in manifest["parts"]:
        target = folder / name
        if Path(name).parts[0] in NETWORKS and Path(name).name.startswith("model.onnx"):
            continue  # the new graph is there, perhaps without the external data that the old one had
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, target)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    parts = {file.relative_to(folder).as_posix(): {"sha256": _sha256(file), "bytes": file.stat().st_size} for file in files}
    result = {
        **manifest, "id": manifest["id"] + SUFFIX, "name": f"{manifest['name']} INT8", "parts": parts,
        "trained": {**(manifest.get("trained") or {}), "quantised": notes},
    }
    (folder / MANIFEST).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
