"""Footage of anywhere but a rim: seeded clips of places, people and balls in which no hoop is seen close to.

A model that has only ever seen a hoop finds one everywhere. `film(seed)` makes what it has to say no to: halls, fields,
streets, studios and patterns with jointed people in them, natural pictures under a moving camera, and the rim camera's
own world with its hoop outside the picture or so far away that nobody could tell a make from a miss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from .ball import Ball, shoot, throw_balls
from .camera import Camera
from .court import choose_board, choose_look
from .figure import Figure
from .flight import NET_LENGTH
from .lens import Lens
from .photos import draw_photo
from .place import Ground, choose_ground, draw_place, write
from .scene import RING_PATH, NetState, Structure, draw_background, draw_cords, draw_ring, net_segments
from .take import FPS, MAX_FRAMES

Array = npt.NDArray[Any]
World = Literal["place", "photo", "beside", "far"]

MIN_FRAMES = 30
FAR_RING = 0.10  # widest ring of a hoop far away, share of the picture's width; a rim camera's is 0.13 and more
RING_HEIGHT = 3.05  # m above the floor (FIBA Official Basketball Rules)
CANVAS = 1.7  # side of what is drawn, in picture sides: what a camera pans over
# Width over height of what is filmed; the runtime stretches it to a square.
SHAPES = (16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
BRIEF = 0.2 / FPS  # s: a shutter in which nothing is seen to move


@dataclass(frozen=True)
class Stage:
    """What a clip is filmed from.

    `canvas` uint8 [C, C, 3] stands still; `camera` projects metres to its pixels; `views` float64 [N, 2, 3] take canvas
    pixels to picture pixels. `hoop` is the camera of a hoop at the origin, far away or outside the picture, else None.
    """

    world: World
    canvas: Array
    camera: Camera
    views: Array
    hoop: Camera | None
    figures: tuple[Figure, ...]
    balls: tuple[Ball, ...]
    shutter: float  # seconds


def film(seed: int, size: int = 224, photos: Sequence[Array] = ()) -> Array:
    """Film 30 to 60 frames at 30 frames per second without a hoop: uint8 [N, size, size, 3], BGR.

    The same arguments give the same pixels. `photos` uint8 [H, W, 3] BGR stand behind about a third of the clips.
    """
    rng = np.random.default_rng(seed)
    stage = set_stage(rng, size, photos)
    overlay, lens = _overlay(rng, size), Lens(rng, size)
    frames = np.empty((len(stage.views), size, size, 3), np.uint8)
    for n in range(len(frames)):
        frames[n] = lens.expose(overlay(_expose(stage, n, size)))
    return frames


def set_stage(rng: np.random.Generator, size: int, photos: Sequence[Array] = ()) -> Stage:
    """Choose a world and who moves in it, and draw what stands still."""
    worlds: tuple[World, ...] = ("place", "photo", "beside", "far")
    shares = (0.42, 0.24, 0.04, 0.30) if len(photos) else (0.60, 0.0, 0.05, 0.35)
    world = worlds[int(rng.choice(4, p=shares))]
    side = round(CANVAS * size)
    shape = float(rng.choice(SHAPES, p=(0.5, 0.15, 0.15, 0.05, 0.15)))
    frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    views, window = _views(rng, frames, size, side, shape, still=world in ("place", "far"))
    if world == "beside":
        return _beside(rng, size, side, views, window)
    if world == "far":
        return _far(rng, side, views, window)
    ground, main = choose_ground(rng, side, window)
    if world == "photo":
        canvas, crowded = draw_photo(rng, photos, side), bool(rng.random() < 0.5)
    else:
        canvas, crowded = draw_place(rng, side, ground), bool(rng.random() < 0.93)
    camera, seconds = ground.camera(), len(views) / FPS
    people = int(rng.choice((1, 2, 3, 4), p=(0.5, 0.25, 0.15, 0.1))) if crowded else 0
    figures = tuple(_cast_figure(rng, ground, main, k, seconds) for k in range(people))
    balls = throw_balls(rng, camera, side, window, seconds, floor=0.0)
    return Stage(world, canvas, camera, views, None, figures, balls, _shutter(rng))


def _shutter(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.05, 0.5) / FPS)


def _views(
    rng: np.random.Generator, frames: int, size: int, side: int, shape: float, still: bool
) -> tuple[Array, tuple[float, float]]:
    """Pan, zoom, roll and shake over a canvas: matrices float64 [N, 2, 3], and the smallest window (width, height).

    `still` allows a camera on a tripod.
    """
    time = np.linspace(0, 1, frames)
    kinds = ("still", "hand", "pan", "zoom", "follow")
    kind = str(rng.choice(kinds, p=(0.25, 0.3, 0.2, 0.1, 0.15) if still else (0.0, 0.4, 0.27, 0.13, 0.2)))
    share = rng.uniform(0.6, 0.95)
    zoom = np.exp(rng.normal(0, 0.25) * (3 * time**2 - 2 * time**3)) if kind == "zoom" else np.ones(frames)
    zoom = np.minimum(share * zoom / zoom[0], 0.97)
    width = side * zoom * min(1.0, shape)
    height = width / shape
    room = np.stack([side - width, side - height], axis=1) / 2
    reach = {"still": 0.0, "hand": 0.06, "pan": 0.9, "zoom": 0.15, "follow": 0.6}[kind]
    start, end = rng.uniform(-1, 1, (2, 2)) * np.minimum(1.0, (1.0, 0.45))
    at = start + reach * (end - start) * time[:, None] ** rng.uniform(0.6, 1.6)
    if kind == "follow":
        at = at + 0.3 * np.sin(2 * math.pi * rng.uniform(0.4, 1.4, 2) * time[:, None] + rng.uniform(0, 6, 2))
    jolt = 0.0 if kind == "still" else rng.choice([0.15, 0.5, 1.6])
    waves = sum(
        np.sin(2 * math.pi * rng.uniform(0.3, 5, 3) * frames / FPS * time[:, None] + rng.uniform(0, 6, 3))
        for _ in range(3)
    )
    middle = side / 2 + np.clip(at, -1, 1) * room + jolt * np.asarray(waves)[:, :2] * 0.006 * side
    turn = math.radians(rng.normal(0, 1.5)) + jolt * np.asarray(waves)[:, 2] * 0.006
    cos, sin, across, down = np.cos(turn), np.sin(turn), size / width, size / height
    views = np.empty((frames, 2, 3))
    views[:, 0, 0], views[:, 0, 1], views[:, 1, 0], views[:, 1, 1] = across * cos, -across * sin, down * sin, down * cos
    views[:, :, 2] = size / 2 - np.einsum("nij,nj->ni", views[:, :, :2], middle)
    return views, (float(width.min()), float(height.min()))


def _expose(stage: Stage, n: int, size: int) -> Array:
    """One frame: two halves of the shutter's time laid over each other, one where it is brief: uint8 [S, S, 3]."""
    time = n / FPS
    first = _moment(stage, n, time, size)
    if stage.shutter < BRIEF or not (stage.figures or stage.balls):
        return first
    return cv2.addWeighted(first, 0.5, _moment(stage, n, time + stage.shutter / 2, size), 0.5, 0)


