"""CLIP's vocabulary for a model that came without one, in the files of a tokenizer folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from ..tokenizer import END, START, byte_alphabet
from .refusal import ImportRefused
from .source import parse_json

# OpenAI's file goes on after what CLIP took of it.
CLIP_IDS = 49_408
# Who pads with "!" instead of the end token: both OpenCLIP towers.
EXCLAMATION = "!"


def read_tokenizer(folder: Path, called: str) -> dict[str, bytes]:
    """Every file of a tokenizer folder that has a say in the ids."""
    files = {f.name: f.read_bytes() for f in sorted(folder.glob("*")) if f.suffix in (".json", ".txt") and f.is_file()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files.keys():
        raise ImportRefused(f"{called} has neither tokenizer.json nor vocab.json and merges.txt")
    return files


def write_tokenizer(vocabulary: dict[str, int], merges: list[str], pad_token: str) -> dict[str, bytes]:
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
              "tokenizer_class": "CLIPTokenizer", **special}
    encode = lambda value: (json.dumps(value, ensure_ascii=False) + "\n").encode()  # noqa: E731
    return {
        "vocab.json": encode(vocabulary), "merges.txt": ("#version: 0.2\n" + "".join(f"{m}\n" for m in merges)).encode(),
        "tokenizer_config.json": encode(config), "special_tokens_map.json": encode(special),
    }


def read_vocabulary(path: Path) -> tuple[dict[str, int], list[str]]:
    """From a tokenizer folder in either form, or from OpenAI's `bpe_simple_vocab_16e6.txt.gz`."""
    if not path.exists():
        raise ImportRefused(f"--tokenizer: {path} does not exist")
    if path.is_file():
        vocabulary, merges = _from_openai(path)
    elif (path / "vocab.json").exists() and (path / "merges.txt").exists():
        vocabulary = parse_json((path / "vocab.json").read_bytes(), f"{path}/vocab.json")
        lines = (path / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
    elif (path / "tokenizer.json").exists():
        model = parse_json((path / "tokenizer.json").read_bytes(), f"{path}/tokenizer.json").get("model", {})
        vocabulary, merges = model.get("vocab", {}), [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    else:
        raise ImportRefused(f"--tokenizer: {path} has neither tokenizer.json nor vocab.json and merges.txt")
    missing = [token for token in (START, END, EXCLAMATION) if token not in vocabulary]
    if missing:
        raise ImportRefused(f"--tokenizer: {path} has no token {missing[0]}, so it is no vocabulary of CLIP's")
    return vocabulary, merges


def _from_openai(path: Path) -> tuple[dict[str, int], list[str]]:
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ImportRefused(f"--tokenizer: {path} is neither a tokenizer folder nor OpenAI's list of merges: {error}") from error
    merges = [line for line in lines[1 : CLIP_IDS - 512 - 2 + 1] if line]
    letters = byte_alphabet()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges
