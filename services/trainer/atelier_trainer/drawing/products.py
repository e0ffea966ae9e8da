"""The products: each function draws one with a Brush, in about -100..100, and returns nothing."""

from __future__ import annotations

import skia

from .paint import Brush, box, darker, ellipse, lighter, luma, mirrored, path, radial, rgb, stroke
from .patterns import GOLD


def _inner(b: Brush):
    """The colour of an inside or a back panel."""
    return darker(b.colour, 0.38) if not b.dark else lighter(b.colour, 0.16)


def t_shirt(b: Brush) -> None:
    v = b.rng.uniform(-6, 6)
    b.flat(ellipse(0, -72, 30, 13), _inner(b))
    sleeves = mirrored(path(f"M 34 -78 C 56 -74 70 -64 78 -52 L {100} {-14 + v} C 92 -4 78 4 66 6 L 50 -22 Z"))
    b.body(sleeves)
    body = mirrored(path("M -1 -58 C 14 -58 26 -66 30 -80 C 44 -78 56 -70 60 -58 C 56 -30 54 0 55 30 L 57 84 C 40 92 16 94 -1 94 Z"))
    b.body(body)
    for s in (-1, 1):
        b.line(f"M {58 * s} -54 C {52 * s} -38 {52 * s} -24 {54 * s} -8", alpha=0.4)
        b.line(f"M {(97) * s} {-20 + v} C {90 * s} {-10 + v} {76 * s} {-2} {64 * s} 0", width=2.6, alpha=0.35)
        b.line(f"M {40 * s} 20 C {36 * s} 44 {42 * s} 60 {38 * s} 84", width=5, alpha=0.14, blur=2)
    b.canvas.drawPath(path("M -31 -80 C -26 -52 26 -52 31 -80"), stroke(_inner(b), 6.0, 0.85))
    b.line("M -54 80 C -30 88 30 88 54 80", width=2.6, alpha=0.4)


def dress(b: Brush) -> None:
    flare = b.rng.uniform(62, 78)
    skirt = mirrored(path(f"M -1 -20 L 27 -20 C 34 10 {flare - 12} 56 {flare} 88 C {flare * 0.6} 100 20 102 -1 102 Z"))
    b.body(skirt)
    for x in (-0.55, -0.2, 0.2, 0.55):
        b.line(f"M {x * 44} -10 C {x * 60} 20 {x * flare * 1.1} 60 {x * flare * 1.25} 94", width=5, alpha=0.2, blur=1.6)
    top = mirrored(path("M -1 -62 C 10 -62 16 -70 18 -84 L 28 -94 L 36 -90 C 34 -70 38 -60 38 -52 C 32 -40 28 -30 29 -17 L -1 -17 Z"))
    b.body(top)
    belt = GOLD if luma(b.colour) < 190 and b.pattern else darker(b.colour, 0.5) if not b.dark else lighter(b.colour, 0.4)
    b.flat(box(-29, -23, 29, -13, 3), belt)
    b.line("M -18 -84 C -12 -58 12 -58 18 -84", alpha=0.5)


def hoodie(b: Brush) -> None:
    v = b.rng.uniform(-6, 6)
    sleeves = mirrored(path(f"M 40 -62 C 70 -58 80 -36 86 -6 L {94 + v} 66 L 70 74 L 50 -6 Z"))
    b.body(sleeves)
    for s in (-1, 1):
        b.canvas.drawPath(path(f"M {72 * s} 70 L {93 * s} 63"), stroke(_inner(b), 10, 0.7))
    b.body(mirrored(path("M -1 -64 L 44 -64 C 58 -58 60 -40 58 -20 L 60 78 C 40 84 20 86 -1 86 Z")))
    b.body(mirrored(path("M -1 -98 C 30 -98 42 -78 40 -54 C 28 -44 12 -40 -1 -38 Z")))
    b.flat(path("M -22 -72 C -18 -90 18 -90 22 -72 C 20 -56 10 -50 0 -46 C -10 -50 -20 -56 -22 -72 Z"), darker(b.colour, 0.55) if not b.dark else (16, 16, 20))
    b.body(path("M -32 30 L 32 30 L 46 66 L -46 66 Z"), patterned=False, round_=0.6)
    b.canvas.drawPath(path("M -58 76 C -30 84 30 84 58 76"), stroke(_inner(b), 9, 0.6))
    cord = (250, 248, 240) if luma(b.colour) < 190 else (120, 120, 128)
    for s in (-1, 1):
        b.canvas.drawPath(path(f"M {9 * s} -46 C {11 * s} -30 {8 * s} -18 {11 * s} -4"), stroke(cord, 4))


