"""Eight-bit bundles: closed-form scales, graphs that compute what they should, a keep-list that grows, nothing half-written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from atelier_trainer.__main__ import main
from atelier_trainer.config import TOY, Workspace
from atelier_trainer.export import export_bundle
from atelier_trainer.quantize import graph
from atelier_trainer.quantize.keep_list import Measured, TooLarge, choose, worst_first
from atelier_trainer.quantize.runner import Runner, open_session
from atelier_trainer.quantize.weights import quantize_per_channel, rounded

TOKENIZER = Path(__file__).parents[3] / "deploy/models/atelier-tiny/tokenizer"
MODES = ("weight-only", "dynamic")
# The toy's layers are so small that what is around the weights weighs as much as they do.
LOOSE = ("--size-max", "0.6", "--half-size-max", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("random")
    shutil.copytree(TOKENIZER, root / "work/tokenizer")
    export_bundle(Workspace(root / "work", TOY), root / "bundle", untrained=True)
    return root / "bundle"


def quantize(bundle: Path, out: Path, *options: str) -> int:
    return main(["--threads", "1", "quantize", str(bundle), "--out", str(out), "--json", *LOOSE, *options])


@pytest.fixture(scope="module")
def int8(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both modes, with two layers kept: no quality is high enough."""
    outs = {mode: tmp_path_factory.mktemp("int8") / mode for mode in MODES}
    for mode, out in outs.items():
        assert quantize(bundle, out, "--mode", mode, "--keep-max", "2", "--quality-min", "98") == 0
    return outs


def test_a_channels_scale_is_its_largest_weight_over_127_and_rounding_is_off_by_half_of_it() -> None:
    weights = np.random.default_rng(1).normal(size=(6, 5, 3, 3)).astype(np.float32)
    weights[2] = 0
    for axis in (0, 1):
        steps, scales = quantize_per_channel(weights, axis)
        channels, codes = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1), np.moveaxis(steps, axis, 0)
        expected = [np.abs(channel).max() / np.float32(127) or 1 for channel in channels]
        np.testing.assert_allclose(scales, expected, rtol=1e-7)
        assert steps.dtype == np.int8 and steps.min() >= -127
        for channel, code, scale in zip(channels, codes, scales, strict=True):
            assert np.abs(code.ravel() * scale - channel).max() <= scale / 2 * (1 + 1e-5)
            assert not channel.any() or np.abs(code).max() == 127


@pytest.mark.parametrize("mode", MODES)
def test_every_int8_weight_of_a_bundle_has_the_closed_form_scales_of_the_original(bundle: Path, int8: dict, mode: str) -> None:
    keep = set(json.loads((int8[mode] / "atelier.json").read_text())["trained"]["quantised"]["keep"])
    assert len(keep) == 2
    for network in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        original = graph.load_folded(bundle / network / "model.onnx")
        values = {t.name: numpy_helper.to_array(t) for t in original.graph.initializer}
        layers = {layer.weight: layer for layer in graph.layers_of(original)}
        made = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(int8[mode] / network / "model.onnx")).graph.initializer}
        quantised = {name.removesuffix(".int8") for name in made if name.endswith(".int8")}
        assert quantised == {name for name in layers if f"{network}/{name}" not in keep}
        for name in quantised:
            axis, weights = layers[name].axis, values[name]
            others = tuple(i for i in range(weights.ndim) if i != axis)
            scales = made[f"{name}.scale"].ravel()
            np.testing.assert_allclose(scales, np.abs(weights).max(axis=others) / 127, rtol=1e-6, err_msg=name)
            assert made[f"{name}.int8"].nbytes == weights.size
        for path in keep:
            owner, _, name = path.partition("/")
            if owner == network:
                np.testing.assert_array_equal(made[f"{name}.half"].astype(np.float32), values[name])


