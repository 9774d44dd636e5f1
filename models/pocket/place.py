"""Places seen by a level camera, as far as they stand still: halls, fields, streets, studios, and patterns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from .camera import Camera
from .colours import ACRYLICS, CLAYS, GRASSES, GREYS, SKINS, WOODS, any_colour, near_colour
from .court import choose_look
from .scene import Colour, clouds, draw_background

Array = npt.NDArray[Any]

STATURE = 1.75  # m


@dataclass(frozen=True)
class Ground:
    """A level camera over a floor: row of the horizon, focal length (pixels), height (m), middle column."""

    horizon: float
    focal: float
    height: float
    middle: float

    def camera(self) -> Camera:
        """World axes: x to the right, y ahead, z up from the floor."""
        axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
        return Camera(np.array([0.0, 0.0, self.height]), axes, self.focal, (self.middle, self.horizon))

    def floor(self, side: int, top: int) -> tuple[Array, Array, Array]:
        """Metres to the right [R, side] and ahead [R, 1], and a pixel's width there (m), of the rows from `top` on."""
        ahead = (
            self.focal * self.height / np.maximum(np.arange(top, side) - self.horizon, 0.7)[:, None].astype(np.float32)
        )
        return (np.arange(side, dtype=np.float32) - self.middle) * ahead / self.focal, ahead, ahead / self.focal


def choose_ground(
    rng: np.random.Generator, side: int, window: tuple[float, float]
) -> tuple[Ground, tuple[float, float]]:
    """A floor, and where the main figure stands on it (m): 10 to 110 % of the picture's height tall."""
    tall = math.exp(rng.uniform(math.log(0.1), math.log(1.1))) * window[1]
    top = (side - window[1]) / 2
    horizon = top + rng.uniform(0.08, 0.6) * window[1]
    feet = max(top + rng.uniform(0.55, 1.0) * window[1], horizon + 6, top + 0.95 * tall)
    focal = rng.uniform(0.9, 2.4) * window[0]
    ground = Ground(horizon, focal, STATURE * (feet - horizon) / tall, side / 2)
    away = focal * STATURE / tall
    return ground, (rng.uniform(-0.35, 0.35) * window[0] * away / focal, away)


def draw_place(rng: np.random.Generator, side: int, ground: Ground) -> Array:
    """uint8 [side, side, 3]: a hall, a field, a street, a studio or a pattern."""
    kind = str(rng.choice(("hall", "field", "street", "studio", "pattern"), p=(0.34, 0.34, 0.1, 0.12, 0.1)))
    if kind == "studio":
        return _studio(rng, side, ground)
    if kind == "pattern":
        return _pattern(rng, side)
    image = np.empty((side, side, 3), np.float32)
    depth = rng.uniform(0.02, 0.45) if kind == "hall" else rng.uniform(0.0, 0.12)
    foot = int(np.clip(ground.horizon + depth * (side - ground.horizon), 8, side - 8))
    floors: tuple[tuple[Colour, ...], ...] = (GRASSES, GRASSES, CLAYS, ACRYLICS)
    if kind == "hall":
        _wall(rng, image[:foot])
        floors = (WOODS, WOODS, ACRYLICS, GREYS)
    else:
        _open_air(rng, image[:foot], side, built=kind == "street")
        floors = (GREYS, GREYS, CLAYS) if kind == "street" else floors
    colours = floors[int(rng.integers(len(floors)))]
    _floor(rng, image, ground, foot, colours)
    if kind == "hall" and rng.random() < 0.5:
        _reflect(rng, image, foot)
    light = 0.85 + 0.4 * clouds(rng, side, 2, 2)[..., None]
    return np.clip(image * light, 0, 255).astype(np.uint8)


