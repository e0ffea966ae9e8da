"""A byte-level BPE in CLIP's form, trained on our own captions.

CLIP's tokenizer classes read it: lower case, one `</w>` suffix per word, `<|startoftext|>` and
`<|endoftext|>`, padding with the latter. All 256 bytes are in the vocabulary, alone and as the end of
a word, so any script and any emoji survives.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .config import TOKENS_MAX

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"
# CLIP's own splitting pattern (openai/CLIP simple_tokenizer.py, as transformers' converter writes it).
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _frame(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes, in CLIP's (GPT-2's) order."""
    printable = list(range(ord("!"), ord("~") + 1)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def train_tokenizer(captions: Iterable[str], vocabulary: int, folder: Path) -> None:
    """Writes `tokenizer.json`, `vocab.json`, `merges.txt`, `tokenizer_config.json`, `special_tokens_map.json`."""
    learner = _frame(Tokenizer(models.BPE(end_of_word_suffix=SUFFIX)))
    trainer = trainers.BpeTrainer(
        # 512 bytes and 2 special tokens come on top of the merges.
        vocab_size=vocabulary, end_of_word_suffix=SUFFIX, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, min_frequency=3, max_token_length=18,
    )
    learner.train_from_iterator(captions, trainer)
    learned = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    merges = learned[: vocabulary - 512 - 2]

    letters = byte_alphabet()
    tokens = letters + [letter + SUFFIX for letter in letters] + ["".join(m) for m in merges]
    tokens = list(dict.fromkeys(tokens)) + [START, END]
    vocab = {token: i for i, token in enumerate(tokens)}

    tokenizer = _frame(
        Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=END, end_of_word_suffix=SUFFIX,
                             continuing_subword_prefix="", fuse_unk=False))
    )
    tokenizer.add_special_tokens([START, END])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), add_prefix_space=False, trim_offsets=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8"
    )
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS_MAX, "do_lower_case": True,
        "add_prefix_space": False, "errors": "replace", "bos_token": START, "eos_token": END,
        "unk_token": END, "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


class CaptionTokenizer:
    """Captions to ids of fixed length 77.

    `dropout` is BPE-dropout: while training, some merges are skipped, so that a product's name is
    known however its neighbours were merged. Chinese has no spaces, and without this "国潮t恤" inside an
    unseen phrase can become tokens never met with that meaning.
    """

    def __init__(self, folder: Path, dropout: float | None = None) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end = self._tokenizer.token_to_id(END)
        self.start = self._tokenizer.token_to_id(START)
        self.vocabulary = self._tokenizer.get_vocab_size()
        if dropout:
            self._tokenizer.model.dropout = dropout
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.enable_padding(pad_id=self.end, pad_token=END, length=TOKENS_MAX)

    def __call__(self, captions: list[str]) -> list[list[int]]:
        """int ids [len(captions), 77]; longer captions are cut (the serving side chunks instead)."""
        return [e.ids for e in self._tokenizer.encode_batch(captions)]
