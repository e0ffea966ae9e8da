"""The drawings: what a spec says is what is seen, at any size, every time; and captions never contradict it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atelier_trainer.drawing import BACKGROUNDS, COLOURS, PATTERNS, PRODUCTS, STYLES, Spec, caption, draw, sample_spec
from atelier_trainer.drawing.paint import BASE

GUOCHAO, RED = 1, 0


def specs(count: int, seed: int = 1) -> list[Spec]:
    rng = np.random.default_rng(seed)
    return [sample_spec(rng) for _ in range(count)]


def test_a_picture_is_rgb_and_the_same_every_time() -> None:
    for spec in specs(6):
        picture = draw(spec)
        assert (picture.shape, picture.dtype) == ((256, 256, 3), np.uint8)
        assert np.array_equal(picture, draw(spec))
        assert not np.array_equal(picture, draw(replace(spec, seed=spec.seed + 1)))


def test_one_scene_at_any_size() -> None:
    for spec in specs(12, seed=2):
        large = draw(spec, 512).astype(float).reshape(256, 2, 256, 2, 3).mean((1, 3))
        assert np.abs(large - draw(spec)).mean() < 3.0, spec


@pytest.mark.parametrize("product", range(len(PRODUCTS)), ids=[p.id for p in PRODUCTS])
def test_a_plain_product_is_mostly_of_its_colour(product: int) -> None:
    """Of the ten base colours, the one nearest to the middle of the picture is the spec's, shading and all."""
    hits = 0
    for colour in range(len(COLOURS)):
        picture = draw(Spec(product, colour, background=1, pattern=0, style=0, seed=40 + colour)).astype(float)
        middle = picture[100:170:5, 80:176:6].reshape(-1, 3)
        nearest = np.argmin(((middle[:, None] - np.array(BASE)[None]) ** 2).sum(-1), 1)
        counts = np.bincount(nearest, minlength=len(COLOURS))
        hits += int(colour in np.argsort(counts)[-2:])
    assert hits >= 8, f"{PRODUCTS[product].id}: {hits} of 10 colours"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_say_what_the_spec_says(language: str) -> None:
    rng = np.random.default_rng(5)
    named = 0
    for spec in specs(400, seed=6):
        text = caption(spec, rng, language)
        words = lambda term: getattr(term, language)  # noqa: E731
        assert any(word in text for word in words(PRODUCTS[spec.product])), text
        background = [b for b in BACKGROUNDS if any(word in text for word in words(b))]
        assert not background or BACKGROUNDS[spec.background] in background, text
        if spec.style:
            assert any(word in text for word in words(STYLES[spec.style])), text
        if spec.style == GUOCHAO and spec.colour != RED:
            assert any(word in text for word in words(COLOURS[spec.colour])), f"guochao without a colour means red: {text}"
        for pattern in PATTERNS[1:]:
            if pattern != PATTERNS[spec.pattern]:
                assert not any(word in text for word in words(pattern)), text
        named += any(word in text for word in words(COLOURS[spec.colour]))
    assert named >= 320, "most captions name the colour"
