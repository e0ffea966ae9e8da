"""The pictures show what their captions say, at any size, the same on every run."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import skia

from atelier_trainer.drawing import BACKGROUNDS, COLOURS, PATTERNS, PRODUCTS, STYLES, Spec, Term, caption, draw, sample_spec
from atelier_trainer.drawing import scene
from atelier_trainer.drawing.paint import BASE
from atelier_trainer.drawing.patterns import PATTERN_DRAWERS, guochao, nordic

STUDIO, GUOCHAO, NORDIC, WATERCOLOUR = range(4)
RED, BLUE, BLACK, WHITE = 0, 4, 8, 9
WHITE_BACKGROUND, GREY_BACKGROUND = 0, 1
LANGUAGES = ("en", "zh")
SAMPLED = 400  # specs a caption test looks at; every term occurs among them, and a test says so

every_product = pytest.mark.parametrize("product", range(len(PRODUCTS)), ids=[term.id for term in PRODUCTS])
every_colour = pytest.mark.parametrize("colour", range(len(COLOURS)), ids=[term.id for term in COLOURS])
both_languages = pytest.mark.parametrize("language", LANGUAGES)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 256, 512])
@pytest.mark.parametrize("style", range(len(STYLES)), ids=[term.id for term in STYLES])
def test_a_picture_is_rgb_bytes_of_the_size_asked_for(style: int, size: int) -> None:
    picture = draw(Spec(0, RED, WHITE_BACKGROUND, 0, style, 7), size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert picture.std() > 10, "something is drawn"


def test_one_spec_gives_the_same_pixels_whatever_was_drawn_before() -> None:
    specs = sampled_specs(24)
    first = [draw(spec) for spec in specs]
    again = [draw(spec) for spec in reversed(specs)][::-1]
    for spec, one, other in zip(specs, first, again):
        assert np.array_equal(one, other), spec


def test_the_seed_alone_changes_the_pose() -> None:
    spec = Spec(7, BLUE, GREY_BACKGROUND, 0, STUDIO, 1)
    assert mean_difference(draw(spec), draw(replace(spec, seed=2))) > 2


def test_512_pixels_show_the_same_scene_as_256() -> None:
    """Levels of 255. Measured over 40 specs: at most 0.6 for one scene; two seeds of one spec differ by over 2."""
    for spec in sampled_specs(24):
        large = draw(spec, 512).astype(np.float64).reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
        assert mean_difference(draw(spec, 256), large) < 1.2, spec


@every_product
@every_colour
def test_a_plain_studio_product_has_the_colour_that_its_term_names(product: int, colour: int) -> None:
    spec = Spec(product, colour, GREY_BACKGROUND, 0, STUDIO, 31 * product + colour)
    picture, tinted = draw(spec, 128), tinted_pixels(spec, 128)
    centre = np.zeros_like(tinted)
    centre[40:88, 40:88] = True
    pixels = picture[tinted & centre]
    assert len(pixels) >= 400, "the product is in the centre"
    assert COLOURS[dominant_colour(pixels)].id == COLOURS[colour].id


@every_product
def test_a_product_fills_a_fair_part_of_the_frame_and_stays_inside(product: int) -> None:
    for seed in range(4):
        tinted = tinted_pixels(Spec(product, RED, GREY_BACKGROUND, 0, STUDIO, seed), 128)
        rows, columns = np.flatnonzero(tinted.any(axis=1)), np.flatnonzero(tinted.any(axis=0))
        extent = max(np.ptp(rows), np.ptp(columns)) / 128
        assert 0.45 <= extent <= 0.95, (seed, extent)
        assert not tinted[[0, -1]].any() and not tinted[:, [0, -1]].any(), f"seed {seed} is cut by the frame"


@every_product
def test_white_on_white_and_black_still_show_their_form(product: int) -> None:
    """Brightness in levels of 255. Shading spreads the middle half of a body's pixels by 18 or more on every product; a
    flat one, with seams and outline only, has nearly no spread, and on white most of it is invisible.
    """
    for colour, background in ((WHITE, WHITE_BACKGROUND), (BLACK, GREY_BACKGROUND)):
        spec = Spec(product, colour, background, 0, STUDIO, 5)
        brightness, tinted = draw(spec).mean(axis=2), tinted_pixels(spec)
        assert np.subtract(*np.percentile(brightness[tinted], [75, 25])) > 15, COLOURS[colour].id
        if colour == WHITE:
            assert np.median(brightness[~tinted]) - np.percentile(brightness[tinted], 10) > 40
        else:
            assert brightness[tinted].mean() < 90


# --- prints -----------------------------------------------------------------------------------------------------------

PRINTS = {term.id: drawer for term, drawer in zip(PATTERNS, PATTERN_DRAWERS) if drawer} | {"guochao": guochao, "nordic": nordic}
every_print = pytest.mark.parametrize("name", PRINTS)


@every_print
@every_colour
def test_a_print_leaves_the_product_mostly_of_its_own_colour(name: str, colour: int) -> None:
    """At least 60 % of the area stays base; and there is enough ink to see."""
    for seed in range(6):
        ink = ink_coverage(name, colour, seed)
        assert 0.05 <= ink.mean() <= 0.40, (seed, ink.mean())


def test_no_two_prints_look_alike() -> None:
    """Share of the area where exactly one of two prints has ink. Identical prints would share all of it."""
    for seed in range(6):
        inks = {name: ink_coverage(name, BLUE, seed) for name in PRINTS}
        for first in inks:
            for second in inks:
                if first < second:
                    assert np.abs(inks[first] - inks[second]).mean() > 0.12, (first, second, seed)


@every_print
@every_product
def test_a_print_shows_on_every_product(name: str, product: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {
        "guochao": Spec(product, RED, GREY_BACKGROUND, 0, GUOCHAO, 11),
        "nordic": Spec(product, RED, GREY_BACKGROUND, 0, NORDIC, 11),
    }.get(name) or Spec(product, RED, GREY_BACKGROUND, [term.id for term in PATTERNS].index(name), STUDIO, 11)
    printed = draw(spec, 128).astype(int)
    without_ink(monkeypatch)
    inked = np.abs(printed - draw(spec, 128)).max(axis=2) > 24
    product_area = tinted_pixels(spec, 128)
    assert inked[product_area].mean() > 0.03
    assert not (inked & ~dilated(product_area, 3)).any(), "ink stays on the product"


@every_product
def test_watercolour_runs_at_its_edges_and_leaves_the_corners_to_the_paper(product: int) -> None:
    for background in range(len(BACKGROUNDS)):
        studio = Spec(product, BLUE, background, 0, STUDIO, 3)
        painted = draw(replace(studio, style=WATERCOLOUR))
        assert steepest_edge(painted) < 0.6 * steepest_edge(draw(studio)), background
        corners = painted[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        assert np.abs(corners - (250, 247, 240)).max() <= 24, (background, corners)


# --- specs and captions -----------------------------------------------------------------------------------------------


def test_a_list_of_specs_is_fixed_by_its_seed() -> None:
    assert sampled_specs(50) == sampled_specs(50)
    assert sampled_specs(50) != sampled_specs(50, seed=1)


def test_sampling_meets_every_term_and_prints_nothing_over_a_styled_print() -> None:
    specs = sampled_specs(SAMPLED)
    for part, terms in PARTS.items():
        assert {getattr(spec, part) for spec in specs} == set(range(len(terms))), part
    assert all(spec.pattern == 0 for spec in specs if spec.style in (GUOCHAO, NORDIC))


@both_languages
def test_a_caption_names_the_product_and_nothing_that_the_picture_lacks(language: str) -> None:
    rng = np.random.default_rng(4)
    for spec in sampled_specs(SAMPLED):
        for _ in range(6):
            text = caption(spec, rng, language)
            named = parsed(text, language)
            assert named["product"] == [spec.product], text
            for part in ("colour", "background", "pattern", "style"):
                assert named[part] in ([], [getattr(spec, part)]), (part, text, spec)
            assert named["rest"] == "", (text, named)


@both_languages
def test_a_caption_omits_a_colour_only_where_the_style_or_the_draw_allows_it(language: str) -> None:
    rng = np.random.default_rng(5)
    unnamed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for spec in sampled_specs(SAMPLED):
        kind = "studio" if spec.style != GUOCHAO else "red guochao" if spec.colour == RED else "other guochao"
        for _ in range(6):
            total[kind] += 1
            unnamed[kind] += not parsed(caption(spec, rng, language), language)["colour"]
    assert unnamed["other guochao"] == 0, "guochao alone means red"
    assert 0.05 < unnamed["studio"] / total["studio"] < 0.16
    assert 0.3 < unnamed["red guochao"] / total["red guochao"] < 0.7


@both_languages
def test_a_style_is_always_named_and_a_background_or_pattern_nearly_always(language: str) -> None:
    rng = np.random.default_rng(6)
    named: Counter[str] = Counter()
    specs = [spec for spec in sampled_specs(SAMPLED) for _ in range(3)]
    for spec in specs:
        words = parsed(caption(spec, rng, language), language)
        assert bool(words["style"]) == (spec.style != STUDIO), (words, spec)
        named["background"] += bool(words["background"])
        named["pattern"] += bool(words["pattern"]) and spec.pattern > 0
    assert 0.84 < named["background"] / len(specs) < 0.96
    assert 0.84 < named["pattern"] / sum(spec.pattern > 0 for spec in specs) < 0.98


@pytest.mark.parametrize(
    ("text", "language", "spec"),
    [
        ("国潮风T恤, 白色背景", "zh", Spec(0, RED, 0, 0, GUOCHAO, 0)),
        ("红色国潮T恤，白底", "zh", Spec(0, RED, 0, 0, GUOCHAO, 0)),
        ("a red guochao t-shirt on a white background", "en", Spec(0, RED, 0, 0, GUOCHAO, 0)),
        ("product photo of a blue mug with dots, wooden table", "en", Spec(7, BLUE, 5, 2, STUDIO, 0)),
    ],
)
def test_forms_that_people_type_are_among_the_captions(text: str, language: str, spec: Spec) -> None:
    rng = np.random.default_rng(0)
    assert any(caption(spec, rng, language) == text for _ in range(20_000))


def test_english_articles_fit_the_word_that_follows() -> None:
    rng = np.random.default_rng(8)
    for spec in sampled_specs(SAMPLED):
        for article, word in re.findall(r"\b(an?) (\w+)", caption(spec, rng, "en")):
            assert (article == "an") == (word[0] in "aeiou"), (article, word)


# --- vocabulary of these tests ----------------------------------------------------------------------------------------

PARTS = {"product": PRODUCTS, "colour": COLOURS, "background": BACKGROUNDS, "pattern": PATTERNS, "style": STYLES}
# What may stand between the terms of a caption.
JOINTS = {"en": r"product photo of|\b(?:an?|on|in)\b|[ ,]", "zh": r"一个|一件|产品图|的|[ ,，]"}


def sampled_specs(count: int, seed: int = 0) -> list[Spec]:
    rng = np.random.default_rng(seed)
    return [sample_spec(rng) for _ in range(count)]


def parsed(text: str, language: str) -> dict:
    """The terms that `text` names, by part, and under "rest" what belongs to none. Longest words first: 粉红色 is not 红.

    Backgrounds go first, since "red background" names no product colour, then the other parts together.
    """
    found: dict = {part: [] for part in PARTS}
    rest = text.lower()
    for group in (("background",), ("product", "colour", "pattern", "style")):
        words = [(word.lower(), part, i) for part in group for i, word in all_words(PARTS[part], language)]
        for word, part, i in sorted(words, key=lambda entry: -len(entry[0])):
            if part == "style" and i == STUDIO:
                continue  # "product photo" is a frame around any picture: see JOINTS
            edge = r"\b" if language == "en" else ""
            rest, count = re.subn(f"{edge}{re.escape(word)}{edge}", "|", rest)
            found[part] += [i] * count
    found["rest"] = re.sub(JOINTS[language] + r"|\|", "", rest)
    return found


def all_words(terms: tuple[Term, ...], language: str):
    return [(i, word) for i, term in enumerate(terms) for word in getattr(term, language)]


def tinted_pixels(spec: Spec, size: int = 256) -> np.ndarray:
    """Where the product's colour decides the pixel: bool [size, size]. Laces, soles and background are not among them."""
    other = RED if spec.colour not in (RED, 1, 6, 7) else BLUE
    change = np.abs(draw(spec, size).astype(int) - draw(replace(spec, colour=other), size))
    return change.max(axis=2) > 24


