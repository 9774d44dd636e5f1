"""A rim camera that never was: seeded clips of one shot at a hoop, with exact ground truth.

`render(seed)` draws a court, a camera and a flight, and films it at 30 frames per second. Only numpy and OpenCV.
Run as a module it writes the project's two sample clips.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from .camera import Camera
from .flight import BALL_RADIUS, BOARD_Y, STEP_HZ, Board, Flight, fly, launch
from .scene import (
    RING_PATH,
    Background,
    Look,
    NetState,
    Structure,
    clouds,
    draw_background,
    draw_cords,
    draw_ring,
    net_segments,
)
from .shot import Contact, Entry, Exit, Outcome, Shot, View

Array = npt.NDArray[Any]
Vector = tuple[float, float, float]

FPS = 30.0
STEPS_PER_FRAME = STEP_HZ // 30
LEAD_SECONDS = 1.0  # flight simulated before the ball reaches its target
MARGIN = 0.07  # share of the picture drawn beyond each edge, for the shake to move in
MAX_FRAMES = 60

EventKind = Literal["entry", "backboard", "rim", "net", "through", "exit"]

# Colours seen on outdoor courts, BGR.
BOARDS = ((238, 238, 236), (205, 228, 235), (178, 165, 148), (232, 222, 214))
RIMS = ((45, 50, 200), (40, 75, 220), (42, 38, 52), (60, 55, 140), (30, 30, 120))
BALLS = ((55, 95, 190), (70, 95, 220), (45, 45, 105), (60, 105, 165), (80, 110, 235))

SAMPLES: dict[Outcome, int] = {"make": 2_000_000_017, "miss": 2_000_000_062}  # seeds of the committed sample clips


@dataclass(frozen=True)
class Event:
    """Something that happens in a clip, and the frame that first shows it.

    "entry": at least a third of the ball is inside the picture (frame 0 where it was from the start). "backboard",
    "rim", "net": the ball has touched it; touches of one thing in a row are one event. "through": a made ball has left
    the net below, absent where it leaves the picture first. "exit": no more than a third of the ball is left inside.
    """

    kind: EventKind
    frame: int


@dataclass(frozen=True)
class ShotTruth:
    """What a rendered clip shows.

    `ball` is float32 [N, 4]: centre x and y and radius in pixels, and 1 where some of the ball is inside the picture
    (it may still be hidden by the board). `ring` is float32 [N, 3]: centre x and y and width in pixels.
    """

    outcome: Outcome
    view: View
    entry: Entry
    contacts: tuple[Contact, ...]
    exit: Exit
    background: Background
    events: tuple[Event, ...]
    ball: Array
    ring: Array

    @property
    def shot(self) -> Shot:
        return Shot(self.outcome, self.entry, self.contacts, self.exit)


@dataclass(frozen=True)
class RenderedClip:
    """`frames` uint8 [N, size, size, 3] in BGR order at `fps` frames per second."""

    frames: Array
    fps: float
    truth: ShotTruth


@dataclass(frozen=True)
class _Take:
    """A flight cut to a clip: simulation step of each frame, and its labels."""

    flight: Flight
    first_step: int
    frames: int
    shot: Shot
    events: tuple[Event, ...]


def render(seed: int, outcome: Outcome | None = None, seconds: float | None = None, size: int = 400) -> RenderedClip:
    """Film one shot.

    The same arguments give the same pixels. `outcome` and `seconds` are drawn at random when None (1 to 2 s).
    """
    rng = np.random.default_rng(seed)
    outcome = outcome or ("make", "miss")[int(rng.integers(2))]
    view: View = ("front", "left", "right")[int(rng.choice(3, p=(0.64, 0.18, 0.18)))]
    look, board = _choose_look(rng), _choose_board(rng)
    canvas = round(size * (1 + 2 * MARGIN))
    while True:
        camera = _choose_camera(rng, view, size, canvas)
        take = _choose_take(rng, outcome, camera, board, size, seconds)
        if take is not None:
            break
    background = draw_background(rng, look, canvas)
    structure = Structure(background, camera, board, look, rng)
    shake = _shake(rng, take.frames, size)
    frames = _film(rng, take, camera, structure, background, look, shake, size)
    return RenderedClip(frames, FPS, _truth(take, camera, shake, view, look.background, size))


def _choose_board(rng: np.random.Generator) -> Board:
    if rng.random() < 0.72:
        return Board(rng.uniform(0.62, 0.78), rng.uniform(-0.22, -0.08), rng.uniform(0.68, 0.95), True)
    return Board(rng.uniform(0.70, 0.92), rng.uniform(-0.2, -0.1), rng.uniform(0.75, 0.95), False)


def _choose_look(rng: np.random.Generator) -> Look:
    """Materials seen on outdoor courts: white, cream or shadowed boards, red or dark rims, rope or chain nets."""
    board = np.array(BOARDS[int(rng.integers(len(BOARDS)))]) * rng.uniform(0.75, 1.05) + rng.normal(0, 3, 3)
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
        post=_colour(rng.uniform(45, 190) + rng.normal(0, 8, 3)),
        ball=_colour(ball),
        seam=_colour(ball * rng.uniform(0.2, 0.6)),
        sun=(math.cos(angle), math.sin(angle)),
        contrast=rng.uniform(0.25, 0.9),
    )


def _colour(bgr: Array) -> Vector:
    b, g, r = (float(c) for c in np.clip(bgr, 0, 255))
    return b, g, r


def _choose_camera(rng: np.random.Generator, view: View, size: int, canvas: int) -> Camera:
    """Below the ring, in front of the board or beside it: "left" means that the hoop points left in the picture."""
    azimuth = {"front": rng.normal(0, 22), "left": rng.normal(84, 7), "right": rng.normal(-84, 7)}[view]
    limit = 45 if view == "front" else 100
    across = {"front": rng.uniform(0.34, 0.66), "left": rng.uniform(0.30, 0.52), "right": rng.uniform(0.48, 0.70)}[view]
    margin = (canvas - size) / 2
    return Camera.around_ring(
        azimuth=math.radians(float(np.clip(azimuth, -limit, limit))),
        elevation=math.radians(rng.uniform(8, 45)),
        distance=rng.uniform(2.6, 7.5),
        roll=math.radians(rng.normal(0, 2.0)),
        ring_pixels=rng.uniform(0.19, 0.40) * size,
        ring_at=(margin + across * size, margin + rng.uniform(0.40, 0.68) * size),
    )


def _choose_aim(rng: np.random.Generator, outcome: Outcome) -> tuple[Vector, Vector, float]:
    """Where a shot is released, the point it is aimed at (m), and its time of flight (s)."""
    bank, layup = rng.random() < 0.28, rng.random() < 0.2
    spread = 0.07 if outcome == "make" else rng.uniform(0.12, 0.45)
    if bank:
        target = (rng.normal(0, 0.16), BOARD_Y - BALL_RADIUS, rng.uniform(0.15, 0.6))
    else:
        target = (rng.normal(0, spread), rng.normal(0, spread), 0.0)
    if layup:
        start = (rng.uniform(-1.0, 1.0), rng.uniform(-1.1, -0.35), rng.uniform(-1.4, -0.9))
        return start, target, rng.uniform(0.45, 0.8)
    bearing, distance = math.radians(rng.uniform(-88, 88)), rng.uniform(1.5, 6.5)
    start = (distance * math.sin(bearing), -distance * math.cos(bearing), rng.uniform(-1.3, -0.7))
    return start, target, rng.uniform(0.72, 0.9) + 0.075 * distance


def _choose_take(
    rng: np.random.Generator, outcome: Outcome, camera: Camera, board: Board, size: int, seconds: float | None
) -> _Take | None:
    """Shoot until a flight has the wanted outcome and reads clearly from this camera; None when none did."""
    for _ in range(150):
        start, target, duration = _choose_aim(rng, outcome)
        vx, vy, vz = launch(start, target, duration)
        lead = duration - LEAD_SECONDS
        x, y, z = start[0] + vx * lead, start[1] + vy * lead, start[2] + vz * lead - 4.905 * lead * lead
        flight = fly(
            (x, y, z),
            (vx, vy, vz - 9.81 * lead),
            LEAD_SECONDS + 2.2,
            board,
            rng.uniform(0.45, 0.68),
            rng.uniform(0.5, 0.72),
            rng.uniform(2.5, 7.0),
        )
        if (flight.made_at is not None) != (outcome == "make"):
            continue
        take = _cut(rng, flight, outcome, camera, size, seconds)
        if take is not None:
            return take
    return None


def _cut(
    rng: np.random.Generator, flight: Flight, outcome: Outcome, camera: Camera, size: int, seconds: float | None
) -> _Take | None:
    """Choose the first and last frame, and label what they show; None when the clip would be ambiguous."""
    steps = np.arange(int(rng.integers(STEPS_PER_FRAME)), len(flight.positions), STEPS_PER_FRAME)
    seen = camera.project(flight.positions[steps])
    inside = _inside(seen, camera, size)
    if not inside.any():
        return None
    entered = int(np.argmax(inside))
    length = round(seconds * FPS) if seconds else MAX_FRAMES
    lead = int(rng.integers(-2, max(3, length // 5)))
    begin = max(entered - lead, 0)
    if not inside[begin : begin + length].any():
        return None
    left_at = begin + int(np.flatnonzero(inside[begin : begin + length])[-1]) + 1
    if not seconds:
        length = max(30, min(left_at - begin + int(rng.integers(0, 9)), MAX_FRAMES))
    if left_at >= begin + length or begin + length >= len(steps):
        return None
    window = range(begin, begin + length)
    entered = next(i for i in window if inside[i])
    entry, exit_ = _entry(seen[entered], camera), _exit(seen[left_at - 1], seen[left_at], camera, size, outcome)
    touches = [(what, step) for what, step in flight.contacts if steps[begin] <= step < steps[begin + length - 1]]
    contacts = tuple(what for what, _ in touches)
    missed_net = outcome == "miss" and "net" in contacts
    if entry is None or missed_net or len(touches) != len(flight.contacts[: len(touches)]) or len(contacts) > 4:
        return None
    if outcome == "make" and contacts[-1:] != ("net",):
        return None
    if not contacts and rng.random() < 0.9:
        return None
    events = _events(flight, touches, steps[begin : begin + length], entered - begin, left_at - begin)
    return _Take(flight, int(steps[begin]), length, Shot(outcome, entry, contacts, exit_), events)


def _events(
    flight: Flight, touches: list[tuple[Contact, int]], steps: Array, entered: int, left_at: int
) -> tuple[Event, ...]:
    """What happens in frames that show the simulation steps int64 [N], in order."""

    def first_shown(step: int) -> int:
        return int(np.searchsorted(steps, step))

    events = [Event("entry", entered), *(Event(what, first_shown(step)) for what, step in touches)]
    if flight.made_at is not None and first_shown(flight.made_at) < left_at:
        events.append(Event("through", first_shown(flight.made_at)))
    return (*events, Event("exit", left_at))


def _inside(seen: Array, camera: Camera, size: int) -> Array:
    """Where at least a third of the ball is inside the picture: bool [T] of projected centres [T, 3]."""
    margin = camera_margin(size)
    reach = BALL_RADIUS / 3 * camera.focal / np.maximum(seen[:, 2], 0.3)
    low, high = margin - reach, margin + size + reach
    x_in = (seen[:, 0] > low) & (seen[:, 0] < high)
    return cast(Array, x_in & (seen[:, 1] > low) & (seen[:, 1] < high) & (seen[:, 2] > 0.6))


def camera_margin(size: int) -> float:
    """Pixels drawn beyond each edge of a picture `size` wide."""
    return (round(size * (1 + 2 * MARGIN)) - size) / 2


def _entry(seen: Array, camera: Camera) -> Entry | None:
    """Side of the ring on which the ball appears; None when it is too near a diagonal to name."""
    ring = camera.project(np.zeros(3))
    width = 0.4572 * camera.focal / ring[2]
    across, above = seen[0] - ring[0], ring[1] - seen[1]
    if seen[2] < 0.62 * ring[2] or above < -0.45 * width:
        return "front"
    if abs(across) < 0.5 * above:
        return "top"
    if abs(across) > 0.75 * above and abs(across) > 0.6 * width:
        return "right" if across > 0 else "left"
    return None


def _exit(last: Array, after: Array, camera: Camera, size: int, outcome: Outcome) -> Exit:
    """Edge of the picture that the ball crosses; makes leave down whatever edge they cross."""
    if outcome == "make":
        return "down"
    if last[2] < 0.5 * camera.project(np.zeros(3))[2]:
        return "front"
    margin = camera_margin(size)
    over: dict[Exit, float] = {
        "left": margin - after[0],
        "right": after[0] - margin - size,
        "up": margin - after[1],
        "down": after[1] - margin - size,
    }
    return max(over, key=lambda side: over[side])


def _shake(rng: np.random.Generator, frames: int, size: int) -> Array:
    """Hand movement as affine matrices float64 [N, 2, 3] from canvas to picture pixels."""
    hand = rng.choice([0.0, 0.3, 1.0], p=[0.3, 0.4, 0.3])
    time = np.arange(frames) / FPS
    drift = np.zeros((frames, 3))
    for axis, reach in enumerate((0.012, 0.012, 0.006)):
        for _ in range(3):
            wave = np.sin(2 * math.pi * rng.uniform(0.2, 2.2) * time + rng.uniform(0, 2 * math.pi))
            drift[:, axis] += hand * reach * rng.normal(0, 0.7) * wave
    drift[:, :2] = np.clip(drift[:, :2], -0.8 * MARGIN, 0.8 * MARGIN) * size
    middle, matrices = size * (1 + 2 * MARGIN) / 2, []
    for dx, dy, turn in drift:
        matrix: Array = np.asarray(cv2.getRotationMatrix2D((middle, middle), math.degrees(turn), 1.0))
        matrix[:, 2] += (dx - camera_margin(size), dy - camera_margin(size))
        matrices.append(matrix)
    return np.stack(matrices)


def _film(
    rng: np.random.Generator,
    take: _Take,
    camera: Camera,
    structure: Structure,
    background: Array,
    look: Look,
    shake: Array,
    size: int,
) -> Array:
    """Expose every frame: scene, shake, lens and sensor."""
    ball = BallLook(rng, look)
    net, lens = NetState.at_rest(rng), _Lens(rng, size)
    frames = np.empty((take.frames, size, size, 3), np.uint8)
    shutter = rng.uniform(0.08, 0.6) / FPS
    for n in range(take.frames):
        step = take.first_step + n * STEPS_PER_FRAME
        _swing(net, take.flight, step)
        picture = _compose(take.flight, step, net, camera, structure, background, look, ball, shutter)
        moved = cv2.warpAffine(picture, shake[n], (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        frames[n] = lens.expose(moved)
    return frames


def _swing(net: NetState, flight: Flight, step: int) -> None:
    """Advance the net over the frame that ends at `step`."""
    for s in range(max(step - STEPS_PER_FRAME, 0), step):
        x, y, z = flight.positions[s]
        holding = -0.55 < z < 0.03 and math.hypot(x, y) < 0.21
        net.advance(flight.positions[s], flight.velocities[s], holding, 1.0 / STEP_HZ)


def _compose(
    flight: Flight,
    step: int,
    net: NetState,
    camera: Camera,
    structure: Structure,
    background: Array,
    look: Look,
    ball: BallLook,
    shutter: float,
) -> Array:
    """One sharp canvas: whatever is farther than the ball, the ball, whatever is nearer."""
    position = flight.positions[step]
    where, scale = camera.project(position), camera.pixels_per_metre()
    behind_board = (position[1] > BOARD_Y) != (camera.position[1] > BOARD_Y)
    cords = camera.project(net_segments(net, position, look.chain))
    ring = camera.project(np.stack([RING_PATH[:-1], RING_PATH[1:]], axis=1))
    cords_near, ring_near = (part[..., 2].mean(axis=1) < where[2] for part in (cords, ring))
    number = np.arange(len(ring))
    back = cords[..., 2].mean(axis=1) > float(np.median(cords[..., 2]))
    image: Array
    if behind_board:
        image = background.copy()
        ball.draw(image, camera, flight, step, shutter)
        image = (image * (1 - structure.mask) + structure.image * structure.mask).astype(np.uint8)
        ring_near[:], cords_near[:] = True, True
    else:
        image = structure.image.copy()
        draw_ring(image, ring[~ring_near], number[~ring_near], look, scale)
        draw_cords(image, cords[~cords_near & back], look, scale, near=False)
        draw_cords(image, cords[~cords_near & ~back], look, scale, near=True)
        ball.draw(image, camera, flight, step, shutter)
    draw_cords(image, cords[cords_near & back], look, scale, near=False)
    draw_cords(image, cords[cords_near & ~back], look, scale, near=True)
    draw_ring(image, ring[ring_near], number[ring_near], look, scale)
    return image


class BallLook:
    """A shaded, spinning ball with seams."""

    def __init__(self, rng: np.random.Generator, look: Look) -> None:
        self._look = look
        axis = rng.normal(size=3)
        self._axis = axis / np.linalg.norm(axis)
        self._spin = rng.uniform(6, 16)  # rad/s
        self._grain = clouds(rng, 64, 24, 2)

    def draw(self, image: Array, camera: Camera, flight: Flight, step: int, shutter: float) -> None:
        """Blend the ball of simulation step `step` into uint8 `image`, smeared over `shutter` seconds."""
        position, velocity = flight.positions[step], flight.velocities[step]
        here, there = camera.project(position), camera.project(position + velocity * shutter)
        if here[2] < 0.35:
            return
        radius = BALL_RADIUS * camera.focal / here[2]
        smear = np.clip(there[:2] - here[:2], -2.5 * radius, 2.5 * radius)
        reach = math.ceil(radius + float(np.abs(smear).max()) / 2 + 2)
        middle = here[:2] + smear / 2
        left, top = math.floor(middle[0]) - reach, math.floor(middle[1]) - reach
        height, width = image.shape[:2]
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * reach + 1, width), min(top + 2 * reach + 1, height)
        if x0 >= x1 or y0 >= y1:
            return
        patch = self._patch(2 * reach + 1, middle - (left, top), radius, step / STEP_HZ)
        patch = _smeared(patch, smear)[y0 - top : y1 - top, x0 - left : x1 - left]
        region = image[y0:y1, x0:x1]
        image[y0:y1, x0:x1] = np.clip(patch[..., :3] + region * (1 - patch[..., 3:]), 0, 255).astype(np.uint8)

    def _patch(self, width: int, centre: Array, radius: float, seconds: float) -> Array:
        """Premultiplied BGRA float32 [width, width, 4] of the sphere, alpha in 0..1."""
        grid = np.arange(width, dtype=np.float32)
        x, y = np.meshgrid((grid - centre[0]) / radius, (grid - centre[1]) / radius)
        square = x * x + y * y
        depth = np.sqrt(np.maximum(1 - square, 0))
        alpha = np.clip((1 - np.sqrt(square)) * radius + 0.5, 0, 1)
        turn, _ = cv2.Rodrigues(self._axis * self._spin * seconds)
        u, v, w = (turn[i, 0] * x + turn[i, 1] * y - turn[i, 2] * depth for i in range(3))
        line = 0.045 + 0.6 / radius
        seam = np.minimum(np.minimum(np.abs(u), np.abs(v)), np.abs(w * w + 0.8 * u * u - 0.55) * 0.6)
        seam = np.clip(1.4 - seam / line, 0, 1)[..., None]
        cell_u, cell_v = (np.clip(32 + 31 * part, 0, 63).astype(int) for part in (u, v))
        grain = self._grain[cell_u, cell_v][..., None]
        colour = np.array(self._look.ball) * (0.88 + 0.24 * grain) * (1 - seam) + np.array(self._look.seam) * seam
        facing = x * self._look.sun[0] + y * self._look.sun[1] + depth * 0.55
        light = 1.0 - 0.55 * self._look.contrast + 0.75 * self._look.contrast * np.clip(facing, -0.25, 1)
        colour = np.clip(colour * light[..., None], 0, 255) * alpha[..., None]
        return np.asarray(np.concatenate([colour, alpha[..., None]], axis=-1), dtype=np.float32)


def _smeared(patch: Array, smear: Array) -> Array:
    """Average a patch along a straight path of `smear` pixels, centred."""
    length = float(np.hypot(*smear))
    if length < 1.0:
        return patch
    side = 2 * math.ceil(length / 2) + 1
    kernel = np.zeros((side, side), np.float32)
    for t in np.linspace(-0.5, 0.5, 4 * side):
        kernel[round(side // 2 + t * smear[1]), round(side // 2 + t * smear[0])] += 1
    return cv2.filter2D(patch, -1, kernel / kernel.sum(), borderType=cv2.BORDER_CONSTANT)


class _Lens:
    """What lens, sensor and compression add, the same for all frames of a clip but for the noise."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._rng = rng
        self._blur = rng.uniform(0.3, 0.9) * size / 400
        self._noise = rng.uniform(0.5, 4.0)
        self._gain = rng.uniform(0.8, 1.15)
        self._tint = rng.normal(1.0, 0.018, 3)
        self._quality = int(rng.integers(45, 92))

    def expose(self, picture: Array) -> Array:
        soft = cv2.GaussianBlur(picture, (0, 0), self._blur).astype(np.float32)
        grain = self._rng.standard_normal((*picture.shape[:2], 1), dtype=np.float32) * self._noise
        shot = np.clip(soft * (self._gain * self._tint).astype(np.float32) + grain, 0, 255).astype(np.uint8)
        _, packed = cv2.imencode(".jpg", shot, (cv2.IMWRITE_JPEG_QUALITY, self._quality))
        return cast(Array, cv2.imdecode(packed, cv2.IMREAD_COLOR))