def sneaker(b: Brush) -> None:
    if b.rng.random() < 0.5:
        b.canvas.scale(-1, 1)
        b.light = -b.light
    sole = (246, 244, 240) if luma(b.colour) < 215 else (196, 196, 200)
    upper = path("M -92 34 C -96 8 -88 -24 -76 -44 C -66 -40 -46 -38 -28 -48 C -12 -30 14 -6 44 2 C 74 6 94 14 98 36 Z")
    b.flat(path("M -76 -42 C -66 -54 -40 -58 -28 -46 C -44 -36 -64 -36 -76 -42 Z"), _inner(b))
    b.body(upper)
    b.flat(path("M 52 4 C 78 8 96 18 98 36 L 58 36 C 60 24 58 12 52 4 Z"), darker(b.colour, 0.25) if not b.dark else lighter(b.colour, 0.2), 0.75)
    b.flat(path("M -92 34 C -96 12 -92 -8 -84 -28 C -72 -14 -66 10 -64 34 Z"), darker(b.colour, 0.25) if not b.dark else lighter(b.colour, 0.2), 0.75)
    b.canvas.drawPath(path("M -54 22 C -30 18 -8 6 4 -10"), stroke(sole, 9))
    for i in range(4):
        x, y = -22 + i * 17, -36 + i * 12
        b.canvas.drawPath(path(f"M {x} {y} L {x + 13} {y - 9}" if i < 0 else f"M {x - 7} {y + 9} L {x + 9} {y - 3}"), stroke((252, 252, 250), 5))
    b.body(path("M -97 34 L 100 34 C 104 46 100 58 90 60 L -86 60 C -98 58 -100 46 -97 34 Z"), colour=sole, patterned=False, round_=0.7)
    b.line("M -94 46 L 100 46", colour=(110, 110, 116), width=2.6, alpha=0.4)


def cap(b: Brush) -> None:
    if b.rng.random() < 0.5:
        b.canvas.scale(-1, 1)
        b.light = -b.light
    b.body(path("M 24 28 C 60 18 96 26 108 46 C 100 58 60 52 20 46 Z"), colour=_inner(b) if not b.dark else None, patterned=False)
    b.body(path("M -84 40 C -88 -24 -52 -62 -10 -62 C 36 -62 66 -28 66 28 C 30 22 -30 26 -84 40 Z"))
    b.line("M -10 -62 C -36 -40 -44 0 -40 30", alpha=0.45)
    b.line("M -10 -62 C 16 -44 28 -10 28 24", alpha=0.45)
    b.canvas.drawPath(path("M -84 38 C -30 24 30 20 66 27"), stroke(_inner(b), 7, 0.7))
    b.body(ellipse(-10, -63, 9, 6), patterned=False)


def handbag(b: Brush) -> None:
    lift = b.rng.uniform(-8, 8)
    strap = darker(b.colour, 0.42) if not b.dark else lighter(b.colour, 0.25)
    b.canvas.drawPath(path(f"M -40 -20 C -42 {-100 + lift} 42 {-100 + lift} 40 -20"), stroke(strap, 11))
    b.canvas.drawPath(path(f"M -40 -22 C -42 {-100 + lift} 42 {-100 + lift} 40 -22"), stroke(lighter(strap, 0.35), 3, 0.6))
    b.body(path("M -74 -26 C -40 -32 40 -32 74 -26 L 90 72 C 60 84 -60 84 -90 72 Z"))
    b.line("M -76 -12 C -40 -18 40 -18 76 -12", alpha=0.5)
    for s in (-1, 1):
        b.flat(ellipse(40 * s, -20, 7.5, 7.5), GOLD)
        b.flat(ellipse(40 * s - 1, -22, 3, 3), (255, 244, 200))
    b.body(box(-14, -18, 14, 12, 5), colour=strap, patterned=False)
    b.flat(ellipse(0, 4, 5.5, 5.5), GOLD)


def backpack(b: Brush) -> None:
    strap = darker(b.colour, 0.42) if not b.dark else lighter(b.colour, 0.25)
    b.canvas.drawPath(path("M -18 -84 C -18 -108 18 -108 18 -84"), stroke(strap, 9))
    for s in (-1, 1):
        b.flat(mirrored(path("M 60 -30 C 82 -20 84 30 78 70 L 60 70 Z")), strap)
    b.body(mirrored(path("M -1 -92 C 40 -92 62 -68 66 -30 L 70 76 C 66 92 40 94 -1 94 Z")))
    b.line("M -62 -36 C -30 -24 30 -24 62 -36", width=4, alpha=0.55)
    b.body(box(-46, 10, 46, 78, 14), round_=0.7)
    b.line("M -40 28 L 40 28", width=4, alpha=0.55)
    b.flat(box(16, 24, 23, 44, 3), GOLD)
    b.flat(box(-16, -66, 16, -44, 5), strap)


