"""What stands still behind a shot: background, post, backboard and bracket; and the ring and net in front of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from .camera import Camera
from .flight import BALL_RADIUS, BOARD_Y, NET_LENGTH, RING_RADIUS, Board, net_radius

Array = npt.NDArray[Any]
Colour = tuple[float, float, float]  # BGR, 0 to 255
Background = Literal["sky", "trees"]

_SHIFT = 3  # OpenCV's fixed-point bits: coordinates to an eighth of a pixel
STRANDS = 12  # loops a net hangs from
NET_ROWS = 6


@dataclass(frozen=True)
class Look:
    """Colours and materials of one court."""

    background: Background
    board: Colour
    trim: Colour | None
    target_box: bool
    rim: Colour
    rim_marks: Colour | None
    net: Colour
    chain: bool
    post: Colour
    ball: Colour
    seam: Colour
    sun: tuple[float, float]  # direction of the light in the picture, unit vector
    contrast: float  # 0 flat light, 1 hard sun


def clouds(rng: np.random.Generator, size: int, cells: int, octaves: int, roughness: float = 0.55) -> Array:
    """Smooth random texture: float32 [size, size] in 0..1, `cells` blobs across in its coarsest octave."""
    total: npt.NDArray[np.float32] = np.zeros((size, size), np.float32)
    scale = 1.0
    for _ in range(octaves):
        cells_here = min(cells, size)
        noise = rng.random((cells_here + 2, cells_here + 2), dtype=np.float32)
        total = total + scale * cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        scale, cells = scale * roughness, cells * 2
    low, high = float(total.min()), float(total.max())
    return cast(Array, (total - low) / max(high - low, 1e-6))


def draw_background(rng: np.random.Generator, look: Look, size: int) -> Array:
    """uint8 [size, size, 3]: a sky with a gradient, or a wall of trees with light between the leaves."""
    if look.background == "sky":
        return _sky(rng, size)
    return _trees(rng, size)


def _sky(rng: np.random.Generator, size: int) -> Array:
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    blue = rng.uniform(115, 230)
    top = blue * np.array([1.0, rng.uniform(0.66, 0.82), rng.uniform(0.36, 0.60)], np.float32)
    bottom = np.clip(top + np.array([20, 32, 38], np.float32) * rng.uniform(0.2, 1.6), 0, 250)
    image = top + (bottom - top) * ramp + np.zeros((size, size, 1), np.float32)
    if rng.random() < 0.25:
        haze = clouds(rng, size, 3, 4)[..., None] * rng.uniform(10, 60)
        image = image + haze
    if rng.random() < 0.45:
        edge = size * rng.uniform(0.80, 0.97) - clouds(rng, size, 5, 5)[0] * size * rng.uniform(0.05, 0.25)
        mask = (np.arange(size)[:, None] > edge[None, :]).astype(np.float32)
        mask = cv2.GaussianBlur(mask, (0, 0), 1.0)[..., None]
        image = image * (1 - mask) + _leaves(rng, size, 0.0) * mask
    return cast(Array, np.clip(image, 0, 255).astype(np.uint8))


def _leaves(rng: np.random.Generator, size: int, gaps: float) -> Array:
    """float32 foliage; `gaps` is the share of bright sky between the leaves."""
    fine, coarse = clouds(rng, size, int(size // rng.integers(6, 20)), 4, 0.95), clouds(rng, size, 5, 4)
    dark = rng.uniform(14, 38) * np.array([0.9, 1.1, 0.95], np.float32)
    bright = rng.uniform(80, 135) * np.array([rng.uniform(0.55, 0.85), 1.0, rng.uniform(0.65, 0.98)], np.float32)
    mix = np.clip((fine - 0.42) * 1.9 + (coarse - 0.45) * 0.9, 0, 1)[..., None] ** 1.2
    image = dark + (bright - dark) * mix
    if gaps > 0:
        field = fine * 0.55 + clouds(rng, size, 8, 3) * 0.45
        holes = np.clip((field - np.quantile(field, 1 - gaps)) * 22, 0, 1)[..., None]
        image = image * (1 - holes) + np.array([250, 245, 238], np.float32) * holes
    return image


def _trees(rng: np.random.Generator, size: int) -> Array:
    image = _leaves(rng, size, float(rng.choice([0.0, 0.03, 0.12, 0.22])))
    for _ in range(int(rng.integers(0, 7))):
        x, width = rng.uniform(0, size), rng.uniform(0.012, 0.06) * size
        lean, shade = rng.uniform(-0.05, 0.05) * size, rng.uniform(25, 85)
        trunk = np.array([[x, 0], [x + width, 0], [x + width * 1.25 + lean, size], [x + lean, size]])
        mask = np.zeros((size, size), np.float32)
        cv2.fillPoly(mask, [trunk.astype(np.int32)], 1.0)
        cover = mask * np.clip(1.6 - 1.9 * clouds(rng, size, 9, 4), 0, 1)
        bark = np.array([0.85, 0.95, 1.0], np.float32) * shade
        image = image * (1 - cover[..., None]) + bark * cover[..., None]
    if rng.random() < 0.6:
        top = rng.uniform(0.72, 0.95) * size
        bush = np.clip((np.arange(size)[:, None] - top - 25 * clouds(rng, size, 12, 3)) / 6, 0, 1)[..., None]
        image = image * (1 - bush) + _leaves(rng, size, 0.0) * 1.25 * bush
    image = np.clip(image, 0, 255).astype(np.uint8)
    return _fence(rng, image) if rng.random() < 0.4 else image


def _fence(rng: np.random.Generator, image: Array) -> Array:
    size, top = image.shape[0], int(image.shape[0] * rng.uniform(0.80, 0.95))
    over, pitch = image.copy(), rng.uniform(0.02, 0.035) * size
    for k in range(-int(size / pitch), int(2 * size / pitch)):
        x = int(k * pitch)
        cv2.line(over, (x, top), (x + size, top + size), (165, 170, 168), 1, cv2.LINE_AA)
        cv2.line(over, (x, top), (x - size, top + size), (165, 170, 168), 1, cv2.LINE_AA)
    cv2.line(over, (0, top), (size, top), (185, 190, 188), 2, cv2.LINE_AA)
    return cv2.addWeighted(over, 0.6, image, 0.4, 0)


def _fixed(points: Array) -> Array:
    return np.round(np.asarray(points)[..., :2] * (1 << _SHIFT)).astype(np.int32)


def lit(colour: Colour, factor: float) -> Colour:
    """A colour made brighter or darker."""
    b, g, r = (float(min(max(c * factor, 0.0), 255.0)) for c in colour)
    return b, g, r


class Structure:
    """Post, board and bracket drawn once: `image` uint8 [S, S, 3] over the background, `mask` float32 [S, S, 1]."""

    def __init__(self, background: Array, camera: Camera, board: Board, look: Look, rng: np.random.Generator) -> None:
        self.image = background.copy()
        self._cover = np.zeros(background.shape[:2], np.uint8)
        self._camera = camera
        if camera.position[1] > BOARD_Y:
            self._draw_bracket(look)
            self._draw_board(board, look, rng)
            self._draw_post(board, look, rng)
        else:
            self._draw_post(board, look, rng)
            self._draw_board(board, look, rng)
            self._draw_bracket(look)
        self.mask = (self._cover.astype(np.float32) / 255.0)[..., None]

    def over(self, image: Array) -> Array:
        """The structure drawn over a picture uint8 [S, S, 3]."""
        return cast(Array, (image * (1 - self.mask) + self.image * self.mask).astype(np.uint8))

    def _polygon(self, points: Array, colour: Colour) -> None:
        corners = _fixed(self._camera.project(points))
        cv2.fillPoly(self.image, [corners], colour, cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(self._cover, [corners], 255, cv2.LINE_AA, _SHIFT)

    def _rod(self, points: Array, radius: float, colour: Colour) -> None:
        """A round rod along a path, bright on its upper side."""
        seen = self._camera.project(points)
        width = max(1, round(2 * radius * self._camera.pixels_per_metre(float(seen[:, 2].mean()))))
        path = [_fixed(seen)]
        cv2.polylines(self._cover, path, False, 255, width, cv2.LINE_AA, _SHIFT)
        for share, light, lift in ((1.0, 0.62, 0.0), (0.7, 0.9, 0.10), (0.35, 1.15, 0.18)):
            moved = [_fixed(seen[:, :2] - (0, lift * width))]
            cv2.polylines(
                self.image, moved, False, lit(colour, light), max(1, round(width * share)), cv2.LINE_AA, _SHIFT
            )

    def _draw_post(self, board: Board, look: Look, rng: np.random.Generator) -> None:
        back, height = BOARD_Y + 0.08, board.bottom + 0.25
        reach, top, thickness = rng.uniform(0.7, 1.3), rng.uniform(0.55, 0.95), rng.uniform(0.02, 0.045)
        bend = np.linspace(0, math.pi / 2, 9)
        curve = np.stack([0 * bend, back + reach + 0.3 * np.sin(bend), height - 0.3 * (1 - np.cos(bend)) - 0.1], axis=1)
        arm = np.array([[0, back, height], [0, back + reach * 0.6, height - 0.03]])
        drop = np.array([[0, back + reach + 0.3, -1.2], [0, back + reach + 0.3, -3.5]])
        self._rod(np.concatenate([arm, curve, drop]), rng.uniform(0.05, 0.11), look.post)
        for side in (-1, 1):
            strut = np.array(
                [
                    [side * board.half_width * 0.55, back, board.bottom + top * (board.top - board.bottom)],
                    [side * 0.05, back + reach, height - 0.1],
                ]
            )
            self._rod(strut, thickness, look.post)

    def _outline(self, board: Board, inset: float = 0.0, y: float = BOARD_Y) -> Array:
        half, low, high = board.half_width - inset, board.bottom + inset, board.top - inset
        if not board.fan:
            xz = [(-half, low), (half, low), (half, high), (-half, high)]
        else:
            shoulder = low + 0.45 * (high - low)
            angles = np.linspace(0, math.pi, 25)
            arc = [(half * math.cos(a), shoulder + (high - shoulder) * math.sin(a)) for a in angles]
            xz = [(-half * 0.72, low), (half * 0.72, low), (half, low + 0.16 * (high - low)), *arc]
            xz.append((-half, low + 0.16 * (high - low)))
        return np.array([(x, y, z) for x, z in xz])

    def _draw_board(self, board: Board, look: Look, rng: np.random.Generator) -> None:
        thickness = rng.uniform(0.03, 0.06)
        front, back = self._outline(board), self._outline(board, y=BOARD_Y + thickness)
        seen_from_front = self._camera.position[1] < BOARD_Y
        self._polygon(back if seen_from_front else front, lit(look.board, 0.62))
        for i in range(len(front)):
            j = (i + 1) % len(front)
            self._polygon(np.array([front[i], front[j], back[j], back[i]]), lit(look.board, 0.75))
        if not seen_from_front:
            self._polygon(back, lit(look.board, 0.7))
            return
        before = self.image.copy()
        self._polygon(front, look.board)
        if look.trim is not None:
            self._polygon(self._outline(board, 0.03), look.trim)
            self._polygon(self._outline(board, 0.085), look.board)
        if look.target_box:
            self._box(look.trim or (60.0, 60.0, 190.0))
        self._shade(before, rng, look)

    def _box(self, colour: Colour) -> None:
        corners = np.array([[-0.295, 0.02], [0.295, 0.02], [0.295, 0.47], [-0.295, 0.47]])
        points = self._camera.project(np.insert(corners, 1, BOARD_Y, axis=1))
        width = max(1, round(0.05 * self._camera.pixels_per_metre(float(points[:, 2].mean()))))
        cv2.polylines(self.image, [_fixed(points)], True, colour, width, cv2.LINE_AA, _SHIFT)

    def _shade(self, before: Array, rng: np.random.Generator, look: Look) -> None:
        """Uneven light over whatever the board's face has just painted."""
        size = self.image.shape[0]
        painted = (self.image != before).any(axis=2)[..., None]
        grid = np.linspace(-1, 1, size, dtype=np.float32)
        light = 1.0 + 0.10 * (look.sun[0] * grid[None, :] + look.sun[1] * grid[:, None])
        light = light * (0.96 + 0.06 * clouds(rng, size, 3, 4))
        lit = np.clip(self.image * light[..., None], 0, 255).astype(np.uint8)
        self.image = np.where(painted, lit, self.image)

    def _draw_bracket(self, look: Look) -> None:
        """The plate from the board to the back of the ring, its underside darker."""
        spread = 0.62
        left = (-RING_RADIUS * math.sin(spread), RING_RADIUS * math.cos(spread), 0.0)
        right = (RING_RADIUS * math.sin(spread), RING_RADIUS * math.cos(spread), 0.0)
        back = [(-0.085, BOARD_Y, 0.0), (0.085, BOARD_Y, 0.0)]
        low = [(-0.085, BOARD_Y, -0.13), (0.085, BOARD_Y, -0.13)]
        tip = (0.0, RING_RADIUS, -0.01)
        self._polygon(np.array([low[0], low[1], back[1], back[0]]), lit(look.rim, 0.55))
        self._polygon(np.array([left, back[0], low[0], tip]), lit(look.rim, 0.72))
        self._polygon(np.array([right, back[1], low[1], tip]), lit(look.rim, 0.66))
        arc = np.linspace(math.pi / 2 - spread, math.pi / 2 + spread, 7)
        inner = [(RING_RADIUS * math.cos(a), RING_RADIUS * math.sin(a), 0.0) for a in arc]
        self._polygon(np.array([*inner, back[0], back[1]]), lit(look.rim, 0.85))


