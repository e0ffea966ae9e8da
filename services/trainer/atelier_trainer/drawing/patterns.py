"""What is printed on a product: stripes, dots, check, flowers, guochao clouds, a nordic band."""

from __future__ import annotations

import math

import numpy as np
import skia

from .paint import darker, fill, lighter, luma, path, rgb, stroke

GOLD = (232, 184, 72)


def ink(colour, rng: np.random.Generator):
    """A contrasting tint for a print on `colour`."""
    if luma(colour) > 190:
        return ((36, 68, 132), (196, 52, 60), (52, 52, 60), (60, 132, 96))[int(rng.integers(4))]
    return ((252, 248, 238), (250, 240, 206), (252, 252, 252))[int(rng.integers(3))]


def stripes(colour, rng):
    tint, period, angle = ink(colour, rng), rng.uniform(22, 28), float(rng.choice([0.0, 0.0, 90.0, 35.0]))

    def draw(c: skia.Canvas, b: skia.Rect) -> None:
        c.save()
        c.rotate(angle)
        for i in range(-12, 13):
            c.drawRect(skia.Rect.MakeXYWH(-300, i * period, 600, period * 0.36), fill(tint))
        c.restore()

    return draw


def dots(colour, rng):
    tint, period, radius = ink(colour, rng), rng.uniform(29, 35), rng.uniform(6.8, 8.2)

    def draw(c: skia.Canvas, b: skia.Rect) -> None:
        for j in range(-8, 9):
            for i in range(-8, 9):
                c.drawCircle((i + (j % 2) / 2) * period, j * period * 0.8, radius, fill(tint))

    return draw


def check(colour, rng):
    tint, period = ink(colour, rng), rng.uniform(34, 42)

    def draw(c: skia.Canvas, b: skia.Rect) -> None:
        for i in range(-8, 9):
            c.drawRect(skia.Rect.MakeXYWH(-300, i * period, 600, period * 0.42), fill(tint, 0.42))
            c.drawRect(skia.Rect.MakeXYWH(i * period, -300, period * 0.42, 600), fill(tint, 0.42))

    return draw


def floral(colour, rng):
    tint, heart, period = ink(colour, rng), (246, 196, 64), rng.uniform(46, 54)
    petals = rng.uniform(0, 1)

    def draw(c: skia.Canvas, b: skia.Rect) -> None:
        for j in range(-5, 6):
            for i in range(-5, 6):
                x, y = (i + (j % 2) / 2) * period, j * period * 0.8
                for k in range(5):
                    a = (k + petals) * math.tau / 5
                    c.drawCircle(x + 9.5 * math.cos(a), y + 9.5 * math.sin(a), 6.6, fill(tint))
                c.drawCircle(x, y, 5.4, fill(heart))

    return draw


def _cloud(c: skia.Canvas, x: float, y: float, s: float, colour) -> None:
    """One auspicious cloud: two spirals on a base line."""
    c.save()
    c.translate(x, y)
    c.scale(s, s)
    brush = stroke(colour, 4.2)
    c.drawPath(path("M -30 10 C -34 -4 -20 -12 -13 -4 C -8 2 -14 10 -20 7"), brush)
    c.drawPath(path("M -14 -8 C -12 -26 12 -28 14 -10 C 15 2 0 5 -1 -5"), brush)
    c.drawPath(path("M 13 -10 C 22 -16 34 -6 29 5 C 25 12 16 8 19 2"), brush)
    c.drawPath(path("M -32 14 C -10 17 10 17 34 12"), brush)
    c.restore()


def guochao(colour, rng):
    gold = (190, 120, 24) if luma(colour) > 190 else GOLD
    shift = rng.uniform(-14, 14)

    def draw(c: skia.Canvas, b: skia.Rect) -> None:
        for j, y in enumerate((-84, -36, 12, 60, 108)):
            for i in range(-3, 4):
                _cloud(c, i * 84 + (42 if j % 2 else 0) + shift, y, 0.92, gold)

    return draw


def nordic(colour, rng):
    tint = (60, 76, 112) if luma(colour) > 170 else (248, 244, 236)

    def draw(c: skia.Canvas, b: skia.Rect) -> None:
        mid = b.centerY()
        for top in (mid - 38, mid + 30):
            for i in range(-9, 10):
                x = i * 22
                c.drawPath(path(f"M {x} {top + 12} L {x + 11} {top} L {x + 22} {top + 12}"), stroke(tint, 4.5))
        for i in range(-4, 5):
            x = i * 44
            for k in range(3):
                a = k * math.pi / 3 + math.pi / 2
                dx, dy = 15 * math.cos(a), 15 * math.sin(a)
                c.drawLine(x - dx, mid - dy, x + dx, mid + dy, stroke(tint, 5))

    return draw


PATTERN_DRAWERS = (None, stripes, dots, check, floral)