def dominant_colour(pixels: np.ndarray) -> int:
    """Index of the colour term that most of `pixels` [n, 3] are nearest to, in CIE Lab."""
    distance = np.linalg.norm(to_lab(pixels)[:, None] - to_lab(np.array(BASE))[None], axis=-1)
    return int(np.bincount(distance.argmin(axis=1), minlength=len(COLOURS)).argmax())


def to_lab(srgb: np.ndarray) -> np.ndarray:
    """CIE Lab under D65 from sRGB bytes [n, 3]. Source: IEC 61966-2-1 and CIE 15."""
    v = srgb / 255
    linear = np.where(v > 0.04045, ((v + 0.055) / 1.055) ** 2.4, v / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)


def ink_coverage(name: str, colour: int, seed: int) -> np.ndarray:
    """How much ink the print lays on each point of a product's area: 0..1, [180, 180]."""
    surface = skia.Surface(180, 180)
    canvas = surface.getCanvas()
    canvas.translate(90, 90)
    PRINTS[name](BASE[colour], np.random.default_rng(seed))(canvas, skia.Rect.MakeLTRB(-90, -90, 90, 90))
    return surface.toarray(colorType=skia.kRGBA_8888_ColorType)[:, :, 3] / 255


def without_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prints still draw their chances, so that the pose stays, but leave no ink."""

    def dry(make):
        def made(colour, rng):
            make(colour, rng)
            return lambda canvas, bounds: None

        return made

    monkeypatch.setattr(scene, "PATTERN_DRAWERS", tuple(drawer and dry(drawer) for drawer in PATTERN_DRAWERS))
    monkeypatch.setattr(scene, "guochao", dry(guochao))
    monkeypatch.setattr(scene, "nordic", dry(nordic))


def dilated(mask: np.ndarray, reach: int) -> np.ndarray:
    """`mask` grown by `reach` pixels in every direction."""
    out = mask.copy()
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            out |= np.roll(mask, (dy, dx), axis=(0, 1))
    return out


def steepest_edge(picture: np.ndarray) -> float:
    """The step between neighbours in a row that only one pair in 200 exceeds, in levels of 255."""
    return float(np.percentile(np.abs(np.diff(picture.astype(int), axis=1)).max(axis=2), 99.5))


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference, in levels of 255."""
    return float(np.abs(one.astype(np.float64) - other).mean())
