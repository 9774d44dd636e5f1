"""Balls: how one looks, and those that fly and bounce through footage without a rim."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .camera import Camera
from .colours import any_colour
from .court import choose_look
from .flight import BALL_RADIUS, GRAVITY, STEP_HZ, Flight, launch
from .scene import Look, clouds
from .take import FPS, MAX_FRAMES, STEPS_PER_FRAME

Array = npt.NDArray[Any]

LONGEST_SMEAR = 6.0  # pixels: smearing a ball costs the square of it


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


@dataclass(frozen=True)
class Ball:
    """A ball's flight, its radius as a share of a basketball's, and whether it passes before the figures."""

    flight: Flight
    look: BallLook
    scale: float
    near: bool

    def draw(self, image: Array, camera: Camera, time: float, shutter: float) -> None:
        """Blend the ball at `time` (s) into uint8 `image`.

        A ball of another size looks like the usual one, nearer or farther: its path is scaled about the camera.
        """
        step = round(time * STEP_HZ)
        position = camera.position + (self.flight.positions[step] - camera.position) / self.scale
        seen = camera.project(position)
        if not -120 < seen[0] < len(image) + 120 or not -120 < seen[1] < len(image) + 120 or seen[2] < 0.4:
            return
        speed = self.flight.velocities[step] / self.scale
        shutter = min(
            shutter / 2, LONGEST_SMEAR * float(seen[2]) / (camera.focal * float(np.linalg.norm(speed)) + 1e-6)
        )
        self.look.draw(image, camera, Flight(position[None], speed[None]), 0, shutter)


def throw_balls(
    rng: np.random.Generator,
    camera: Camera,
    side: int,
    window: tuple[float, float],
    seconds: float,
    floor: float,
    look: Look | None = None,
) -> tuple[Ball, ...]:
    """No ball, or a few of any size, thrown through what the camera sees and bouncing at `floor` (m)."""
    balls = []
    for _ in range(int(rng.choice((0, 1, 2, 3), p=(0.3, 0.5, 0.15, 0.05)))):
        depth = camera.focal / rng.uniform(12, 260)  # m
        ends = side / 2 + rng.uniform(-0.6, 0.6, (2, 2)) * window
        rays = np.column_stack([(ends - camera.centre) / camera.focal, np.ones(2)]) @ camera.axes
        start, end = camera.position + rays * depth * rng.uniform(0.7, 1.3, (2, 1))
        start[2], end[2] = max(start[2], floor + 0.15), max(end[2], floor + 0.15)
        path = _bounce(start, np.array(launch(tuple(start), tuple(end), rng.uniform(0.3, 1.4))), seconds, floor)
        balls.append(
            Ball(
                path,
                BallLook(rng, _ball_look(rng, look)),
                float(rng.choice((0.28, 0.32, 0.9, 1.0, 1.0))),
                rng.random() < 0.5,
            )
        )
    return tuple(balls)


def _ball_look(rng: np.random.Generator, look: Look | None) -> Look:
    """A basketball, or any colour with or without seams."""
    look = look or choose_look(rng)
    if rng.random() < 0.35:
        return look
    colour = (60.0, 230.0, 210.0) if rng.random() < 0.3 else any_colour(rng)
    return replace(look, ball=colour, seam=any_colour(rng) if rng.random() < 0.4 else colour)


def _bounce(position: Array, velocity: Array, seconds: float, floor: float) -> Flight:
    """A ball under gravity that bounces at `floor` (m)."""
    steps = int(seconds * STEP_HZ) + STEPS_PER_FRAME
    positions, velocities = np.empty((steps, 3)), np.empty((steps, 3))
    time = np.arange(steps) / STEP_HZ
    positions[:, :2], velocities[:, :2] = position[:2] + np.outer(time, velocity[:2]), velocity[:2]
    z, vz = float(position[2]), float(velocity[2])
    for step in range(steps):
        positions[step, 2], velocities[step, 2] = z, vz
        z, vz = z + vz / STEP_HZ, vz - GRAVITY / STEP_HZ
        if z < floor and vz < 0:
            z, vz = floor, -0.75 * vz
    return Flight(positions, velocities)


def shoot(rng: np.random.Generator, look: Look, floor: float) -> Ball:
    """A shot at the hoop that passes through ring and board as if they were not there; it bounces at `floor` (m)."""
    bearing, distance = rng.uniform(0, 2 * math.pi), rng.uniform(1, 6)
    start = (distance * math.cos(bearing), -abs(distance * math.sin(bearing)), rng.uniform(-1.3, -0.6))
    aim = (rng.normal(0, 0.2), rng.normal(0, 0.2), 0.0)
    flight = _bounce(np.array(start), np.array(launch(start, aim, rng.uniform(0.8, 1.3))), MAX_FRAMES / FPS, floor)
    return Ball(flight, BallLook(rng, look), 1.0, near=True)
