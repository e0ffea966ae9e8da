"""What a picture shows, and how people ask for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .terms import BACKGROUNDS, COLOURS, PATTERNS, PRODUCTS, STYLES

STUDIO, GUOCHAO, NORDIC, WATERCOLOUR = range(4)
RED = 0


@dataclass(frozen=True)
class Spec:
    """Indices into the terms; `seed` fixes pose, light and jitter."""

    product: int
    colour: int
    background: int
    pattern: int
    style: int
    seed: int


def sample_spec(rng: np.random.Generator) -> Spec:
    style = int(rng.choice(4, p=[0.58, 0.18, 0.10, 0.14]))
    colour = int(rng.integers(len(COLOURS)))
    if style == GUOCHAO and rng.random() < 0.35:
        colour = RED
    pattern = 0
    if style in (STUDIO, WATERCOLOUR) and rng.random() < 0.55:
        pattern = int(rng.integers(1, len(PATTERNS)))
    background = 0 if rng.random() < 0.3 else int(rng.integers(len(BACKGROUNDS)))
    return Spec(int(rng.integers(len(PRODUCTS))), colour, background, pattern, style, int(rng.integers(2**31)))


def caption(spec: Spec, rng: np.random.Generator, language: str) -> str:
    """A request for this picture as a person would type it; parts are sometimes left out, never wrong."""

    def pick(terms):
        words = terms.zh if language == "zh" else terms.en
        return words[0] if rng.random() < 0.55 else words[int(rng.integers(len(words)))]

    product = pick(PRODUCTS[spec.product])
    keep_colour = rng.random() > 0.1
    if spec.style == GUOCHAO and spec.colour == RED:
        keep_colour = rng.random() > 0.5
    elif spec.style == GUOCHAO:
        keep_colour = True
    colour = pick(COLOURS[spec.colour]) if keep_colour else ""
    pattern = pick(PATTERNS[spec.pattern]) if spec.pattern and rng.random() > 0.08 else ""
    if spec.pattern == 0 and spec.style == STUDIO and rng.random() < 0.08:
        pattern = pick(PATTERNS[0])
    style = pick(STYLES[spec.style]) if spec.style else ""
    background = pick(BACKGROUNDS[spec.background]) if rng.random() > 0.1 else ""
    return (_zh if language == "zh" else _en)(rng, product, colour, pattern, style, background)


def _zh(rng, product, colour, pattern, style, background) -> str:
    words = [colour, style, pattern] if rng.random() < 0.5 else [style, colour, pattern]
    if style in ("水彩画", "水彩"):
        subject = "".join([colour, pattern, product])
        subject = f"{subject}, {style}" if rng.random() < 0.6 else f"水彩{subject}"
    else:
        joint = "的" if rng.random() < 0.12 and (colour or style or pattern) else ""
        subject = "".join(w for w in words if w) + joint + product
    if rng.random() < 0.12:
        subject = ("一个" if rng.random() < 0.5 else "一件") + subject
    if rng.random() < 0.1:
        subject += "产品图"
    comma = ("，", ", ", ",")[int(rng.integers(3))]
    if not background:
        return subject
    return subject + comma + background if rng.random() > 0.12 else background + comma + subject


def _en(rng, product, colour, pattern, style, background) -> str:
    tail = ""
    if pattern.startswith("with "):
        pattern, tail = "", " " + pattern
    front = [colour, pattern] if rng.random() < 0.7 else [pattern, colour]
    if style.startswith("watercolo"):
        if rng.random() < 0.5:
            subject, tail = " ".join(w for w in [*front, product] if w), tail + f", {style}"
        else:
            subject = "watercolour " + " ".join(w for w in [*front, product] if w)
    else:
        order = [style, *front] if rng.random() < 0.4 else [*front, style]
        subject = " ".join(w for w in [*order, product] if w)
    subject += tail
    r = rng.random()
    if r < 0.35:
        subject = ("an " if subject[0] in "aeiou" else "a ") + subject
    elif r < 0.5:
        subject = "product photo of " + ("an " if subject[0] in "aeiou" else "a ") + subject
    if not background:
        return subject
    if background.startswith(("on ", "outdoors")):
        return f"{subject} {background}" if rng.random() < 0.6 else f"{subject}, {background}"
    if rng.random() < 0.4:
        return f"{subject} on a {background}" if not background.startswith("green") else f"{subject} in a {background}"
    return f"{subject}, {background}"
