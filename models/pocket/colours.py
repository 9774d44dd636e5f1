"""Colours of what cameras film, BGR from 0 to 255, and random ones near them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .scene import Colour

WOODS: tuple[Colour, ...] = ((120, 170, 215), (80, 130, 190), (150, 190, 220), (60, 95, 140))
GRASSES: tuple[Colour, ...] = ((40, 120, 70), (50, 150, 110), (30, 90, 60), (90, 160, 160))
CLAYS: tuple[Colour, ...] = ((60, 95, 190), (80, 120, 180), (110, 150, 190), (140, 190, 215))
GREYS: tuple[Colour, ...] = ((90, 90, 90), (140, 140, 140), (180, 180, 178), (70, 75, 80))
ACRYLICS: tuple[Colour, ...] = ((150, 90, 40), (80, 110, 40), (60, 50, 140), (90, 140, 90))
SKINS: tuple[Colour, ...] = ((170, 195, 235), (130, 165, 215), (95, 130, 185), (60, 85, 130), (40, 55, 85))
HAIRS: tuple[Colour, ...] = ((25, 28, 32), (35, 55, 80), (70, 120, 170), (120, 120, 125))


def any_colour(rng: np.random.Generator) -> Colour:
    """Any hue, mostly muted: BGR."""
    hue, saturation, value = rng.uniform(0, 180), 255 * rng.beta(1.0, 2.2), 255 * rng.beta(2.4, 1.3)
    b, g, r = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return float(b), float(g), float(r)


def near_colour(rng: np.random.Generator, colours: Sequence[Colour], spread: float = 18.0) -> Colour:
    """One of `colours`, lighter or darker, each channel off by about `spread` grey levels."""
    picked = np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.65, 1.2) + rng.normal(0, spread, 3)
    b, g, r = (float(c) for c in np.clip(picked, 0, 255))
    return b, g, r
