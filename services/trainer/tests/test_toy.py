"""A minute-long toy run of every phase: what is exported is what was trained, and onnxruntime computes the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from atelier_trainer.__main__ import main
from atelier_trainer.export import load_bundle, parity
from atelier_trainer.tokenizer import CaptionTokenizer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    assert main(["--work", str(root / "work"), "--threads", "2", "toy", "--out", str(root / "bundle")]) == 0
    return root / "bundle"


def test_torch_and_onnxruntime_agree_at_native_and_odd_sizes(bundle: Path) -> None:
    worst = parity(bundle)
    assert set(worst) == {"text_encoder", "unet", "vae_decoder", "vae_encoder", "clip/text_model", "clip/vision_model"}
    assert max(worst.values()) <= 1e-4, worst


def test_manifest_names_every_file_by_its_digest(bundle: Path) -> None:
    parts = json.loads((bundle / "atelier.json").read_text())["parts"]
    files = {f.relative_to(bundle).as_posix() for f in bundle.rglob("*") if f.is_file()} - {"atelier.json", "README.md"}
    assert set(parts) == files
    for name, part in parts.items():
        content = (bundle / name).read_bytes()
        assert (part["sha256"], part["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content)), name


def test_weights_read_back_from_the_graphs_are_half_precision_values(bundle: Path) -> None:
    for name, module in load_bundle(bundle).items():
        for key, p in module.named_parameters():
            if key != "logit_scale":
                assert (p == p.half().float()).all(), f"{name}.{key}"


def test_configs_are_plain_json(bundle: Path) -> None:
    for path in bundle.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(f"{path}: {c}"))


@pytest.mark.parametrize("text", ["国潮风t恤, 白色背景", "🦄 émoji", "龘", "it's a mug"])
def test_any_script_survives_the_tokenizer(bundle: Path, text: str) -> None:
    tokenizer = CaptionTokenizer(bundle / "tokenizer")
    ids = [i for i in tokenizer([text])[0] if i not in (tokenizer.start, tokenizer.end)]
    letters = "".join(tokenizer._tokenizer.id_to_token(i).removesuffix("</w>") for i in ids)
    from atelier_trainer.tokenizer import byte_alphabet

    printable = list(range(ord("!"), ord("~") + 1)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    values = printable + [b for b in range(256) if b not in printable]
    to_byte = dict(zip(byte_alphabet(), values, strict=True))
    assert bytes(to_byte[c] for c in letters).decode("utf-8") == text.replace(" ", "")


def test_a_bundle_that_lacks_a_weight_is_refused(bundle: Path, tmp_path: Path) -> None:
    import shutil

    import onnx

    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    path = broken / "unet/model.onnx"
    model = onnx.load(str(path))
    gone = next(i for i in model.graph.initializer if i.name.startswith("conv_in.weight"))
    model.graph.initializer.remove(gone)
    onnx.save(model, str(path))
    with pytest.raises(KeyError, match="conv_in.weight"):
        load_bundle(broken)
