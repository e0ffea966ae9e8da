"""Published models become bundles: whole ones exactly, broken ones not at all, and with the reason."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ldm_checkpoint import save_single_file
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, NATIVE_SIZE, new_pipeline, save_folder

from atelier_trainer.__main__ import main
from atelier_trainer.importing import figures
from atelier_trainer.importing.clip_vocabulary import read_vocabulary
from atelier_trainer.importing.refusal import ImportRefused
from atelier_trainer.importing.single_file import family_of, open_checkpoint

TOKENIZERS = {"sd1": ["tokenizer"], "sd2": ["tokenizer"], "sdxl": ["tokenizer", "tokenizer_2"]}
HALF, FLOAT, INT64 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def run_import(*arguments: object) -> int:
    return main(["--threads", "2", "import", *map(str, arguments)])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sd1/`, `sd2/`, `sdxl/` as diffusers folders and `sd1.safetensors`, ... as single files of the same weights."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        pipeline = new_pipeline(family, root / family)
        save_folder(pipeline, root / family)
        save_single_file(pipeline, root / f"{family}.safetensors")
    return root


@pytest.fixture(scope="session")
def bundles(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    for family in FAMILIES:
        assert run_import(models / family, "--out", root / family, "--name", f"Tiny {family}") == 0
    return root


@pytest.fixture
def sd1(models: Path, tmp_path: Path) -> Path:
    """A folder of one's own, to break."""
    return Path(shutil.copytree(models / "sd1", tmp_path / "sd1"))


def manifest_of(bundle: Path) -> dict:
    return json.loads((bundle / "atelier.json").read_text(encoding="utf-8"))


def digests(bundle: Path, *folders: str) -> dict[str, str]:
    return {name: part["sha256"] for name, part in manifest_of(bundle)["parts"].items() if name.startswith(folders)}


GRAPHS = ("text_encoder/model", "text_encoder_2/model", "unet/model", "vae_decoder/model", "vae_encoder/model")


def ports(graph: onnx.GraphProto) -> dict[str, tuple]:
    values = (*graph.input, *graph.output)
    shape = lambda v: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)  # noqa: E731
    return {v.name: (v.type.tensor_type.elem_type, shape(v)) for v in values}


# --- What is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_becomes_a_bundle_whose_manifest_names_every_file(bundles: Path, family: str) -> None:
    bundle, manifest = bundles / family, manifest_of(bundles / family)
    assert (manifest["id"], manifest["name"], manifest["family"]) == (family, f"Tiny {family}", family)
    assert manifest["nativeSize"] == {"width": NATIVE_SIZE, "height": NATIVE_SIZE}
    files = {f.relative_to(bundle).as_posix() for f in bundle.rglob("*") if f.is_file()} - {"atelier.json"}
    assert set(manifest["parts"]) == files
    for name, part in manifest["parts"].items():
        content = (bundle / name).read_bytes()
        assert part == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}, name
    networks = {"text_encoder", "unet", "vae_decoder", "vae_encoder"} | ({"text_encoder_2"} if family == "sdxl" else set())
    assert {name.removesuffix("/model.onnx") for name in files if name.endswith(".onnx")} == networks
    for folder in TOKENIZERS[family]:
        assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {f.name for f in (bundle / folder).iterdir()}


def test_configs_are_the_source_s_own_bytes(models: Path, bundles: Path) -> None:
    pairs = {"unet/config.json": "unet/config.json", "vae/config.json": "vae_decoder/config.json",
             "scheduler/scheduler_config.json": "scheduler/scheduler_config.json", "tokenizer/vocab.json": "tokenizer/vocab.json"}
    for theirs, ours in pairs.items():
        assert (bundles / "sdxl" / ours).read_bytes() == (models / "sdxl" / theirs).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_take_and_give_what_the_worker_feeds_and_reads(bundles: Path, family: str) -> None:
    found = {f.parent.name: ports(onnx.load(str(f)).graph) for f in (bundles / family).rglob("model.onnx")}
    ids, image = (INT64, ("batch", "sequence")), lambda channels: (FLOAT, ("batch", channels, "height", "width"))
    width, hidden = (56 if family == "sdxl" else 32), lambda size: (FLOAT, ("batch", "sequence", size))
    unet = {"sample": image(4), "timestep": (FLOAT, ("batch",)), "encoder_hidden_states": hidden(width), "out_sample": image(4)}
    if family == "sdxl":
        unet |= {"text_embeds": (FLOAT, ("batch", 24)), "time_ids": (FLOAT, ("batch", 6))}
        assert found["text_encoder"] == {"input_ids": ids, "hidden_states.1": hidden(32)}
        assert found["text_encoder_2"] == {"input_ids": ids, "text_embeds": (FLOAT, ("batch", 24)), "hidden_states.2": hidden(24)}
    else:
        assert found["text_encoder"] == {"input_ids": ids, "last_hidden_state": hidden(32), "pooler_output": (FLOAT, ("batch", 32))}
    assert found["unet"] == unet
    assert found["vae_decoder"] == {"latent_sample": image(4), "sample": image(3)}
    assert found["vae_encoder"] == {"sample": image(3), "latent_parameters": image(8)}