def _truth(take: _Take, camera: Camera, shake: Array, view: View, background: Background, size: int) -> ShotTruth:
    steps = take.first_step + STEPS_PER_FRAME * np.arange(take.frames)
    seen, ring = camera.project(take.flight.positions[steps]), camera.project(np.zeros(3))
    moved = np.einsum("nij,nj->ni", shake[:, :, :2], seen[:, :2]) + shake[:, :, 2]
    ring_moved = shake[:, :, :2] @ ring[:2] + shake[:, :, 2]
    radius = BALL_RADIUS * camera.focal / np.maximum(seen[:, 2], 0.3)
    inside = _inside(seen, camera, size)
    width = np.full(take.frames, 0.4572 * camera.focal / ring[2])
    return ShotTruth(
        outcome=take.shot.outcome,
        view=view,
        entry=take.shot.entry,
        contacts=take.shot.contacts,
        exit=take.shot.exit,
        background=background,
        events=take.events,
        ball=np.column_stack([moved, radius, inside]).astype(np.float32),
        ring=np.column_stack([ring_moved, width]).astype(np.float32),
    )


def write_clip(clip: RenderedClip, path: Path) -> None:
    """Write frames as MPEG-4 in an .mp4 file."""
    height, width = clip.frames.shape[1:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), clip.fps, (width, height))
    for frame in clip.frames:
        writer.write(frame)
    writer.release()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the two sample clips, make.mp4 and miss.mp4.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "sample", help="folder to write to")
    parser.add_argument("--size", type=int, default=400, help="width and height in pixels")
    arguments = parser.parse_args()
    for outcome, seed in SAMPLES.items():
        clip = render(seed, outcome, seconds=2.0, size=arguments.size)
        write_clip(clip, arguments.out / f"{outcome}.mp4")
        truth = clip.truth
        touched = ", ".join(truth.contacts) or "nothing"
        print(f"{outcome}.mp4: from {truth.entry}, touches {touched}, leaves {truth.exit}")


if __name__ == "__main__":
    main()
