"""Draws the pictures that the embedded model learns from."""

from .scene import draw
from .spec import Spec, caption, sample_spec
from .terms import BACKGROUNDS, COLOURS, PATTERNS, PRODUCTS, STYLES, Term

__all__ = ["BACKGROUNDS", "COLOURS", "PATTERNS", "PRODUCTS", "STYLES", "Spec", "Term", "caption", "draw", "sample_spec"]