def test_a_weight_only_graph_computes_what_the_original_computes_with_rounded_weights(bundle: Path, int8: dict) -> None:
    keep = set(json.loads((int8["weight-only"] / "atelier.json").read_text())["trained"]["quantised"]["keep"])
    model = graph.load_folded(bundle / "unet/model.onnx")
    axes = {layer.weight: layer.axis for layer in graph.layers_of(model) if f"unet/{layer.weight}" not in keep}
    for tensor in model.graph.initializer:
        if tensor.name in axes:
            tensor.CopyFrom(numpy_helper.from_array(rounded(numpy_helper.to_array(tensor), axes[tensor.name]), tensor.name))
    rng = np.random.default_rng(2)
    feeds = {"sample": rng.normal(size=(2, 4, 9, 11)), "timestep": np.array([999, 10.5]), "encoder_hidden_states": rng.normal(size=(2, 77, 128))}
    feeds = {name: values.astype(np.float32) for name, values in feeds.items()}
    expected = open_session(model.SerializeToString(), 1).run(None, feeds)[0]
    actual = open_session(int8["weight-only"] / "unet/model.onnx", 1).run(None, feeds)[0]
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_dynamic_arithmetic_is_that_of_the_onnx_standard(op: str) -> None:
    rng = np.random.default_rng(3)
    x, w, b = rng.normal(size=(7, 64)), rng.normal(size=(64, 48)) * np.logspace(-2, 0, 48), rng.normal(size=48)
    x, w, b = (values.astype(np.float32) for values in (x, w, b))
    gemm = op == "Gemm"
    node = helper.make_node(op, ["x", "w", "b"] if gemm else ["x", "w"], ["y"], **({"transB": 1} if gemm else {}))
    floats = lambda name, dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)  # noqa: E731
    stored = [numpy_helper.from_array(np.ascontiguousarray(w.T if gemm else w), "w"), numpy_helper.from_array(b, "b")]
    model = helper.make_model(helper.make_graph([node], "g", [floats("x", [7, 64])], [floats("y", [7, 48])], stored),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = graph.quantize(model, graph.layers_of(model), (), dynamic=True)
    assert "MatMulInteger" in [n.op_type for n in result.graph.node]
    # DynamicQuantizeLinear, as the standard has it: 0 is in the range, and has a step of its own.
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    steps, scales = quantize_per_channel(w, 1)
    expected = ((codes - zero) @ steps.astype(np.float64)) * scale * scales + (b if gemm else 0)
    np.testing.assert_allclose(open_session(result.SerializeToString(), 1).run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - (x @ w + (b if gemm else 0))).max() > 1e-3, "eight bits do make a difference here"


@pytest.mark.parametrize("mode", MODES)
def test_a_bundle_gets_smaller_and_its_manifest_holds(bundle: Path, int8: dict, mode: str) -> None:
    out = int8[mode]
    before, after = (json.loads((folder / "atelier.json").read_text()) for folder in (bundle, out))
    assert (after["id"], after["name"]) == ("atelier-tiny-int8", "Atelier Tiny INT8")
    assert after["trained"]["quantised"]["mode"] == mode
    assert {**after, "id": 0, "name": 0, "parts": 0, "trained": 0} == {**before, "id": 0, "name": 0, "parts": 0, "trained": 0}
    files = {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()} - {"atelier.json"}
    assert files == set(after["parts"]) == set(before["parts"])
    changed = set()
    for name, part in after["parts"].items():
        content = (out / name).read_bytes()
        assert (part["sha256"], part["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content)), name
        if content != (bundle / name).read_bytes():
            changed.add(name)
    assert changed == {f"{n}/model.onnx" for n in ("text_encoder", "unet", "vae_decoder", "vae_encoder")}
    assert sum(after["parts"][n]["bytes"] for n in changed) < 0.75 * sum(before["parts"][n]["bytes"] for n in changed)


def test_pictures_are_nearly_the_originals_and_closer_without_rounded_activations(bundle: Path, int8: dict) -> None:
    size = (128, 128)
    draw = lambda folder: Runner(folder, 1).pictures(["a red mug", "蓝色马克杯"], steps=3, seed=5, size=size).astype(float)  # noqa: E731
    truth, made = draw(bundle), {mode: draw(folder) for mode, folder in int8.items()}
    errors = {mode: float(((pictures - truth) ** 2).mean()) for mode, pictures in made.items()}
    assert 0 < errors["weight-only"] < errors["dynamic"] < 25, errors


def test_one_seed_gives_one_picture_whoever_shares_the_batch_except_with_rounded_activations(int8: dict) -> None:
    def alike(folder: Path) -> bool:
        runner = Runner(folder, 1)
        both = runner.pictures(["a red mug", "蓝色马克杯"], steps=2, seed=5, size=(128, 128))
        return np.array_equal(both[1:], runner.pictures(["蓝色马克杯"], steps=2, seed=6, size=(128, 128)))

    # One scale for the whole tensor of activations, and a batch is one tensor: why weight-only is the default.
    assert {mode: alike(folder) for mode, folder in int8.items()} == {"weight-only": True, "dynamic": False}


LAYERS = [Measured("unet", f"layer{i}", error, size) for i, (error, size) in enumerate([(1.0, 100), (8.0, 100), (4.0, 10), (0.5, 1), (0.1, 50)])]


def kept(quality_min: float, **limits: int) -> list[str]:
    """Each kept layer takes its error away."""
    quality = lambda keep: 20.0 - sum(m.error for m in LAYERS if m not in keep)  # noqa: E731
    choice = choose(LAYERS, bytes_all_int8=1000, **{"bytes_max": 5000, **limits}, quality_min=quality_min, quality_of=quality)
    assert choice.quality == pytest.approx(quality(choice.keep))
    assert choice.bytes_total == 1000 + sum(m.bytes_saved for m in choice.keep)
    assert choice.met == (choice.quality >= quality_min)
    return [m.name for m in choice.keep]


def test_layers_are_kept_by_error_per_byte_until_the_quality_is_reached_and_no_further() -> None:
    assert [m.name for m in worst_first(LAYERS)] == ["layer3", "layer2", "layer1", "layer0", "layer4"]
    assert kept(6) == []
    assert kept(10) == ["layer3", "layer2"]
    assert kept(12) == ["layer3", "layer2", "layer1"]
    assert kept(20) == ["layer3", "layer2", "layer1", "layer0", "layer4"]


def test_more_quality_never_drops_a_layer() -> None:
    lists = [kept(quality / 4) for quality in range(0, 100)]
    for shorter, longer in zip(lists, lists[1:]):
        assert longer[: len(shorter)] == shorter


def test_the_size_and_the_length_of_the_list_are_limits() -> None:
    assert kept(20, keep_max=1) == ["layer3"]
    assert kept(20, bytes_max=1111) == ["layer3", "layer2", "layer1"]
    assert kept(20, bytes_max=1110) == ["layer3", "layer2"]
    assert kept(20, bytes_max=1000) == []
    with pytest.raises(TooLarge, match="1000 bytes, and 999"):
        kept(20, bytes_max=999)


@pytest.mark.parametrize(("options", "complaint"), [
    (("--size-max", "0.1"), "with every layer in eight bits"),
    (("--size-max", "1.5"), "--size-max is 1.5"),
    (("--keep-max", "-1"), "--keep-max is -1"),
])
def test_what_cannot_be_done_is_said_and_leaves_nothing(bundle: Path, tmp_path: Path, capsys, options: tuple, complaint: str) -> None:
    assert quantize(bundle, tmp_path / "out", *options) == 1
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bundles_that_cannot_be_quantised_are_named_with_the_reason(bundle: Path, int8: dict, tmp_path: Path, capsys) -> None:
    def complaint(folder: Path, out: Path) -> str:
        assert quantize(folder, out) == 1
        return capsys.readouterr().err

    assert "no such bundle" in complaint(tmp_path / "nowhere", tmp_path / "out")
    assert "atelier-tiny-int8 is already quantised" in complaint(int8["weight-only"], tmp_path / "out")
    (tmp_path / "there").mkdir()
    assert "exists already" in complaint(bundle, tmp_path / "there")
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    (broken / "unet/model.onnx").write_bytes((bundle / "unet/model.onnx").read_bytes()[:5000])
    assert "unet/model.onnx is not a whole ONNX file" in complaint(broken, tmp_path / "out")
    manifest = json.loads((broken / "atelier.json").read_text())
    (broken / "atelier.json").write_text(json.dumps({**manifest, "uses": {"vae_decoder": {"bundle": "x"}}}))
    assert "borrows vae_decoder" in complaint(broken, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "there"]
