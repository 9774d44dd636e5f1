"""A take: one shot at the hoop, cut to what a camera sees of it, and labelled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .camera import Camera
from .flight import BALL_RADIUS, BOARD_Y, STEP_HZ, Board, Flight, fly, launch
from .shot import Contact, Entry, Exit, Outcome, Shot

Array = npt.NDArray[Any]
Vector = tuple[float, float, float]

FPS = 30.0
STEPS_PER_FRAME = STEP_HZ // 30
LEAD_SECONDS = 1.0  # flight simulated before the ball reaches its target
MARGIN = 0.07  # share of the picture drawn beyond each edge, for the shake to move in
MAX_FRAMES = 60
BEHIND_SHARE = 0.2  # of shots filmed from beside the board, how many are tried from behind it


@dataclass(frozen=True)
class Take:
    """A flight cut to a clip of `frames` frames, and what it shows.

    `first_step` is the simulation step of frame 0. `touches` are (what, step) of each contact inside the clip. The ball
    is first seen in frame `entered` and has left the picture in frame `left_at`.
    """

    flight: Flight
    first_step: int
    frames: int
    shot: Shot
    touches: tuple[tuple[Contact, int], ...]
    entered: int
    left_at: int

    @property
    def steps(self) -> Array:
        """The simulation step of each frame: int64 [N]."""
        return self.first_step + STEPS_PER_FRAME * np.arange(self.frames)


def _choose_aim(rng: np.random.Generator, outcome: Outcome, beside: bool) -> tuple[Vector, Vector, float]:
    """Where a shot is released, the point it is aimed at (m), and its time of flight (s).

    Some shots come from behind the board's plane, but only where the camera stands `beside` it: from elsewhere the
    board would hide where they come from.
    """
    bank, layup = rng.random() < 0.28, rng.random() < 0.2
    spread = 0.07 if outcome == "make" else rng.uniform(0.12, 0.45)
    if bank:
        target = (rng.normal(0, 0.16), BOARD_Y - BALL_RADIUS, rng.uniform(0.15, 0.6))
    else:
        target = (rng.normal(0, spread), rng.normal(0, spread), 0.0)
    if layup:
        start = (rng.uniform(-1.0, 1.0), rng.uniform(-1.1, -0.35), rng.uniform(-1.4, -0.9))
        return start, target, rng.uniform(0.45, 0.8)
    if beside and rng.random() < BEHIND_SHARE:
        start = (rng.normal(0, 1.3), rng.uniform(0.7, 3.5), rng.uniform(-1.5, -0.7))
        return start, target, rng.uniform(0.9, 1.7)
    bearing, distance = math.radians(rng.uniform(-88, 88)), rng.uniform(1.5, 6.5)
    start = (distance * math.sin(bearing), -distance * math.cos(bearing), rng.uniform(-1.3, -0.7))
    return start, target, rng.uniform(0.72, 0.9) + 0.075 * distance


def choose_take(
    rng: np.random.Generator, outcome: Outcome, camera: Camera, board: Board, size: int, seconds: float | None
) -> Take | None:
    """Shoot until a flight has the wanted outcome and reads clearly from this camera; None when none did."""
    beside = abs(camera.position[0]) > 1.4 * abs(camera.position[1] - BOARD_Y)
    for _ in range(150):
        start, target, duration = _choose_aim(rng, outcome, beside)
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
) -> Take | None:
    """Choose the first and last frame, and label what they show; None when the clip would be ambiguous."""
    steps = np.arange(int(rng.integers(STEPS_PER_FRAME)), len(flight.positions), STEPS_PER_FRAME)
    seen = camera.project(flight.positions[steps])
    inside = ball_inside(seen, camera, size)
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
    if entry is None or missed_net or len(contacts) > 4:
        return None
    if outcome == "make" and contacts[-1:] != ("net",):
        return None
    if not contacts and rng.random() < 0.9:
        return None
    shot = Shot(outcome, entry, contacts, exit_)
    return Take(flight, int(steps[begin]), length, shot, tuple(touches), entered - begin, left_at - begin)


def ball_inside(seen: Array, camera: Camera, size: int) -> Array:
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
    """Side of the ring on which the ball appears; None when it is too near a diagonal to name.

    Where the diagonals lie was measured on the labels of the real training clips: a person says "left" of a ball that
    comes rather steeply from above, and of one from below only where it is far to the left.
    """
    ring = camera.project(np.zeros(3))
    width = 0.4572 * camera.focal / ring[2]
    across, above = abs(seen[0] - ring[0]), ring[1] - seen[1]
    if seen[2] < 0.62 * ring[2] or (above < -0.45 * width and across < 1.1 * -above):
        return "front"
    if across < 0.4 * above:
        return "top"
    if across > 0.6 * width and across > (0.5 * above if above > 0 else 1.5 * -above):
        return "right" if seen[0] > ring[0] else "left"
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