def test_sdxl_graphs_give_what_the_diffusers_pipeline_computes(models: Path, bundles: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(models / "sdxl", add_watermarker=False)
    expected, _, pooled, _ = pipeline.encode_prompt("a red mug!", do_classifier_free_guidance=False, device="cpu")
    outputs = {}
    for name, tokenizer in (("text_encoder", pipeline.tokenizer), ("text_encoder_2", pipeline.tokenizer_2)):
        ids = tokenizer("a red mug!", padding="max_length", max_length=77, return_tensors="np").input_ids.astype(np.int64)
        session = onnxruntime.InferenceSession(str(bundles / "sdxl" / name / "model.onnx"))
        names = [o.name for o in session.get_outputs()]
        outputs |= {f"{name}:{key}": value for key, value in zip(names, session.run(None, {"input_ids": ids}), strict=True)}
    ours = np.concatenate([outputs["text_encoder:hidden_states.1"], outputs["text_encoder_2:hidden_states.2"]], -1)
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(outputs["text_encoder_2:text_embeds"], pooled.detach().numpy(), atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_gives_the_same_graphs_as_the_folder(models: Path, bundles: Path, family: str, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert run_import(models / f"{family}.safetensors", "--out", out, "--configs", models / family) == 0
    assert manifest_of(out)["family"] == family
    assert digests(out, *GRAPHS) == digests(bundles / family, *GRAPHS)
    for folder in TOKENIZERS[family]:
        ours, theirs = (json.loads((b / folder / "tokenizer_config.json").read_text()) for b in (out, bundles / family))
        assert ours["pad_token"] == theirs["pad_token"]
        assert json.loads((out / folder / "vocab.json").read_text()) == json.loads((bundles / family / folder / "vocab.json").read_text())


def test_progress_goes_up_to_a_hundred_percent_and_tells_the_difference_from_torch(models: Path, tmp_path: Path, capfd) -> None:
    assert run_import(models / "sd1", "--out", tmp_path / "out") == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("[")]
    percents = [int(line[1:4]) for line in lines]
    assert percents == sorted(percents) and (percents[0], percents[-1]) == (0, 100)
    assert sum("differs from torch by" in line for line in lines) == 4


def test_half_precision_is_inside_only_and_never_in_the_arithmetic_of_sdxls_vae(models: Path, tmp_path: Path) -> None:
    assert run_import(models / "sdxl", "--out", tmp_path / "half", "--fp16") == 0
    for name in ("unet", "text_encoder", "text_encoder_2"):
        graph = onnx.load(str(tmp_path / "half" / name / "model.onnx")).graph
        assert {i.data_type for i in graph.initializer if len(i.dims) > 0} == {HALF}, name
        assert {kind for kind, _ in ports(graph).values()} <= {FLOAT, INT64}, name
    # Its weights are float16, and each passes a Cast before anything is computed with it.
    vae = onnx.load(str(tmp_path / "half/vae_decoder/model.onnx")).graph
    halves = {i.name for i in vae.initializer if i.data_type == HALF}
    users = {node.op_type for node in vae.node if halves.intersection(node.input)}
    assert halves and users == {"Cast"}


def test_weights_can_lie_beside_the_graph_as_parts_of_the_bundle(models: Path, bundles: Path, tmp_path: Path) -> None:
    assert run_import(models / "sd1", "--out", tmp_path / "out", "--external-data") == 0
    parts = manifest_of(tmp_path / "out")["parts"]
    assert parts["unet/model.onnx_data"]["bytes"] > 100_000
    feed = {"latent_sample": np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)}
    pictures = [onnxruntime.InferenceSession(str(b / "vae_decoder/model.onnx")).run(None, feed)[0] for b in (tmp_path / "out", bundles / "sd1")]
    np.testing.assert_array_equal(*pictures)


# --- What published folders look like ---------------------------------------------------------------------------------


def test_names_of_older_releases_are_read(models: Path, bundles: Path, sd1: Path, tmp_path: Path) -> None:
    """Text encoders saved with a `text_model.` prefix and position_ids, VAEs whose attention says query, key, value."""
    text = load_file(sd1 / "text_encoder/model.safetensors")
    old = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in text.items()}
    save_file({**old, "text_model.embeddings.position_ids": torch.arange(77)[None]}, sd1 / "text_encoder/model.safetensors", {"format": "pt"})
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = load_file(sd1 / "vae/diffusion_pytorch_model.safetensors")
    for new, before in names.items():
        vae = {key.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): value for key, value in vae.items()}
    save_file(vae, sd1 / "vae/diffusion_pytorch_model.safetensors", {"format": "pt"})
    assert run_import(sd1, "--out", tmp_path / "out") == 0
    assert digests(tmp_path / "out", *GRAPHS) == digests(bundles / "sd1", *GRAPHS)