def _moment(stage: Stage, n: int, time: float, size: int) -> Array:
    picture = stage.canvas.copy()
    for ball in (ball for ball in stage.balls if not ball.near):
        ball.draw(picture, stage.camera, time, stage.shutter)
    for figure in stage.figures:
        figure.draw(picture, stage.camera, time)
    for ball in (ball for ball in stage.balls if ball.near):
        ball.draw(picture, stage.camera, time, stage.shutter)
    return cv2.warpAffine(picture, stage.views[n], (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _overlay(rng: np.random.Generator, size: int) -> Callable[[Array], Array]:
    """What editors lay over footage: a score box, a caption, black bars, the edge of a fisheye; mostly nothing."""
    plate: Array = np.zeros((size, size, 3), np.uint8)
    cover: Array = np.zeros((size, size), np.uint8)
    kind = str(rng.choice(("none", "score", "caption", "bars", "fisheye"), p=(0.68, 0.12, 0.1, 0.06, 0.04)))
    if kind == "none":
        return lambda picture: picture
    if kind == "bars":
        bar = int(size * rng.uniform(0.04, 0.16))
        if rng.random() < 0.5:
            cover[:bar], cover[size - bar :] = 255, 255
        else:
            cover[:, :bar], cover[:, size - bar :] = 255, 255
    elif kind == "fisheye":
        cover[:] = 255
        cv2.circle(cover, (size // 2, size // 2), int(size * rng.uniform(0.54, 0.62)), 0, -1, cv2.LINE_AA)
    else:
        wide, high = int(size * rng.uniform(0.2, 0.6)), int(size * rng.uniform(0.06, 0.18))
        left, top = int(rng.choice((4, size - wide - 4))), int(rng.choice((4, size - high - 4)))
        if kind == "score":
            plate[top : top + high, left : left + wide] = rng.integers(0, 256, 3)
            cover[top : top + high, left : left + wide] = 255
        write(rng, plate, (left + 3, top + high - 4), high / 45, cover)
    return lambda picture: np.where(cover[..., None] > 127, plate, picture)


def _beside(rng: np.random.Generator, size: int, side: int, views: Array, window: tuple[float, float]) -> Stage:
    """The rim camera's background, and of its hoop at most a part of post and board: never the ring."""
    look, board = choose_look(rng), choose_board(rng)
    while True:
        bearing = rng.uniform(0, 2 * math.pi)
        reach = rng.uniform(0.5, 1.1) * side
        camera = Camera.around_ring(
            azimuth=math.radians(rng.uniform(-100, 100)),
            elevation=math.radians(rng.uniform(8, 45)),
            distance=rng.uniform(2.6, 7.5),
            roll=math.radians(rng.normal(0, 2)),
            ring_pixels=rng.uniform(0.15, 0.4) * window[0],
            ring_at=(side / 2 + reach * math.cos(bearing), side / 2 + reach * math.sin(bearing)),
        )
        if not inside(seen_hoop(camera, views), size, margin=0.04 * size).any():
            break
    background = draw_background(rng, look, side)
    canvas = Structure(background, camera, board, look, rng).image if rng.random() < 0.7 else background
    balls = throw_balls(rng, camera, side, window, len(views) / FPS, floor=-1e3, look=look)
    return Stage("beside", canvas, camera, views, camera, (), balls, _shutter(rng))


def _far(rng: np.random.Generator, side: int, views: Array, window: tuple[float, float]) -> Stage:
    """A court filmed from far away: ring at most `FAR_RING` of the picture's width, people below it."""
    look, board = choose_look(rng), choose_board(rng)
    pixels = rng.uniform(0.012, 0.93 * FAR_RING) * window[0]
    distance, height = rng.uniform(7, 22), rng.uniform(0.6, 2.6)
    elevation = math.asin((RING_HEIGHT - height) / distance)
    at = (side / 2 + rng.uniform(-0.4, 0.4) * window[0], side / 2 + rng.uniform(-0.4, 0.1) * window[1])
    azimuth = math.radians(rng.uniform(-80, 80))
    camera = Camera.around_ring(azimuth, elevation, distance, 0.0, pixels, at)
    ground = Ground(at[1] + camera.focal * math.tan(elevation), camera.focal, height, side / 2)
    background = draw_place(rng, side, ground)
    canvas = Structure(background, camera, board, look, rng).image
    ring = camera.project(np.stack([RING_PATH[:-1], RING_PATH[1:]], axis=1))
    net = NetState.at_rest(rng)
    draw_ring(canvas, ring, np.arange(len(ring)), look, camera.pixels_per_metre())
    if rng.random() < 0.85:
        cords = camera.project(net_segments(net, np.array((0.0, 0.0, 9.0)), look.chain))
        draw_cords(canvas, cords, look, camera.pixels_per_metre(), near=True)
    seconds = len(views) / FPS
    figures = tuple(_cast_below_hoop(rng, camera, side, window, seconds) for _ in range(int(rng.integers(1, 4))))
    balls = (shoot(rng, look, -RING_HEIGHT), *throw_balls(rng, camera, side, window, seconds, floor=-RING_HEIGHT))
    return Stage("far", canvas, camera, views, camera, figures, balls, _shutter(rng))


def seen_hoop(camera: Camera, views: Array) -> Array:
    """Picture pixels of the outer edge of the ring and of the net's hem at the origin: float64 [N, P, 2] in N views."""
    edge = camera.project(np.concatenate([RING_PATH * 1.1, RING_PATH - (0.0, 0.0, NET_LENGTH)]))[:, :2]
    return cast(Array, np.einsum("nij,pj->npi", views[:, :, :2], edge) + views[:, None, :, 2])


def inside(points: Array, size: int, margin: float = 0.0) -> Array:
    """Where points [..., 2] are in the picture or within `margin` pixels of it: bool [...]."""
    return cast(Array, ((points > -margin) & (points < size + margin)).all(axis=-1))


def _cast_figure(rng: np.random.Generator, ground: Ground, main: tuple[float, float], k: int, seconds: float) -> Figure:
    """The main figure (k = 0) where it was placed, others about it."""
    x, y = main
    if k:
        y = y * rng.uniform(0.8, 3.0)
        x = rng.uniform(-0.45, 0.45) * 2 * ground.middle * y / ground.focal
    return Figure(rng, (x, y, 0.0), seconds)


def _cast_below_hoop(
    rng: np.random.Generator, camera: Camera, side: int, window: tuple[float, float], seconds: float
) -> Figure:
    """Somebody between the camera and a little behind the hoop, feet on its floor."""
    forward = camera.axes[2] * (1, 1, 0)
    forward = forward / np.linalg.norm(forward)
    away = float(np.linalg.norm(camera.position)) * rng.uniform(0.3, 1.1)
    aside = rng.uniform(-0.4, 0.4) * window[0] * away / camera.focal
    spot = camera.position + forward * away + np.array((forward[1], -forward[0], 0.0)) * aside
    return Figure(rng, (float(spot[0]), float(spot[1]), -RING_HEIGHT), seconds)
