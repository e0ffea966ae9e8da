"""Parts that another bundle has already: named in the manifest's `uses` instead of being written a second time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from .manifest import MANIFEST, describe_parts, digest_of
from .refusal import ImportRefused
from .source import parse_json

# What a borrowed part brings along.
FOLDERS = {
    "text_encoder": ("text_encoder/", "tokenizer/"), "text_encoder_2": ("text_encoder_2/", "tokenizer_2/"),
    "vae_decoder": ("vae_decoder/",), "vae_encoder": ("vae_encoder/",),
}


def read_lender(folder: Path, option: str) -> dict:
    """The lender's manifest, read before any work is done."""
    if not (folder / MANIFEST).exists():
        raise ImportRefused(f"{option}: {folder} is no bundle; it has no {MANIFEST}")
    manifest = parse_json((folder / MANIFEST).read_bytes(), f"{option}: {folder}/{MANIFEST}")
    if not isinstance(manifest.get("parts"), dict) or not isinstance(manifest.get("id"), str):
        raise ImportRefused(f"{option}: {folder}/{MANIFEST} lists no parts or has no id")
    return manifest


def borrow(folder: Path, part: str, lender: Mapping) -> dict[str, str]:
    """Takes the files of `part` away, if the lender has the very same; what `uses` then says of it."""
    ours = {name: at for name, at in describe_parts(folder).items() if name.startswith(FOLDERS[part])}
    theirs = {name: at for name, at in lender["parts"].items() if name.startswith(FOLDERS[part])}
    if not theirs:
        raise ImportRefused(f"{lender['id']} has no {part} of its own to lend")
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ImportRefused(f"{part} cannot be borrowed from {lender['id']}: {name} is not the same file there")
    for place in FOLDERS[part]:
        shutil.rmtree(folder / place)
    return {"bundle": lender["id"], "digest": digest_of(theirs)}


def whole_digest(manifest: Mapping, lenders: Mapping[str, Mapping]) -> str:
    """A bundle's digest, with what it borrows as if the files lay in its own folder."""
    parts = dict(manifest["parts"])
    for part, use in manifest.get("uses", {}).items():
        parts |= {name: at for name, at in lenders[use["bundle"]]["parts"].items() if name.startswith(FOLDERS[part])}
    return digest_of(parts)


def read_manifest(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
