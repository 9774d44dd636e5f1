"""The flight of a basketball around a hoop: gravity, rim, bracket, backboard and net.

World frame in metres: the ring's centre is the origin, x to the right as a shooter at the free-throw line sees it,
y from the ring towards the backboard, z up. Plain floats: a step is too small for numpy to pay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .shot import Contact

STEP_HZ = 240  # integration steps per second
GRAVITY = 9.81  # m/s²
RING_RADIUS = 0.2286  # m, to the inside of the ring: 18 inches across (FIBA Official Basketball Rules, equipment)
BALL_RADIUS = 0.12  # m, size 7
TUBE_RADIUS = 0.009  # m, half of the ring's 16 to 20 mm rod
BOARD_Y = 0.38  # m, face of the board: 15.1 cm behind the ring's inside edge
BRACKET_RADIUS = 0.035  # m, the plate between ring and board, as a capsule
NET_LENGTH = 0.42  # m, nets are 40 to 45 cm
NET_BOTTOM_RADIUS = 0.125  # m, a ball has to squeeze through
SEEN_IMPACT = 0.35  # m/s into a surface: our choice of what a viewer would still call a touch


@dataclass(frozen=True)
class Board:
    """The backboard's outline: half width, bottom and top edge (m), and whether its top is an arc (a fan board)."""

    half_width: float
    bottom: float
    top: float
    fan: bool

    def covers(self, x: float, z: float) -> bool:
        """Whether the point (x, z) of the board's plane is on the board."""
        if not self.bottom <= z <= self.top or abs(x) > self.half_width:
            return False
        if not self.fan:
            return True
        shoulder = self.bottom + 0.45 * (self.top - self.bottom)
        if z <= shoulder:
            return True
        return (x / self.half_width) ** 2 + ((z - shoulder) / (self.top - shoulder)) ** 2 <= 1.0


@dataclass
class Flight:
    """A simulated flight at `STEP_HZ`.

    `positions` and `velocities` are float64 [T, 3] (m, m/s); `contacts` lists (what, step) at the first step of
    each touch, consecutive touches of one thing merged; `made_at` is the step at which the ball has left the net.
    """

    positions: npt.NDArray[np.float64]
    velocities: npt.NDArray[np.float64]
    contacts: list[tuple[Contact, int]] = field(default_factory=list)
    made_at: int | None = None


def net_radius(z: float) -> float:
    """Radius of the resting net (m) at height z (m, 0 at the ring and negative below)."""
    depth = min(max(-z / NET_LENGTH, 0.0), 1.0)
    return RING_RADIUS + (NET_BOTTOM_RADIUS - RING_RADIUS) * math.pow(depth, 0.7)