def mug(b: Brush) -> None:
    s = -1 if b.rng.random() < 0.5 else 1
    c = b.canvas
    edge = darker(b.colour, 0.45) if not b.dark else lighter(b.colour, 0.3)
    c.drawPath(path(f"M {52 * s} -34 C {112 * s} -46 {112 * s} 46 {50 * s} 38"), stroke(edge, 20))
    c.drawPath(path(f"M {52 * s} -34 C {112 * s} -46 {112 * s} 46 {50 * s} 38"), stroke(b.colour, 15.5))
    c.drawPath(path(f"M {60 * s} -38 C {104 * s} -44 {106 * s} 30 {60 * s} 38"), stroke((255, 255, 255), 3.5, 0.3, 1.5))
    b.body(path("M -60 -62 L 60 -62 L 56 62 C 52 82 -52 82 -56 62 Z"))
    b.body(ellipse(0, -62, 60, 17), patterned=False, round_=0.3)
    b.flat(ellipse(0, -61, 52, 12.5), (96, 56, 32) if b.rng.random() < 0.5 else darker(b.colour, 0.5))
    b.gloss("M -42 -34 C -41 0 -40 30 -37 54" if b.light < 0 else "M 42 -34 C 41 0 40 30 37 54", 7)


def teapot(b: Brush) -> None:
    if b.rng.random() < 0.5:
        b.canvas.scale(-1, 1)
        b.light = -b.light
    c = b.canvas
    edge = darker(b.colour, 0.45) if not b.dark else lighter(b.colour, 0.3)
    handle = "M -54 -26 C -112 -50 -116 50 -50 42"
    c.drawPath(path(handle), stroke(edge, 16))
    c.drawPath(path(handle), stroke(b.colour, 12))
    b.body(path("M 44 22 C 74 14 76 -20 96 -42 L 112 -34 C 104 -6 92 44 46 56 Z"), patterned=False)
    b.body(path("M -36 -46 C -72 -34 -80 20 -58 54 C -44 76 44 76 58 54 C 80 20 72 -34 36 -46 Z"))
    b.body(path("M -40 -44 C -36 -66 36 -66 40 -44 C 20 -36 -20 -36 -40 -44 Z"), patterned=False)
    b.body(ellipse(0, -70, 11, 10), patterned=False)
    b.flat(box(-38, 66, 38, 74, 4), darker(b.colour, 0.4))
    b.gloss("M -46 -18 C -58 6 -54 30 -44 46" if b.light < 0 else "M 46 -18 C 58 6 54 30 44 46", 7)


def vase(b: Brush) -> None:
    w = b.rng.uniform(52, 66)
    if b.rng.random() < 0.65:
        for x, y, lean in ((-34, -96, -30), (2, -112, 0), (36, -94, 28)):
            b.canvas.drawPath(path(f"M {lean * 0.2} -56 C {lean * 0.3} -72 {x} -80 {x} {y + 10}"), stroke((74, 128, 70), 4.5))
            for dx, dy in ((-9, 0), (9, 0), (0, -9), (0, 9)):
                b.flat(ellipse(x + dx, y + dy, 8, 8), (250, 214, 222))
            b.flat(ellipse(x, y, 6, 6), (246, 190, 70))
    b.flat(ellipse(0, -58, 24, 7), _inner(b))
    b.body(mirrored(path(f"M -1 -52 L 25 -58 C 22 -40 18 -32 20 -22 C {w} -6 {w + 4} 44 32 92 L -1 94 Z")))
    b.canvas.drawPath(path("M -25 -58 C -14 -50 14 -50 25 -58"), stroke(darker(b.colour, 0.3) if not b.dark else lighter(b.colour, 0.3), 4, 0.7))
    b.gloss("M -34 4 C -42 26 -36 50 -28 68" if b.light < 0 else "M 34 4 C 42 26 36 50 28 68", 7)


