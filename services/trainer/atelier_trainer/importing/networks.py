"""The graphs of a bundle: what each network is fed, what it gives, and how it is traced."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..graphs import TextEncoderGraph, UnetGraph, VaeDecoderGraph, VaeEncoderGraph
from .source import Source

# The network of a diffusers folder that each folder of the bundle is made from.
MADE_FROM = {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2", "unet": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}

# Odd numbers of latents: the trace then keeps the resize-to-skip branch, which every multiple of 8 px needs.
TRACED_LATENTS = (17, 19)
CHECKED_LATENTS = ((16, 16), (9, 24))
SEQUENCE = {0: "batch", 1: "sequence"}
IMAGE = {0: "batch", 2: "height", 3: "width"}


class _PenultimateTextEncoder(torch.nn.Module):
    """What SDXL reads: the last layer but one, before the final normalisation; and the projected pooled token if there is one."""

    def __init__(self, encoder: torch.nn.Module, pooled: bool) -> None:
        super().__init__()
        self.wrapped = encoder
        self._pooled = pooled

    def forward(self, input_ids):
        out = self.wrapped(input_ids=input_ids, output_hidden_states=True)
        return (out.text_embeds, out.hidden_states[-2]) if self._pooled else out.hidden_states[-2]


class _UnetXlGraph(torch.nn.Module):
    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.wrapped = unet

    def forward(self, sample, timestep, encoder_hidden_states, text_embeds, time_ids):
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.wrapped(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


class InHalf(torch.nn.Module):
    """Float16 arithmetic behind float32 inputs and outputs. `kept` inputs enter as they are: the sinusoids of timesteps
    and sizes would lose their place in float16."""

    def __init__(self, graph: torch.nn.Module, kept: tuple[bool, ...]) -> None:
        super().__init__()
        # Not a submodule of another name: weights keep their paths.
        self.wrapped = graph.wrapped
        self._graph = [graph.half()]
        self._kept = kept

    def forward(self, *inputs):
        outputs = self._graph[0](*(x if kept or not x.is_floating_point() else x.half() for x, kept in zip(inputs, self._kept)))
        return tuple(o.float() for o in outputs) if isinstance(outputs, tuple) else outputs.float()


@dataclass(frozen=True)
class Graph:
    """One graph to be: `inputs` to trace with, `checks` further feeds of other shapes to compare by."""

    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    checks: tuple[dict[str, torch.Tensor], ...]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]
    # Inputs that stay float32 inside a float16 graph too.
    kept: frozenset[str] = frozenset()

    def in_half(self) -> Graph:
        module = InHalf(self.module, tuple(name in self.kept for name in self.inputs))
        return Graph(module, self.inputs, self.checks, self.outputs, self.axes, self.kept)


def graphs_of(source: Source, network: str, module: torch.nn.Module) -> dict[str, Graph]:
    """The bundle's folders that come from one network of the source."""
    random = torch.Generator().manual_seed(3)
    if network == "vae":
        return {"vae_decoder": _vae_decoder(module, random), "vae_encoder": _vae_encoder(module, random)}
    return {network: _unet(source, module, random) if network == "unet" else _text_encoder(source, network, module, random)}


def _unet(source: Source, unet: torch.nn.Module, random: torch.Generator) -> Graph:
    config, two = unet.config, source.family == "sdxl"

    def feed(rows: int, height: int, width: int, tokens: int) -> dict[str, torch.Tensor]:
        values = {
            "sample": torch.randn(rows, config.in_channels, height, width, generator=random),
            # Fractional too, as Euler's linspace spacing has them; one per row.
            "timestep": torch.linspace(981, 10.5, rows),
            "encoder_hidden_states": torch.randn(rows, tokens, config.cross_attention_dim, generator=random),
        }
        if two:
            pooled = source.config("text_encoder_2")["projection_dim"]
            values["text_embeds"] = torch.randn(rows, pooled, generator=random)
            values["time_ids"] = torch.tensor([[1024.0, 768, 0, 0, 1024, 768]] * rows)
        return values

    axes = {"sample": IMAGE, "timestep": {0: "batch"}, "encoder_hidden_states": SEQUENCE, "out_sample": IMAGE}
    if two:
        axes |= {"text_embeds": {0: "batch"}, "time_ids": {0: "batch"}}
    (h1, w1), (h2, w2) = CHECKED_LATENTS
    # In float16 the sinusoids, and what is concatenated with them, are cast by the U-Net itself.
    kept = frozenset({"timestep", "text_embeds", "time_ids"})
    graph = _UnetXlGraph(unet) if two else UnetGraph(unet)
    return Graph(graph, feed(2, *TRACED_LATENTS, 77), (feed(1, h1, w1, 77), feed(3, h2, w2, 20)), ("out_sample",), axes, kept)


def _text_encoder(source: Source, name: str, encoder: torch.nn.Module, random: torch.Generator) -> Graph:
    config = encoder.config

    def feed(rows: int, tokens: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, config.vocab_size - 1, (rows, tokens), generator=random)
        ids[:, tokens // 2 :] = config.vocab_size - 1  # where CLIP's end token is, which pooling looks for
        return {"input_ids": ids}

    inputs, checks = feed(2, 77), (feed(1, 77), feed(3, 77))
    if source.family != "sdxl":
        outputs = ("last_hidden_state", "pooler_output")
        axes = {"input_ids": SEQUENCE, "last_hidden_state": SEQUENCE, "pooler_output": {0: "batch"}}
        return Graph(TextEncoderGraph(encoder), inputs, checks, outputs, axes)
    hidden = f"hidden_states.{config.num_hidden_layers - 1}"
    pooled = name == "text_encoder_2"
    outputs = ("text_embeds", hidden) if pooled else (hidden,)
    axes = {"input_ids": SEQUENCE, hidden: SEQUENCE} | ({"text_embeds": {0: "batch"}} if pooled else {})
    return Graph(_PenultimateTextEncoder(encoder, pooled), inputs, checks, outputs, axes)


def _vae_decoder(vae: torch.nn.Module, random: torch.Generator) -> Graph:
    def feed(rows: int, height: int, width: int) -> dict[str, torch.Tensor]:
        return {"latent_sample": torch.randn(rows, vae.config.latent_channels, height, width, generator=random)}

    checks = tuple(feed(i + 1, *size) for i, size in enumerate(CHECKED_LATENTS))
    return Graph(VaeDecoderGraph(vae), feed(2, *TRACED_LATENTS), checks, ("sample",), {"latent_sample": IMAGE, "sample": IMAGE})


def _vae_encoder(vae: torch.nn.Module, random: torch.Generator) -> Graph:
    def feed(rows: int, height: int, width: int) -> dict[str, torch.Tensor]:
        return {"sample": torch.rand(rows, 3, height * 8, width * 8, generator=random) * 2 - 1}

    checks = tuple(feed(i + 1, *size) for i, size in enumerate(CHECKED_LATENTS))
    return Graph(VaeEncoderGraph(vae), feed(2, *TRACED_LATENTS), checks, ("latent_parameters",), {"sample": IMAGE, "latent_parameters": IMAGE})