class _Ball:
    """State of the ball during a simulation, with one method per thing it can touch."""

    def __init__(self, position: tuple[float, float, float], velocity: tuple[float, float, float]) -> None:
        self.x, self.y, self.z = position
        self.vx, self.vy, self.vz = velocity
        self.in_net = False

    def reflect(self, nx: float, ny: float, nz: float, depth: float, restitution: float) -> bool:
        """Push out along the unit normal by `depth` and bounce; True when it hit hard enough to be seen."""
        self.x, self.y, self.z = self.x + nx * depth, self.y + ny * depth, self.z + nz * depth
        speed = self.vx * nx + self.vy * ny + self.vz * nz
        if speed >= 0:
            return False
        grip = 0.10  # share of the sliding speed lost to friction and spin
        tx, ty, tz = self.vx - speed * nx, self.vy - speed * ny, self.vz - speed * nz
        keep, bounce = 1.0 - grip, -restitution * speed
        self.vx, self.vy, self.vz = tx * keep + bounce * nx, ty * keep + bounce * ny, tz * keep + bounce * nz
        return speed < -SEEN_IMPACT

    def touch_rim(self, restitution: float) -> bool:
        radial = math.hypot(self.x, self.y)
        if radial < 1e-6:
            return False
        ox, oy, oz = self.x - self.x / radial * RING_RADIUS, self.y - self.y / radial * RING_RADIUS, self.z
        distance = math.sqrt(ox * ox + oy * oy + oz * oz) or 1e-9
        depth = BALL_RADIUS + TUBE_RADIUS - distance
        return depth > 0 and self.reflect(ox / distance, oy / distance, oz / distance, depth, restitution)

    def touch_bracket(self, restitution: float) -> bool:
        along = min(max(self.y, RING_RADIUS), BOARD_Y)
        ox, oy, oz = self.x, self.y - along, self.z
        distance = math.sqrt(ox * ox + oy * oy + oz * oz) or 1e-9
        depth = BALL_RADIUS + BRACKET_RADIUS - distance
        return depth > 0 and self.reflect(ox / distance, oy / distance, oz / distance, depth, restitution)

    def touch_board(self, board: Board, restitution: float) -> bool:
        if not board.covers(self.x, self.z):
            return False
        gap = BOARD_Y - self.y
        if 0 <= gap < BALL_RADIUS:
            return self.reflect(0.0, -1.0, 0.0, BALL_RADIUS - gap, restitution)
        behind = self.y - (BOARD_Y + 0.03)
        if -0.03 < behind < BALL_RADIUS:
            return self.reflect(0.0, 1.0, 0.0, BALL_RADIUS - max(behind, 0.0), restitution)
        return False

    def drag_of_net(self, step: float, grip: float) -> bool:
        """Inside the net: pulled towards the axis and slowed. True while the net is holding the ball."""
        radial = math.hypot(self.x, self.y)
        if not self.in_net:
            self.in_net = -0.06 < self.z < 0.0 and self.vz < 0 and radial < RING_RADIUS - 0.04
        elif self.z > 0.02 or self.z < -NET_LENGTH - 0.06:
            self.in_net = False
        if not self.in_net:
            return False
        squeeze = max(radial + BALL_RADIUS - net_radius(self.z), 0.0)
        self.vx -= (260.0 * squeeze * self.x / max(radial, 1e-6) + grip * self.vx) * step
        self.vy -= (260.0 * squeeze * self.y / max(radial, 1e-6) + grip * self.vy) * step
        self.vz -= 0.55 * grip * self.vz * step
        return self.z < -0.05

    def advance(self, step: float) -> None:
        self.vz -= GRAVITY * step
        self.x, self.y, self.z = self.x + self.vx * step, self.y + self.vy * step, self.z + self.vz * step


def fly(
    position: tuple[float, float, float],
    velocity: tuple[float, float, float],
    seconds: float,
    board: Board,
    rim_restitution: float,
    board_restitution: float,
    net_grip: float,
) -> Flight:
    """Simulate `seconds` of flight from a position (m) and velocity (m/s); restitutions are unitless, grip in 1/s."""
    ball = _Ball(position, velocity)
    steps, step = int(seconds * STEP_HZ), 1.0 / STEP_HZ
    positions, velocities = np.empty((steps, 3)), np.empty((steps, 3))
    flight = Flight(positions, velocities)
    was_in_net = False
    for i in range(steps):
        positions[i] = ball.x, ball.y, ball.z
        velocities[i] = ball.vx, ball.vy, ball.vz
        near = ball.x * ball.x + ball.y * ball.y + ball.z * ball.z < 4.0
        if near:
            if ball.touch_rim(rim_restitution) or ball.touch_bracket(rim_restitution):
                _note(flight, "rim", i)
            if ball.touch_board(board, board_restitution):
                _note(flight, "backboard", i)
            if ball.drag_of_net(step, net_grip):
                _note(flight, "net", i)
            if was_in_net and not ball.in_net and ball.z < -NET_LENGTH and flight.made_at is None:
                flight.made_at = i
            was_in_net = ball.in_net
        ball.advance(step)
    return flight


def _note(flight: Flight, what: Contact, step: int) -> None:
    if not flight.contacts or flight.contacts[-1][0] != what:
        flight.contacts.append((what, step))


def launch(
    start: tuple[float, float, float], target: tuple[float, float, float], seconds: float
) -> tuple[float, float, float]:
    """The velocity (m/s) that carries a ball from `start` to `target` (m) in `seconds` under gravity alone."""
    vx, vy, vz = ((b - a) / seconds for a, b in zip(start, target, strict=True))
    return vx, vy, vz + 0.5 * GRAVITY * seconds