@dataclass
class NetState:
    """A net that swings: sideways offset of its hem (m), stretch of its length, and their speeds."""

    sway: Array
    sway_speed: Array
    stretch: float = 1.0
    stretch_speed: float = 0.0

    @classmethod
    def at_rest(cls, rng: np.random.Generator) -> NetState:
        return cls(rng.normal(0, 0.008, 2), rng.normal(0, 0.03, 2))

    def advance(self, ball: Array, velocity: Array, holding: bool, seconds: float) -> None:
        """Step a damped spring (about 1.4 Hz) that a held ball drags along; semi-implicit Euler."""
        pull: Array = np.zeros(2)
        drag = 0.0
        if holding:
            pull = 190.0 * (0.9 * ball[:2] - self.sway) + 6.0 * velocity[:2]
            drag = 55.0 * max(-ball[2] - 0.18, 0.0) + 4.0
        self.sway_speed = self.sway_speed + seconds * (pull - 80.0 * self.sway - 3.4 * self.sway_speed)
        self.sway = np.clip(self.sway + seconds * self.sway_speed, -0.22, 0.22)
        self.stretch_speed += seconds * (drag - 240.0 * (self.stretch - 1.0) - 7.0 * self.stretch_speed)
        self.stretch = min(max(self.stretch + seconds * self.stretch_speed, 0.55), 1.25)


