"""`python -m atelier_trainer import SOURCE --out DIR`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

DESCRIPTION = """Writes a bundle that Atelier serves from a published model: a diffusers folder, or a single-file
.safetensors checkpoint, of Stable Diffusion 1.x, 2.x or XL. Works offline. Pickles (.bin, .ckpt, .pt) are refused."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("source", type=Path, help="diffusers folder or .safetensors file")
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to write")
    parser.add_argument("--force", action="store_true", help="replace the bundle that is there")
    parser.add_argument("--id", help="what requests call the model (default: from the source's name)")
    parser.add_argument("--name", help="what people call it (default: the id)")
    parser.add_argument("--license", help="for the manifest (default: what the model card says)")
    parser.add_argument("--fp16", action="store_true", help="float16 weights and arithmetic, for GPUs; inputs and outputs stay float32, "
                        "as does the arithmetic of SDXL's VAE, which overflows")
    parser.add_argument("--external-data", action="store_true", help="weights beside each graph, as is always done over 1 GiB")
    parser.add_argument("--family", choices=("sd1", "sd2", "sdxl"), help="of a diffusers folder, where it cannot be told (default: from its config)")
    parser.add_argument("--text-encoder-from", type=Path, metavar="BUNDLE", help="borrow the text encoder and tokenizer from a bundle that has the same")
    parser.add_argument("--vae-from", type=Path, metavar="BUNDLE", help="borrow the VAE from a bundle that has the same")
    single = parser.add_argument_group("for single files")
    single.add_argument("--tokenizer", type=Path, help="CLIP's vocabulary: a tokenizer folder, or OpenAI's bpe_simple_vocab_16e6.txt.gz")
    single.add_argument("--configs", type=Path, metavar="FOLDER", help="diffusers folder whose config.json files replace the published figures")
    single.add_argument("--prediction", choices=("epsilon", "v_prediction"),
                        help="what the U-Net predicts, which no weight tells (default: v_prediction for 2.x at 768 px, else epsilon)")


def run(args: argparse.Namespace) -> int:
    """The exit code: 0, or 1 with the reason on standard error."""
    from .refusal import ImportRefused

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that what is unfinished is cleared away
    try:
        _import(args)
    except ImportRefused as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _import(args: argparse.Namespace) -> None:
    from .refusal import ImportRefused
    from .source import refuse_pickle

    if not args.source.exists():
        raise ImportRefused(f"{args.source} does not exist")
    if args.source.is_file():
        refuse_pickle(args.source, args.source.name)
        if args.source.suffix.lower() != ".safetensors":
            raise ImportRefused(f"{args.source.name} is not a .safetensors file, nor a diffusers folder")

    import diffusers
    import transformers

    from .borrowing import read_lender
    from .diffusers_folder import open_folder
    from .importer import Wishes, write_bundle
    from .manifest import ID, id_from
    from .single_file import open_checkpoint

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    lenders = {}
    if args.text_encoder_from is not None:
        lenders["text_encoder"] = read_lender(args.text_encoder_from, "--text-encoder-from")
    if args.vae_from is not None:
        lenders |= dict.fromkeys(("vae_decoder", "vae_encoder"), read_lender(args.vae_from, "--vae-from"))
    id = args.id or id_from(args.source.resolve().stem if args.source.is_file() else args.source.resolve().name)
    if not ID.fullmatch(id):
        raise ImportRefused(f"--id: {id!r} must be 1 to 64 of a-z, 0-9, '.', '_', '-', and begin with a letter or digit")
    if args.source.is_file():
        source = open_checkpoint(args.source, args.tokenizer, args.configs, args.prediction)
    else:
        source = open_folder(args.source, args.fp16, args.family)
    what = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}[source.family]
    print(f"{args.source.name}: {what}, {source.native_size} px, {source.prediction}, {sum(source.sizes.values()) / 1e6:.1f} MB of weights", flush=True)
    write_bundle(source, args.out, Wishes(
        id=id, name=args.name or id, half=args.fp16, external_data=args.external_data, force=args.force,
        license=args.license or source.license, lenders=lenders, origin=args.source.name,
    ))
