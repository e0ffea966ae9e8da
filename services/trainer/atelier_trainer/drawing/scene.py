"""The whole picture: background, light, shadow, the product in its pose, and the painted look of watercolour."""

from __future__ import annotations

import numpy as np
import skia

from .paint import BASE, Brush, ellipse, fill, linear, mix, radial, rgb, stroke
from .patterns import PATTERN_DRAWERS, guochao, nordic
from .products import DRAWERS, HANGING
from .spec import GUOCHAO, NORDIC, WATERCOLOUR, Spec

_STUDIO = {
    0: ((250, 250, 250), (232, 233, 236)),
    1: ((206, 208, 212), (178, 181, 187)),
    2: ((240, 229, 208), (222, 206, 178)),
    3: ((196, 226, 248), (150, 196, 232)),
    4: ((206, 52, 48), (160, 26, 32)),
}
HORIZON = 176


def _background(c: skia.Canvas, kind: int, rng: np.random.Generator) -> None:
    if kind in _STUDIO:
        near, far = _STUDIO[kind]
        c.drawPaint(linear(0, 0, 0, 256, [rgb(near), rgb(mix(near, far, 0.35)), rgb(far), rgb(mix(near, far, 0.5))], [0, 0.55, 0.8, 1]))
        c.drawPaint(radial(128, 110, 170, [rgb((255, 255, 255), 0.22), rgb((255, 255, 255), 0)]))
    elif kind == 5:
        c.drawPaint(linear(0, 0, 0, HORIZON, [rgb((236, 230, 220)), rgb((222, 212, 198))]))
        c.drawRect(skia.Rect.MakeLTRB(0, HORIZON, 256, 256), linear(0, HORIZON, 0, 256, [rgb((172, 122, 76)), rgb((196, 146, 96))]))
        for y in (196, 222):
            c.drawLine(0, y, 256, y, stroke((126, 84, 50), 3, 0.5, 0.8))
        for _ in range(5):
            y = rng.uniform(180, 252)
            c.drawLine(rng.uniform(-60, 120), y, rng.uniform(140, 320), y + rng.uniform(-2, 2), stroke((140, 94, 56), 3.5, 0.28, 1.5))
    elif kind == 6:
        c.drawPaint(linear(0, 0, 0, HORIZON, [rgb((228, 230, 233)), rgb((214, 217, 222))]))
        c.drawRect(skia.Rect.MakeLTRB(0, HORIZON, 256, 256), linear(0, HORIZON, 0, 256, [rgb((238, 238, 240)), rgb((248, 248, 249))]))
        c.save()
        c.clipRect(skia.Rect.MakeLTRB(0, HORIZON, 256, 256))
        for _ in range(4):
            x, y = rng.uniform(-20, 240), rng.uniform(178, 250)
            vein = skia.Path()
            vein.moveTo(x, y)
            vein.cubicTo(x + 30, y - 18, x + 50, y + 22, x + 90, y + rng.uniform(-14, 14))
            c.drawPath(vein, stroke((150, 154, 164), 4, 0.42, 1.8))
        c.restore()
    else:
        c.drawPaint(linear(0, 0, 0, 256, [rgb((188, 222, 190)), rgb((120, 176, 104)), rgb((96, 152, 78))], [0, 0.5, 1]))
        for _ in range(16):
            x, y, r = rng.uniform(0, 256), rng.uniform(0, 190), rng.uniform(14, 34)
            tint = ((210, 236, 176), (92, 156, 86), (160, 208, 130), (240, 244, 200))[int(rng.integers(4))]
            c.drawCircle(x, y, r, fill(tint, 0.42, 5))
        c.drawRect(skia.Rect.MakeLTRB(0, 200, 256, 256), fill((112, 164, 84), 0.9, 8))