def test_a_float16_variant_serves_where_there_is_no_other(bundles: Path, sd1: Path, tmp_path: Path) -> None:
    whole = sd1 / "unet/diffusion_pytorch_model.safetensors"
    save_file({key: value.half() for key, value in load_file(whole).items()}, sd1 / "unet/diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    whole.unlink()
    assert run_import(sd1, "--out", tmp_path / "out") == 0
    # The weights are ones that float16 holds, so nothing is lost and the graphs are the same.
    assert digests(tmp_path / "out", *GRAPHS) == digests(bundles / "sd1", *GRAPHS)


@pytest.mark.parametrize(("part", "network", "parameters"), [
    ("sd1", "unet", 859_520_964), ("sd2", "unet", 865_910_724), ("sdxl", "unet", 2_567_463_684), ("sd1", "vae", 83_653_863),
    ("sdxl", "vae", 83_653_863), ("sd1", "text_encoder", 123_060_480), ("sd2", "text_encoder", 340_387_840),
    ("sdxl", "text_encoder", 123_060_480), ("sdxl", "text_encoder_2", 694_659_840),
])
def test_published_figures_make_networks_of_the_published_sizes(part: str, network: str, parameters: int) -> None:
    import diffusers
    import transformers

    config = figures.configs_of(part)[network]
    with torch.device("meta"):
        if network in ("unet", "vae"):
            module = (diffusers.UNet2DConditionModel if network == "unet" else diffusers.AutoencoderKL).from_config(config)
        else:
            cls = getattr(transformers, config["architectures"][0])
            module = cls(cls.config_class(**config))
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize(("family", "marks", "prediction", "found", "size"), [
    ("sd1", [], None, "epsilon", 512), ("sd2", [], None, "v_prediction", 768), ("sd2", [], "epsilon", "epsilon", 512),
    ("sdxl", [], None, "epsilon", 1024), ("sdxl", ["v_pred"], None, "v_prediction", 1024),
])
def test_a_single_file_is_taken_for_its_family_s_usual_model_unless_told_otherwise(
        models: Path, tmp_path: Path, family: str, marks: list[str], prediction: str | None, found: str, size: int) -> None:
    weights = load_file(models / f"{family}.safetensors") | {mark: torch.zeros(0) for mark in marks}
    save_file(weights, tmp_path / "file.safetensors")
    source = open_checkpoint(tmp_path / "file.safetensors", models / "sd1/tokenizer", prediction=prediction)
    assert (source.family, source.prediction, source.native_size) == (family, found, size)


def test_openai_s_list_of_merges_is_a_vocabulary_too(models: Path, tmp_path: Path) -> None:
    folder = models / "sd1/tokenizer"
    merges = (folder / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress(merges.encode()))
    assert read_vocabulary(tmp_path / "bpe.txt.gz") == read_vocabulary(folder)
    assert read_vocabulary(folder)[0]["!"] == 0


def test_a_part_that_another_bundle_has_is_borrowed_and_not_written_again(models: Path, bundles: Path, sd1: Path, tmp_path: Path) -> None:
    assert run_import(sd1, "--out", tmp_path / "out", "--id", "borrower", "--vae-from", bundles / "sd1", "--text-encoder-from", bundles / "sd1") == 0
    manifest = manifest_of(tmp_path / "out")
    assert set(manifest["uses"]) == {"text_encoder", "vae_decoder", "vae_encoder"}
    theirs = sorted(digests(bundles / "sd1", "text_encoder/", "tokenizer/").items())
    text = "".join(f"{sha256}  {name}\n" for name, sha256 in theirs)
    assert manifest["uses"]["text_encoder"] == {"bundle": "sd1", "digest": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"}
    assert {name.split("/")[0] for name in manifest["parts"]} == {"model_index.json", "scheduler", "unet"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"atelier.json", "model_index.json", "scheduler", "unet"}


# --- What is refused, and how -----------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path, capfd):
    """Runs an import that must fail; returns its message. Nothing may be left beside what was there."""

    def check(*arguments: object) -> str:
        before = {p.name for p in tmp_path.iterdir()}
        assert run_import(*arguments, "--out", tmp_path / "refused") == 1
        assert {p.name for p in tmp_path.iterdir()} == before
        error = capfd.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return check


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt", "model.PTH"])
def test_pickles_are_refused_by_name_and_never_opened(refused, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    assert f"{name} is a pickle by its name" in refused(tmp_path / name)


def test_a_folder_with_pickles_in_the_place_of_safetensors_is_refused(refused, sd1: Path) -> None:
    (sd1 / "unet/diffusion_pytorch_model.safetensors").rename(sd1 / "unet/diffusion_pytorch_model.bin")
    assert "unet/diffusion_pytorch_model.bin is a pickle by its name" in refused(sd1)


def test_a_truncated_file_is_named(refused, models: Path, sd1: Path, tmp_path: Path) -> None:
    weights = sd1 / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "vae/diffusion_pytorch_model.safetensors is truncated or no safetensors file" in refused(sd1)
    (tmp_path / "cut.safetensors").write_bytes((models / "sd1.safetensors").read_bytes()[:5000])
    assert "cut.safetensors is truncated or no safetensors file" in refused(tmp_path / "cut.safetensors", "--configs", sd1)


def test_what_is_missing_or_no_model_is_named(refused, sd1: Path, tmp_path: Path) -> None:
    assert "nowhere does not exist" in refused(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("a model")
    assert "notes.txt is not a .safetensors file" in refused(tmp_path / "notes.txt")
    (sd1 / "scheduler/scheduler_config.json").unlink()
    assert "scheduler/scheduler_config.json is missing" in refused(sd1)
    (sd1 / "model_index.json").write_text("{")
    assert "model_index.json is not JSON" in refused(sd1)


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(("file", "fields", "says"), [
    ("model_index.json", {"_class_name": "FluxPipeline"}, "model_index.json: _class_name is 'FluxPipeline', an architecture that cannot be imported"),
    ("model_index.json", {"unet": ["diffusers", "UNet3DConditionModel"]}, "model_index.json: unet is ['diffusers', 'UNet3DConditionModel']"),
    ("model_index.json", {"text_encoder": [None, None]}, "model_index.json: text_encoder is absent"),
    ("unet/config.json", {"in_channels": 9}, "unet/config.json: in_channels is 9, the VAE's latent_channels 4 (inpainting"),
    ("unet/config.json", {"time_cond_proj_dim": 8}, "unet/config.json: time_cond_proj_dim is 8"),
    ("unet/config.json", {"cross_attention_dim": 768}, "unet/config.json: cross_attention_dim is 768, the text encoders' hidden_size [32]"),
    ("unet/config.json", {"block_out_channels": [8, 16, 16, 32]}, "unet: its weights do not fit its config.json"),
    ("vae/config.json", {"latents_mean": [0.0] * 4}, "vae/config.json: latents_mean is set"),
    ("vae/config.json", {"block_out_channels": [8, 8, 16]}, "vae/config.json: block_out_channels is [8, 8, 16]"),
])
def test_an_architecture_that_is_not_served_is_refused_by_file_and_field(refused, sd1: Path, file: str, fields: dict, says: str) -> None:
    change(sd1 / file, **fields)
    assert says in refused(sd1)


def test_weights_that_are_missing_or_not_finite_are_named(refused, sd1: Path) -> None:
    file = sd1 / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({key: value for key, value in weights.items() if key != "conv_out.bias"}, file, {"format": "pt"})
    assert "unet: 1 weights are missing for its config.json; the first is conv_out.bias" in refused(sd1)
    weights["conv_out.bias"][1] = float("nan")
    save_file(weights, file, {"format": "pt"})
    assert "unet: the weight conv_out.bias holds a number that is not finite" in refused(sd1)


@pytest.mark.parametrize(("keys", "says"), [
    (["lora_unet_down_blocks_0.lora_down.weight"], "is a LoRA adapter"),
    (["double_blocks.0.img_attn.norm.key_norm.scale"], "is a FLUX transformer"),
    (["conditioner.embedders.0.model.ln_final.bias", "model.diffusion_model.out.0.bias"], "is the SDXL refiner"),
    (["down_blocks.0.resnets.0.conv1.bias"], "is one network of a diffusers folder"),
    (["encoder.layer.0.weight"], "has no U-Net: no weight begins with model.diffusion_model. (its first is encoder.layer.0.weight)"),
    (["model.diffusion_model.out.0.bias", "first_stage_model.x"], "has no text encoder that is known"),
    (["model.diffusion_model.out.0.bias", "cond_stage_model.transformer.x"], "has no VAE"),
])
def test_a_single_file_of_another_kind_is_called_what_it_is(keys: list[str], says: str) -> None:
    with pytest.raises(ImportRefused) as error:
        family_of(dict.fromkeys(keys, (1,)), "file.safetensors")
    assert says in str(error.value)


def test_single_files_need_a_vocabulary_and_the_published_figures(refused, models: Path, sd1: Path, tmp_path: Path) -> None:
    single = models / "sd1.safetensors"
    assert "sd1.safetensors holds no tokenizer" in refused(single)
    # Of the tiny model every shape differs from the published one.
    message = refused(single, "--tokenizer", models / "sd1/tokenizer")
    assert "has the shape" in message and "--configs names a folder with other figures" in message
    weights = load_file(single)
    weights["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 9, 3, 3)
    save_file(weights, tmp_path / "inpainting.safetensors")
    assert "takes 9 channels, so it is an inpainting" in refused(tmp_path / "inpainting.safetensors", "--configs", sd1)
    del weights["model.diffusion_model.input_blocks.0.0.weight"]
    save_file(weights, tmp_path / "gap.safetensors")
    assert "gap.safetensors: unet lacks a weight of this family's: conv_in.weight" in refused(tmp_path / "gap.safetensors", "--configs", sd1)


def test_an_existing_folder_is_replaced_only_by_force_and_only_if_it_is_a_bundle(models: Path, bundles: Path, sd1: Path, tmp_path: Path, capfd) -> None:
    out = Path(shutil.copytree(bundles / "sd2", tmp_path / "out"))
    assert run_import(models / "sd1", "--out", out) == 1
    assert f"--out: {out} exists; --force replaces it" in capfd.readouterr().err
    assert manifest_of(out)["family"] == "sd2"
    # A failure on the way leaves the old one whole.
    change(sd1 / "unet/config.json", in_channels=9)
    assert run_import(sd1, "--out", out, "--force") == 1
    assert manifest_of(out) == manifest_of(bundles / "sd2")
    assert run_import(models / "sd1", "--out", out, "--force") == 0
    assert manifest_of(out)["family"] == "sd1" and not (out / "text_encoder_2").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.png").write_bytes(b"")
    assert run_import(models / "sd1", "--out", tmp_path / "photos", "--force") == 1
    assert "is no bundle" in capfd.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"out", "photos", "sd1"}


def test_a_part_is_not_borrowed_from_a_bundle_that_has_another(refused, models: Path, bundles: Path, tmp_path: Path) -> None:
    assert "vae_decoder cannot be borrowed from sdxl: vae_decoder/config.json is not the same file there" in refused(
        models / "sd1", "--vae-from", bundles / "sdxl")
    assert "--vae-from: " in refused(models / "sd1", "--vae-from", models / "sdxl")
    assert "--id: 'A B' must be" in refused(models / "sd1", "--id", "A B")
