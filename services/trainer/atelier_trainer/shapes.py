"""Random shapes for the VAE's first steps: every colour, edge, gradient and fine pattern, and no product.

They come before the drawings, so that the VAE meets far more colours and edges than one catalogue has.
"""

from __future__ import annotations

import numpy as np
import skia


def _colour(rng: np.random.Generator) -> int:
    h, s, v = rng.uniform(0, 360), rng.uniform(0, 1) ** 0.7, rng.uniform(0.05, 1.0)
    return skia.HSVToColor([float(h), float(s), float(v)])


def _shader(rng: np.random.Generator, size: int) -> skia.Shader:
    a, b = (skia.Point(*(float(v) for v in rng.uniform(0, size, 2))) for _ in range(2))
    colours = [_colour(rng), _colour(rng)]
    if rng.random() < 0.5:
        return skia.GradientShader.MakeLinear([a, b], colours)
    return skia.GradientShader.MakeRadial(a, float(rng.uniform(0.3, 1.0) * size), colours)


def _path(rng: np.random.Generator, size: int) -> skia.Path:
    path = skia.Path()
    cx, cy = rng.uniform(0.2, 0.8, 2) * size
    reach = rng.uniform(0.1, 0.45) * size
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    points = [(float(cx + np.cos(a) * r), float(cy + np.sin(a) * r)) for a, r in zip(angles, reach * rng.uniform(0.5, 1, len(angles)))]
    if rng.random() < 0.35:
        path.addOval(skia.Rect.MakeXYWH(float(cx - reach), float(cy - reach * 0.7), float(2 * reach), float(1.4 * reach)))
    else:
        path.moveTo(*points[0])
        for (x1, y1), (x2, y2) in zip(points[1:] + points[:1], points[2:] + points[:2]):
            path.quadTo(x1, y1, (x1 + x2) / 2, (y1 + y2) / 2) if rng.random() < 0.6 else path.lineTo(x1, y1)
        path.close()
    return path


def _pattern(canvas: skia.Canvas, rng: np.random.Generator, size: int) -> None:
    paint = skia.Paint(AntiAlias=True, Color=_colour(rng))
    gap = float(rng.uniform(0.03, 0.10) * size)
    canvas.rotate(float(rng.uniform(0, 180)), size / 2, size / 2)
    kind = rng.integers(3)
    for i in range(int(-size // gap), int(2 * size // gap)):
        if kind < 2:
            canvas.drawRect(skia.Rect.MakeXYWH(-size, i * gap, 3 * size, gap * 0.45), paint)
        if kind == 1:
            canvas.drawRect(skia.Rect.MakeXYWH(i * gap, -size, gap * 0.45, 3 * size), paint)
        if kind == 2:
            for j in range(int(-size // gap), int(2 * size // gap)):
                canvas.drawCircle(i * gap + (j % 2) * gap / 2, j * gap, gap * 0.28, paint)


def draw_shapes(seed: int, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: gradients, soft shadows, patterned and plain shapes, thin lines."""
    rng = np.random.default_rng([seed, 4])
    surface = skia.Surface(size, size)
    canvas = surface.getCanvas()
    canvas.drawPaint(skia.Paint(Shader=_shader(rng, size)) if rng.random() < 0.6 else skia.Paint(Color=_colour(rng)))
    for _ in range(rng.integers(1, 6)):
        path = _path(rng, size)
        if rng.random() < 0.5:
            blur = skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, float(rng.uniform(0.01, 0.05) * size))
            canvas.drawPath(path, skia.Paint(AntiAlias=True, Color=skia.Color(0, 0, 0, 110), MaskFilter=blur))
        canvas.drawPath(path, skia.Paint(AntiAlias=True, Shader=_shader(rng, size)) if rng.random() < 0.6
                        else skia.Paint(AntiAlias=True, Color=_colour(rng)))
        if rng.random() < 0.4:
            canvas.save()
            canvas.clipPath(path, doAntiAlias=True)
            _pattern(canvas, rng, size)
            canvas.restore()
        if rng.random() < 0.4:
            canvas.drawPath(path, skia.Paint(AntiAlias=True, Style=skia.Paint.kStroke_Style, Color=_colour(rng),
                                             StrokeWidth=float(rng.uniform(0.004, 0.02) * size)))
    return np.ascontiguousarray(surface.makeImageSnapshot().toarray(colorType=skia.kRGB_888x_ColorType)[..., :3])