def net_segments(state: NetState, ball: Array, chain: bool) -> Array:
    """The net's cords as float64 [M, 2, 3] (m), pushed out of the ball (its centre float64 [3])."""
    rows = np.arange(NET_ROWS + 1)
    share = rows / NET_ROWS
    radii = np.array([net_radius(-NET_LENGTH * s) for s in share])
    radii = radii * np.where(share > 0, 1.0 + 0.35 * (1.0 - state.stretch) * share, 1.0)
    twist = np.zeros(NET_ROWS + 1) if chain else 0.5 * (rows % 2)
    angles = (np.arange(STRANDS)[None, :] + twist[:, None]) * 2 * math.pi / STRANDS
    nodes = np.stack(
        [
            radii[:, None] * np.cos(angles) + state.sway[0] * (share**1.4)[:, None],
            radii[:, None] * np.sin(angles) + state.sway[1] * (share**1.4)[:, None],
            np.broadcast_to(-NET_LENGTH * state.stretch * share[:, None], angles.shape),
        ],
        axis=-1,
    )
    nodes[1:] = _pushed_out(nodes[1:], ball)
    down = np.stack([nodes[:-1], nodes[1:]], axis=2)
    if chain:
        hoops = nodes[[2, NET_ROWS - 1]]
        cross = np.stack([hoops, np.roll(hoops, -1, axis=1)], axis=2)
        return np.concatenate([down.reshape(-1, 2, 3), cross.reshape(-1, 2, 3)])
    even = np.stack([nodes[:-1:2], np.roll(nodes[1::2], 1, axis=1)], axis=2)
    odd = np.stack([nodes[1:-1:2], np.roll(nodes[2::2], -1, axis=1)], axis=2)
    return np.concatenate([part.reshape(-1, 2, 3) for part in (down, even, odd)])