def _floor(rng: np.random.Generator, image: Array, ground: Ground, foot: int, colours: Sequence[Colour]) -> None:
    """Boards, mown stripes or tiles, grain, painted areas and lines, in perspective, onto float32 `image`."""
    across, ahead, pixel = ground.floor(len(image), foot)
    across = across + rng.uniform(-4, 4)
    tone = np.ones(across.shape, np.float32)
    if rng.random() < 0.6:  # stripes: boards, mowing, tiles
        width = float(rng.choice((0.12, 0.3, 1.0, 4.0)))
        fade = np.clip(1.6 - 2 * pixel / width, 0, 1)
        tones = rng.normal(0, 0.05, 64).astype(np.float32)
        if rng.random() < 0.7:
            tone += fade * tones[np.floor(across / width).astype(np.int32) % 64]
        if rng.random() < 0.5:
            tone += fade * tones[::-1][np.floor(ahead / width).astype(np.int32) % 64]
    grain = clouds(rng, 256, int(rng.choice((8, 32, 64))), 3, 0.8) - 0.5
    pitch = 256 / rng.uniform(2, 12)
    sampled = cv2.remap(
        grain, across * pitch % 256, np.broadcast_to(ahead * pitch % 256, across.shape).copy(), cv2.INTER_LINEAR
    )
    tone += sampled * rng.uniform(0.05, 0.9) * np.clip(1.5 - pixel * pitch / 12, 0.15, 1)
    painted = tone[..., None] * np.array(near_colour(rng, colours), np.float32)
    for _ in range(int(rng.integers(0, 3))):
        x, y, half, deep = rng.uniform(-6, 6), rng.uniform(2, 20), rng.uniform(1, 5), rng.uniform(1, 8)
        inside = (np.abs(across - x) < half) & (np.abs(ahead - y) < deep)
        painted[inside] = tone[inside][:, None] * np.array(near_colour(rng, ACRYLICS + CLAYS), np.float32)
    for _ in range(int(rng.choice((0, 2, 5, 9)))):
        colour = np.array(any_colour(rng) if rng.random() < 0.4 else (235.0, 235.0, 235.0), np.float32)
        away = _line_distance(rng, across, ahead)
        cover = np.clip((0.05 - np.abs(away)) / pixel + 0.5, 0, 1) * np.minimum(1, 0.1 / pixel)
        painted += cover[..., None] * (colour - painted)
    image[foot:] = painted


def _line_distance(rng: np.random.Generator, across: Array, ahead: Array) -> Array:
    """Metres from a line of a random court: along, across, slanting or a circle."""
    kind, at = int(rng.integers(4)), rng.uniform(-6, 6)
    if kind == 0:
        return cast(Array, across - at)
    if kind == 1:
        return cast(Array, ahead - rng.uniform(2, 25) + 0 * across)
    if kind == 2:
        angle = rng.uniform(0, math.pi)
        return cast(Array, (across - at) * math.sin(angle) + (ahead - rng.uniform(3, 15)) * math.cos(angle))
    return cast(Array, np.hypot(across - at, ahead - rng.uniform(3, 18)) - rng.uniform(1, 7))


def _reflect(rng: np.random.Generator, image: Array, foot: int) -> None:
    """A polished floor mirrors the wall, faintly and blurred."""
    rows = min(foot, len(image) - foot)
    mirrored = cv2.GaussianBlur(image[foot - rows : foot][::-1], (0, 0), 4)
    fade = np.linspace(rng.uniform(0.1, 0.4), 0, rows, dtype=np.float32)[:, None, None]
    image[foot : foot + rows] += fade * (mirrored - image[foot : foot + rows])


def _wall(rng: np.random.Generator, wall: Array) -> None:
    """Bands, columns, panels, doors, windows, writing, stands and lamps onto float32 [R, side, 3]."""
    rows, side = wall.shape[:2]
    wall[:] = np.array(any_colour(rng)) if rng.random() < 0.6 else np.array(near_colour(rng, GREYS)) * 1.2
    for _ in range(int(rng.integers(0, 5))):
        low = rng.uniform(0, rows)
        wall[int(low) : int(low + rng.choice((2, 5, 0.2 * rows, 0.5 * rows)))] = any_colour(rng)
    if rng.random() < 0.35:
        _stands(rng, wall[int(rng.uniform(0, 0.5) * rows) : int(rng.uniform(0.6, 1) * rows)])
    if rng.random() < 0.5:
        pitch, width, colour = rng.uniform(0.06, 0.4) * side, rng.uniform(1, 14), any_colour(rng)
        for x in np.arange(rng.uniform(0, pitch), side, pitch):
            wall[:, int(x) : int(x + width)] = colour
    for _ in range(int(rng.choice((0, 2, 5, 10)))):
        _panel(rng, wall)
    for _ in range(int(rng.choice((0, 0, 3, 8)))):
        at = (int(rng.uniform(0, side)), int(rng.uniform(0, 0.3) * rows))
        axes = (int(rng.uniform(2, 12)), int(rng.uniform(1, 5)))
        cv2.ellipse(wall, at, axes, 0, 0, 360, (250.0, 252.0, 255.0), -1, cv2.LINE_AA)


