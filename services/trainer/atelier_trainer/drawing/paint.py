"""Brushes shared by every picture: colours, path text, body shading, contact shadow.

Everything is drawn in units where the picture is 256 wide, on a canvas scaled to the size asked for, so one scene is
the same at any size.
"""

from __future__ import annotations

import re

import numpy as np
import skia

BASE = (
    (206, 38, 42), (240, 128, 32), (248, 204, 48), (52, 148, 76), (38, 92, 190),
    (122, 62, 168), (244, 142, 178), (126, 80, 48), (38, 38, 44), (246, 246, 244),
)  # in the order of COLOURS


def rgb(colour, alpha: float = 1.0) -> int:
    r, g, b = (int(np.clip(v, 0, 255)) for v in colour)
    return skia.ColorSetARGB(int(round(alpha * 255)), r, g, b)


def mix(a, b, t: float):
    return tuple(x + (y - x) * t for x, y in zip(a, b))


def darker(colour, t: float):
    return mix(colour, (18, 14, 24), t)


def lighter(colour, t: float):
    return mix(colour, (255, 255, 255), t)


def luma(colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def path(text: str) -> skia.Path:
    """A path from absolute M, L, C, Q and Z commands."""
    out = skia.Path()
    for command, body in re.findall(r"([MLCQZ])([^MLCQZ]*)", text):
        v = [float(x) for x in re.findall(r"-?\d+\.?\d*", body)]
        if command == "M":
            out.moveTo(v[0], v[1])
            v = v[2:]
        if command in "ML":
            for i in range(0, len(v), 2):
                out.lineTo(v[i], v[i + 1])
        elif command == "C":
            for i in range(0, len(v), 6):
                out.cubicTo(*v[i : i + 6])
        elif command == "Q":
            for i in range(0, len(v), 4):
                out.quadTo(*v[i : i + 4])
        elif command == "Z":
            out.close()
    return out


def mirrored(half: skia.Path) -> skia.Path:
    """`half` and its mirror image in x = 0, joined."""
    other = skia.Path()
    half.transform(skia.Matrix.Scale(-1, 1), other)
    return skia.Op(half, other, skia.PathOp.kUnion_PathOp)


def ellipse(x: float, y: float, rx: float, ry: float) -> skia.Path:
    return skia.Path().addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry))


def box(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> skia.Path:
    return skia.Path().addRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), radius, radius)


def fill(colour, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    paint = skia.Paint(AntiAlias=True, Color=rgb(colour, alpha))
    if blur:
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    return paint


def stroke(colour, width: float, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    paint = fill(colour, alpha, blur)
    paint.setStyle(skia.Paint.kStroke_Style)
    paint.setStrokeWidth(width)
    paint.setStrokeCap(skia.Paint.kRound_Cap)
    paint.setStrokeJoin(skia.Paint.kRound_Join)
    return paint


def linear(x0, y0, x1, y1, colours, stops=None) -> skia.Paint:
    shader = skia.GradientShader.MakeLinear(points=[(x0, y0), (x1, y1)], colors=colours, positions=stops)
    return skia.Paint(AntiAlias=True, Shader=shader)


def radial(x, y, radius, colours, stops=None) -> skia.Paint:
    shader = skia.GradientShader.MakeRadial(center=(x, y), radius=radius, colors=colours, positions=stops)
    return skia.Paint(AntiAlias=True, Shader=shader)


class Brush:
    """Draws one product in its own units (about -100..100, y down) with the light of the scene."""

    def __init__(self, canvas: skia.Canvas, colour, light: int, pattern, rng: np.random.Generator):
        self.canvas = canvas
        self.colour = colour
        self.light = light  # -1: from upper left, +1: from upper right
        self.pattern = pattern  # draws onto the canvas inside given bounds
        self.rng = rng
        self.dark = luma(colour) < 70
        self.pale = luma(colour) > 225

    def body(self, shape: skia.Path, colour=None, patterned: bool = True, round_: float = 1.0, outline: bool = True) -> None:
        """Fills `shape` as a lit solid: base, pattern, light across, dark rim on the far side."""
        colour = self.colour if colour is None else colour
        c, b, s = self.canvas, shape.getBounds(), self.light
        c.save()
        c.clipPath(shape, skia.ClipOp.kIntersect, True)
        c.drawPaint(fill(colour))
        if patterned and self.pattern:
            self.pattern(c, b)
        near, far = (b.left(), b.right()) if s < 0 else (b.right(), b.left())
        shade = 0.34 if luma(colour) > 70 else 0.5
        if luma(colour) > 225:
            shade = 0.26
        tint = (28, 24, 48)
        c.drawPaint(linear(near, b.top(), far, b.bottom(), [rgb(tint, 0), rgb(tint, shade * 0.15 * round_), rgb(tint, shade * round_)], [0, 0.45, 1]))
        gleam = 0.30 if luma(colour) > 70 else 0.26
        size = max(b.width(), b.height())
        gx, gy = near + (far - near) * 0.28, b.top() + b.height() * 0.25
        c.drawPaint(radial(gx, gy, size * 0.5, [rgb((255, 255, 255), gleam * round_), rgb((255, 255, 255), 0)]))
        rim = min(b.width(), b.height())
        c.save()
        c.translate(s * rim * 0.03, -rim * 0.03)
        c.drawPath(shape, stroke(tint, max(3.5, rim * 0.09), 0.30 if not self.pale else 0.24, max(2.0, rim * 0.045)))
        c.restore()
        c.restore()
        if outline:
            edge = lighter(colour, 0.22) if luma(colour) < 70 else darker(colour, 0.45)
            c.drawPath(shape, stroke(edge, 2.2, 0.55))

    def flat(self, shape: skia.Path, colour, alpha: float = 1.0, blur: float = 0.0) -> None:
        self.canvas.drawPath(shape, fill(colour, alpha, blur))

    def line(self, text: str, colour=None, width: float = 3.0, alpha: float = 0.5, blur: float = 0.0) -> None:
        """A seam or fold: darker than the base on light colours, lighter on dark ones."""
        if colour is None:
            colour = lighter(self.colour, 0.35) if self.dark else darker(self.colour, 0.55)
        self.canvas.drawPath(path(text), stroke(colour, width, alpha, blur))

    def gloss(self, text: str, width: float, alpha: float = 0.45, blur: float = 2.5) -> None:
        self.canvas.drawPath(path(text), stroke((255, 255, 255), width, alpha, blur))
