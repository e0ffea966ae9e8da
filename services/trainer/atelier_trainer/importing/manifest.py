"""`atelier.json`: what a bundle is called, what it takes, and which files it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from .figures import DEFAULTS
from .refusal import ImportRefused
from .source import Source

MANIFEST = "atelier.json"
ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def id_from(name: str) -> str:
    """A file's or folder's name as the id of a model."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:64]
    if not ID.fullmatch(plain):
        raise ImportRefused(f"no id can be made of the name {name!r}: give one with --id")
    return plain


def describe_parts(folder: Path) -> dict[str, dict]:
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST}
    return {name: {"sha256": _digest(files[name]), "bytes": files[name].stat().st_size} for name in sorted(files)}


def write_manifest(folder: Path, source: Source, *, id: str, name: str, license: str | None, imported: dict,
                   uses: Mapping[str, dict] | None = None) -> dict:
    defaults, native = DEFAULTS[source.family], source.native_size
    manifest = {
        "schemaVersion": 1, "id": id, "name": name, "family": source.family, **({"license": license} if license else {}),
        "nativeSize": {"width": native, "height": native}, "defaultSize": {"width": native, "height": native},
        "sizeMultiple": 8, **defaults, "sizeMin": min(defaults["sizeMin"], native), "sizeMax": max(defaults["sizeMax"], native),
        **({"uses": dict(uses)} if uses else {}), "parts": describe_parts(folder), "trained": imported,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def digest_of(parts: Mapping[str, dict], folders: tuple[str, ...] = ("",)) -> str:
    """Names this very set of files: over the digests of the parts under `folders`, in order of name."""
    lines = [f"{parts[name]['sha256']}  {name}\n" for name in sorted(parts) if name.startswith(folders)]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