def _panel(rng: np.random.Generator, wall: Array) -> None:
    """A door, a window or a written board."""
    rows, side = wall.shape[:2]
    width, height = int(side * rng.uniform(0.03, 0.35)), max(4, int(rows * rng.uniform(0.08, 0.5)))
    left, top = int(rng.uniform(-0.1, 1) * side), int(rng.uniform(0, 1) * rows)
    colour = any_colour(rng)
    cv2.rectangle(wall, (left, top), (left + width, top + height), colour, -1)
    if rng.random() < 0.5:
        cv2.rectangle(wall, (left, top), (left + width, top + height), any_colour(rng), int(rng.integers(1, 4)))
    kind = rng.random()
    if kind < 0.4:
        write(rng, wall, (left + 3, top + int(0.75 * height)), height / 38)
    elif kind < 0.65:
        for x in np.linspace(left, left + width, int(rng.integers(2, 7))):
            cv2.line(wall, (int(x), top), (int(x), top + height), any_colour(rng), 1, cv2.LINE_AA)


def _stands(rng: np.random.Generator, rows: Array) -> None:
    """People in seats, far away: speckle in rows."""
    high, side = rows.shape[:2]
    if high < 6:
        return
    pitch = int(rng.integers(3, 9))
    seats = (max(2, high // pitch), max(2, side // pitch))
    seat = np.array(any_colour(rng), np.float32)
    clothes = np.array([any_colour(rng) for _ in range(4)] + [(40.0, 40.0, 45.0), (225.0, 225.0, 225.0), SKINS[1]])
    colours = clothes[rng.integers(len(clothes), size=seats)] * rng.uniform(0.6, 1.1, (*seats, 1))
    people = np.where(rng.random((*seats, 1)) < rng.uniform(0.1, 0.95), colours, seat).astype(np.float32)
    how = cv2.INTER_LINEAR if rng.random() < 0.6 else cv2.INTER_NEAREST
    crowd = cv2.resize(people, (side, high), interpolation=how)
    heads = np.sin(np.arange(high) * 2 * math.pi / pitch)[:, None, None] * 22
    rows[:] = np.clip(crowd + heads, 0, 255)


def _open_air(rng: np.random.Generator, image: Array, side: int, built: bool) -> None:
    """Sky, houses, trees, a fence and poles onto float32 [R, side, 3]."""
    rows = len(image)
    look = choose_look(rng)
    image[:] = draw_background(rng, replace(look, background="sky"), side)[:rows]
    if rng.random() < 0.35:
        image += (clouds(rng, side, 4, 4)[:rows, :, None] > rng.uniform(0.3, 0.6)) * np.float32(rng.uniform(10, 70))
    if rng.random() < 0.15:
        image[:] = rng.uniform(140, 250)
    if built or rng.random() < 0.3:
        for _ in range(int(rng.integers(2, 8))):
            _house(rng, image)
    if rng.random() < (0.3 if built else 0.75):
        leaves = draw_background(rng, replace(look, background="trees"), side)[:rows].astype(np.float32)
        leaves = leaves * rng.uniform(0.7, 1.7)
        line = rows * rng.uniform(0.3, 1.0) - clouds(rng, side, int(rng.integers(4, 20)), 4)[0] * rows * rng.uniform(
            0.05, 0.5
        )
        edge = np.clip((np.arange(rows)[:, None] - line[None]) / 2, 0, 1)[..., None]
        image += edge * (leaves - image)
    if rng.random() < 0.3:
        _stands(rng, image[int(rows * rng.uniform(0.4, 0.9)) :])
    if rng.random() < 0.35:
        image[int(rows * rng.uniform(0.7, 0.95)) :] = any_colour(rng)
    if rng.random() < 0.4:
        _mesh(rng, image, int(rows * rng.uniform(0.2, 0.9)))
    for _ in range(int(rng.choice((0, 0, 1, 3)))):
        x, colour = int(rng.uniform(0, side)), near_colour(rng, GREYS)
        cv2.line(image, (x, int(rows * rng.uniform(0, 0.7))), (x, rows), colour, int(rng.integers(1, 6)), cv2.LINE_AA)
    for _ in range(int(rng.choice((0, 0, 1, 4)))):
        _panel(rng, image[int(0.6 * rows) :])


def _house(rng: np.random.Generator, image: Array) -> None:
    rows, side = image.shape[:2]
    left, width, top = rng.uniform(-0.1, 1) * side, rng.uniform(0.06, 0.3) * side, int(rows * rng.uniform(0.05, 0.9))
    cv2.rectangle(image, (int(left), top), (int(left + width), rows), near_colour(rng, (*GREYS, *CLAYS)), -1)
    pitch, pane = rng.uniform(5, 16), near_colour(rng, GREYS)
    for y in np.arange(top + 3, rows - 3, pitch):
        for x in np.arange(left + 3, left + width - 4, pitch):
            cv2.rectangle(image, (int(x), int(y)), (int(x + pitch * 0.5), int(y + pitch * 0.55)), pane, -1)


def _mesh(rng: np.random.Generator, image: Array, top: int) -> None:
    """A wire fence from row `top` down."""
    rows, side = image.shape[:2]
    over, pitch, colour = image.copy(), rng.uniform(4, 12), near_colour(rng, GREYS)
    slant = rows - top
    for x in np.arange(-slant, side + slant, pitch):
        cv2.line(over, (int(x), top), (int(x + slant), rows), colour, 1, cv2.LINE_AA)
        cv2.line(over, (int(x), top), (int(x - slant), rows), colour, 1, cv2.LINE_AA)
    for x in np.arange(rng.uniform(0, 60), side, rng.uniform(40, 120)):
        cv2.line(over, (int(x), top), (int(x), rows), colour, 2, cv2.LINE_AA)
    image += np.float32(rng.uniform(0.3, 0.8)) * (over - image)


def _studio(rng: np.random.Generator, side: int, ground: Ground) -> Array:
    """A plain backdrop that runs into its floor: white, grey, dark or coloured."""
    colour = np.array(
        any_colour(rng) if rng.random() < 0.4 else [rng.choice((30.0, 120.0, 215.0, 252.0))] * 3, np.float32
    )
    image = np.broadcast_to(colour, (side, side, 3)).copy()
    if rng.random() < 0.6:
        below = np.clip((np.arange(side) - ground.horizon) / rng.uniform(2, 60), 0, 1)[:, None, None]
        image *= 1 + below * rng.uniform(-0.25, 0.15)
    image *= (1 + rng.uniform(0, 0.35) * (clouds(rng, side, 2, 1) - 0.5))[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def _pattern(rng: np.random.Generator, side: int) -> Array:
    """No place at all: coloured clouds, or leaves of every shape fallen over each other, rings among them."""
    if rng.random() < 0.3:
        layers = [clouds(rng, side, int(rng.integers(2, 60)), int(rng.integers(1, 5)), 0.8) for _ in range(3)]
        return np.asarray(np.stack(layers, axis=2) * 255, np.uint8)
    image = np.full((side, side, 3), any_colour(rng), np.uint8)
    for _ in range(int(rng.integers(10, 160))):
        at = (int(rng.uniform(0, side)), int(rng.uniform(0, side)))
        reach = 3 + side * 0.25 * rng.power(0.5) ** 2
        axes, angle = (int(reach), int(reach * rng.uniform(0.15, 1))), rng.uniform(0, 180)
        colour, filled = any_colour(rng), -1 if rng.random() < 0.85 else int(rng.integers(1, 6))
        if rng.random() < 0.5:
            cv2.ellipse(image, at, axes, angle, 0, 360, colour, filled, cv2.LINE_AA)
        else:
            corners = np.array(cv2.boxPoints((at, (2.0 * axes[0], 2.0 * axes[1]), angle)), np.int32)
            cv2.polylines(image, [corners], True, colour, abs(filled), cv2.LINE_AA)
            if filled < 0:
                cv2.fillPoly(image, [corners], colour, cv2.LINE_AA)
    shade = 0.6 + 0.6 * clouds(rng, side, int(rng.integers(2, 80)), 3)
    return np.clip(image * shade[..., None], 0, 255).astype(np.uint8)


def write(
    rng: np.random.Generator, image: Array, at: tuple[int, int], scale: float, cover: Array | None = None
) -> None:
    """A random word at pixel `at`, as on boards and score boxes; uint8 `cover` [S, S] becomes 255 about it."""
    letters = "".join(chr(65 + int(k)) if k < 26 else " " for k in rng.integers(0, 29, int(rng.integers(4, 16))))
    thickness = 1 + (scale > 0.8)
    font = int(rng.integers(0, 5))
    cv2.putText(image, letters, at, font, scale, any_colour(rng), thickness, cv2.LINE_AA)
    if cover is not None:
        (wide, high), _ = cv2.getTextSize(letters, font, scale, thickness)
        cv2.rectangle(cover, (at[0] - 2, at[1] + 4), (at[0] + wide, at[1] - high - 2), 255, -1)