def _pushed_out(nodes: Array, ball: Array) -> Array:
    away = nodes - ball
    distance = np.linalg.norm(away, axis=-1, keepdims=True)
    inside = distance < BALL_RADIUS * 1.04
    return np.where(inside, ball + away / np.maximum(distance, 1e-6) * BALL_RADIUS * 1.04, nodes)


RING_POINTS = 72
_ring_angles = np.linspace(0, 2 * math.pi, RING_POINTS + 1)
RING_PATH = RING_RADIUS * np.stack([np.cos(_ring_angles), np.sin(_ring_angles), 0 * _ring_angles], axis=1)


def draw_cords(image: Array, seen: Array, look: Look, scale: float, near: bool) -> None:
    """Net cords onto `image`; `seen` is float64 [M, 2, 3] in pixels and depth, `scale` pixels per metre."""
    if not len(seen):
        return
    width = max(1, round((0.009 if look.chain else 0.0075) * scale))
    cords = list(_fixed(seen))
    cv2.polylines(image, cords, False, lit(look.net, 0.95 if near else 0.75), width, cv2.LINE_AA, _SHIFT)


def draw_ring(image: Array, seen: Array, first: Array, look: Look, scale: float) -> None:
    """Pieces of the ring, float64 [M, 2, 3]; `first` int [M] numbers each piece around the ring."""
    if not len(seen):
        return
    width = max(2, round(0.024 * scale))
    pieces = seen[..., :2]
    cv2.polylines(image, list(_fixed(pieces)), False, lit(look.rim, 0.7), width, cv2.LINE_AA, _SHIFT)
    light = list(_fixed(pieces - (0, 0.22 * width)))
    cv2.polylines(image, light, False, lit(look.rim, 1.12), max(1, width // 2), cv2.LINE_AA, _SHIFT)
    if look.rim_marks is not None:
        marks = [piece for piece, k in zip(_fixed(pieces), first, strict=True) if k % 6 == 0]
        cv2.polylines(image, marks, False, look.rim_marks, width, cv2.LINE_AA, _SHIFT)