def lantern(b: Brush) -> None:
    c = b.canvas
    c.drawPath(path("M 0 -108 L 0 -70"), stroke((92, 60, 36), 4))
    w = b.rng.uniform(76, 88)
    b.body(path(f"M -30 -60 C {-w - 8} -54 {-w - 8} 46 -30 52 L 30 52 C {w + 8} 46 {w + 8} -54 30 -60 Z"))
    for k in (0.3, 0.66, 0.92):
        for s in (-1, 1):
            b.line(f"M {26 * k * s} -60 C {w * k * s} -46 {w * k * s} 38 {26 * k * s} 52", width=2.8, alpha=0.32)
    c.drawPath(ellipse(0, -4, 46, 40), radial(0, -4, 46, [rgb((255, 240, 170), 0.5), rgb((255, 240, 170), 0)]))
    cap_colour = GOLD if luma(b.colour) < 215 else (176, 120, 48)
    b.body(box(-34, -72, 34, -57, 5), colour=cap_colour, patterned=False)
    b.body(box(-32, 49, 32, 63, 5), colour=cap_colour, patterned=False)
    for x in (-14, -5, 5, 14):
        c.drawPath(path(f"M {x} 64 L {x * 1.3} 100"), stroke(b.colour if not b.pale else cap_colour, 5))


def mooncake(b: Brush) -> None:
    import math

    def petals(cx, cy, rx, ry, n=12, depth=0.09):
        out = skia.Path()
        for i in range(n * 8 + 1):
            a = math.tau * i / (n * 8)
            k = 1 + depth * abs(math.sin(a * n / 2)) - depth / 2
            (out.moveTo if i == 0 else out.lineTo)(cx + rx * k * math.cos(a), cy + ry * k * math.sin(a))
        out.close()
        return out

    tilt = b.rng.uniform(0.62, 0.78)
    b.body(petals(0, 34, 88, 88 * tilt), patterned=False)
    b.flat(box(-84, 0, 84, 34), b.colour, 0.0)
    b.body(petals(0, 2, 88, 88 * tilt))
    edge = darker(b.colour, 0.45) if not b.dark else lighter(b.colour, 0.35)
    for r in (70, 30):
        b.canvas.drawPath(ellipse(0, 2, r, r * tilt), stroke(edge, 4, 0.6))
        b.canvas.drawPath(ellipse(0, 0, r, r * tilt), stroke(lighter(b.colour, 0.5), 2.6, 0.4))
    for i in range(8):
        a = math.tau * i / 8
        b.canvas.drawPath(ellipse(50 * math.cos(a), 2 + 50 * tilt * math.sin(a), 11, 11 * tilt), stroke(edge, 4, 0.6))
    for i in range(4):
        a = math.tau * i / 4 + 0.4
        b.canvas.drawPath(ellipse(13 * math.cos(a), 2 + 13 * tilt * math.sin(a), 9, 9 * tilt), stroke(edge, 3.5, 0.6))


def sofa(b: Brush) -> None:
    wood = (112, 74, 44)
    for s in (-1, 1):
        b.flat(path(f"M {82 * s} 56 L {92 * s} 56 L {86 * s} 78 L {80 * s} 78 Z"), wood)
    b.body(box(-88, -52, 88, 30, 20))
    b.line("M 0 -50 L 0 8", width=3.5, alpha=0.5)
    b.body(path("M -88 4 L 88 4 L 92 36 L -92 36 Z"), round_=0.8)
    b.line("M 0 4 L 0 36", width=3.5, alpha=0.5)
    b.body(box(-92, 32, 92, 60, 6), round_=0.8)
    for s in (-1, 1):
        left, right = (72, 110) if s > 0 else (-110, -72)
        b.body(box(left, -16, right, 62, 15))


def umbrella(b: Brush) -> None:
    b.canvas.drawPath(path("M 0 -30 L 0 78 C 0 98 26 98 26 80"), stroke((104, 66, 38), 7))
    b.body(path("M -100 10 C -92 -54 -46 -84 0 -86 C 46 -84 92 -54 100 10 Q 84 -6 66 10 Q 50 -8 32 10 Q 16 -8 0 10 Q -16 -8 -32 10 Q -50 -8 -66 10 Q -84 -6 -100 10 Z"))
    for x in (-66, -32, 0, 32, 66):
        b.line(f"M 0 -86 C {x * 0.55} -70 {x} -40 {x} 8", width=2.8, alpha=0.4)
    b.canvas.drawPath(path("M 0 -86 L 0 -100"), stroke((104, 66, 38), 6))


DRAWERS = (t_shirt, dress, hoodie, sneaker, cap, handbag, backpack, mug, teapot, vase, lantern, mooncake, sofa, umbrella)
HANGING = frozenset((0, 1, 2, 10))  # shown against the background, with the shadow behind, not below
