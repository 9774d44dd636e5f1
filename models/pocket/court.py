"""Courts to choose from: the shape of the board, and colours and materials."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .flight import Board
from .scene import Colour, Look

Array = npt.NDArray[Any]

# Colours seen on outdoor courts, BGR.
BOARDS = ((238, 238, 236), (205, 228, 235), (178, 165, 148), (232, 222, 214))
RIMS = ((45, 50, 200), (40, 75, 220), (42, 38, 52), (60, 55, 140), (30, 30, 120), (75, 58, 48), (36, 32, 30))
BALLS = ((55, 95, 190), (70, 95, 220), (45, 45, 105), (60, 105, 165), (80, 110, 235))


def choose_board(rng: np.random.Generator) -> Board:
    """A fan-shaped board, or more rarely a rectangular one."""
    if rng.random() < 0.72:
        return Board(rng.uniform(0.62, 0.78), rng.uniform(-0.22, -0.08), rng.uniform(0.68, 0.95), True)
    return Board(rng.uniform(0.70, 0.92), rng.uniform(-0.2, -0.1), rng.uniform(0.75, 0.95), False)


def choose_look(rng: np.random.Generator) -> Look:
    """Materials seen on outdoor courts: white, cream or shadowed boards, red or dark rims, rope or chain nets."""
    board = np.array(BOARDS[int(rng.integers(len(BOARDS)))]) * rng.uniform(0.55, 1.05) + rng.normal(0, 3, 3)
    rim = np.array(RIMS[int(rng.integers(len(RIMS)))]) * rng.uniform(0.8, 1.15)
    chain = bool(rng.random() < 0.35)
    net_tone = rng.uniform(60, 175) if chain else rng.uniform(130, 245)
    ball = np.array(BALLS[int(rng.integers(len(BALLS)))]) * rng.uniform(0.8, 1.15) + rng.normal(0, 6, 3)
    angle = rng.uniform(-2.4, -0.7)
    return Look(
        background="sky" if rng.random() < 0.5 else "trees",
        board=_colour(board),
        trim=(45.0, 55.0, 205.0) if rng.random() < 0.4 else None,
        target_box=bool(rng.random() < 0.6),
        rim=_colour(rim),
        rim_marks=(190.0, 200.0, 205.0) if rng.random() < 0.3 else None,
        net=_colour(net_tone + rng.normal(0, 5, 3)),
        chain=chain,
        post=_colour(rng.uniform(25, 190) + rng.normal(0, 8, 3)),
        ball=_colour(ball),
        seam=_colour(ball * rng.uniform(0.2, 0.6)),
        sun=(math.cos(angle), math.sin(angle)),
        contrast=rng.uniform(0.25, 0.9),
    )


def _colour(bgr: Array) -> Colour:
    b, g, r = (float(c) for c in np.clip(bgr, 0, 255))
    return b, g, r