def draw(spec: Spec, size: int = 256) -> np.ndarray:
    """The picture of `spec`: uint8 [size, size, 3], sRGB. One scene at any size; deterministic."""
    rng = np.random.default_rng(spec.seed)
    surface = skia.Surface(size, size)
    c = surface.getCanvas()
    c.scale(size / 256, size / 256)
    _background(c, spec.background, rng)

    light = -1 if rng.random() < 0.5 else 1
    jitter = rng.normal(0, 5, 3)
    colour = tuple(float(np.clip(v + j, 0, 255)) for v, j in zip(BASE[spec.colour], jitter))
    if spec.style == NORDIC:
        colour = mix(colour, (150, 150, 150), 0.2)
    pattern = None
    if spec.style == GUOCHAO:
        pattern = guochao(colour, rng)
    elif spec.style == NORDIC:
        pattern = nordic(colour, rng)
    elif spec.pattern:
        pattern = PATTERN_DRAWERS[spec.pattern](colour, rng)

    scale = 0.98 * rng.uniform(0.86, 1.06)
    hanging = spec.product in HANGING
    x = 128 + rng.uniform(-9, 9)
    y = (128 if hanging else 136) + rng.uniform(-7, 7)
    angle = rng.uniform(-5, 5)
    skew = rng.uniform(-0.05, 0.05)

    if hanging:
        shadow = (0, 0, 0) if spec.background != 4 else (60, 0, 0)
        layer = skia.Paint(ImageFilter=skia.ImageFilters.DropShadow(-light * 7, 9, 8, 8, rgb(shadow, 0.32)))
        c.saveLayer(None, layer)
    else:
        floor = y + _BOTTOM[spec.product] * scale
        width = _HALF_WIDTH[spec.product] * scale
        c.drawPath(ellipse(x - light * 8, floor - 2, width * 1.08, 11), fill((24, 18, 24), 0.30, 7))
        c.drawPath(ellipse(x, floor - 3, width * 0.9, 5), fill((20, 14, 20), 0.38, 3))
    c.save()
    c.translate(x, y)
    c.rotate(angle if hanging or spec.product in (4, 13) else angle * 0.35)
    c.skew(skew, 0)
    c.scale(scale, scale * rng.uniform(0.95, 1.05))
    DRAWERS[spec.product](Brush(c, colour, light, pattern, rng))
    c.restore()
    if hanging:
        c.restore()
    picture = surface.toarray(colorType=skia.kRGBA_8888_ColorType)[:, :, :3]
    if spec.style == WATERCOLOUR:
        picture = _watercolour(picture, rng, size)
    return np.ascontiguousarray(picture)


# Where each standing product meets the floor and how wide it is there, in product units.
_BOTTOM = (0, 0, 0, 60, 50, 80, 94, 76, 74, 94, 0, 92, 76, 94)
_HALF_WIDTH = (0, 0, 0, 96, 84, 88, 70, 58, 46, 36, 0, 88, 98, 30)


def _watercolour(picture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Paper shows through, the wash pools unevenly, colours run a little at the edges and towards the border."""
    image = skia.Image.fromarray(np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]), colorType=skia.kRGBA_8888_ColorType)
    surface = skia.Surface(size, size)
    c = surface.getCanvas()
    k = size / 256
    c.clear(rgb((250, 247, 240)))
    soft = skia.Paint(ImageFilter=skia.ImageFilters.Blur(1.6 * k, 1.6 * k, skia.TileMode.kClamp), Alphaf=0.8)
    c.drawImage(image, 0, 0, skia.SamplingOptions(), soft)
    c.scale(k, k)
    for _ in range(9):
        x, y, r = rng.uniform(0, 256), rng.uniform(0, 256), rng.uniform(26, 60)
        c.drawCircle(x, y, r, fill((255, 252, 246), rng.uniform(0.12, 0.3), 11))
    frame = skia.Path().addRect(skia.Rect.MakeLTRB(-30, -30, 286, 286))
    frame.addOval(skia.Rect.MakeLTRB(-8, -8, 264, 264))
    frame.setFillType(skia.PathFillType.kEvenOdd)
    c.drawPath(frame, fill((250, 247, 240), 0.95, 12))
    return surface.toarray(colorType=skia.kRGBA_8888_ColorType)[:, :, :3]
