"""Jointed people made of capsules, who run, jump, swing, throw, kick and squat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from .camera import Camera
from .colours import HAIRS, SKINS, any_colour, near_colour
from .scene import Colour, lit

Array = npt.NDArray[Any]

# Key poses, radians: lean of the trunk, turn of the shoulders; thigh forward, knee bent (left, right); upper arm ahead
# from hanging, elbow bent, arm spread (left, right); height above the floor in statures; turn of what the hand holds.
Pose = tuple[float, ...]
STAND: Pose = (0.03, 0.0, 0.06, 0.08, -0.04, 0.05, 0.05, 0.25, 0.15, 0.05, 0.3, 0.15, 0.0, 0.3)
CROUCH: Pose = (0.6, 0.0, 1.2, 1.7, 1.2, 1.7, -0.4, 0.7, 0.15, -0.4, 0.7, 0.15, 0.0, 0.3)
STRIDE: Pose = (0.2, 0.3, 0.95, 0.5, -0.55, 0.5, -0.7, 1.5, 0.1, 0.75, 1.5, 0.1, 0.03, 0.3)
PASS: Pose = (0.2, 0.0, 0.1, 0.3, 0.25, 1.7, 0.0, 1.5, 0.1, 0.0, 1.5, 0.1, 0.0, 0.3)
STEP: Pose = (0.04, 0.1, 0.4, 0.1, -0.35, 0.15, -0.35, 0.3, 0.1, 0.4, 0.4, 0.1, 0.0, 0.3)
REACH: Pose = (-0.05, 0.0, 0.0, 0.15, -0.1, 0.25, 2.7, 0.3, 0.1, 2.9, 0.2, 0.1, 0.25, 0.3)
GATHER: Pose = (0.3, 0.0, 0.5, 0.9, 0.4, 0.8, 0.5, 1.5, -0.15, 0.5, 1.5, -0.15, 0.0, 0.3)
WIND: Pose = (0.35, -1.2, 0.25, 0.5, 0.0, 0.3, 1.5, 0.3, -0.3, 1.4, 1.1, -0.2, 0.0, 2.2)
ADDRESS: Pose = (0.6, 0.0, 0.25, 0.4, 0.25, 0.4, 0.75, 0.1, -0.25, 0.75, 0.1, -0.25, 0.0, -0.6)
FINISH: Pose = (0.1, 1.5, 0.1, 0.15, -0.3, 0.7, 2.1, 0.9, -0.3, 2.0, 0.6, -0.2, 0.0, -2.2)
COCK: Pose = (-0.15, -0.9, 0.7, 0.5, -0.2, 0.5, 1.4, 0.3, 0.4, -0.6, 1.8, 1.2, 0.0, 1.5)
SMASH: Pose = (0.45, 0.6, 0.5, 0.4, -0.5, 0.5, 0.2, 0.8, 0.2, 2.6, 0.15, 0.3, 0.08, 0.6)
FOLLOW: Pose = (0.8, 1.0, 0.7, 0.6, -0.8, 0.9, -0.4, 0.8, 0.2, 0.5, 0.4, -0.3, 0.0, -0.9)
LIFT: Pose = (-0.1, -0.5, 1.6, 1.7, -0.02, 0.1, 0.7, 1.6, 0.0, 0.7, 1.6, 0.0, 0.0, 0.5)
KICK: Pose = (-0.2, 0.5, -0.1, 0.3, 1.3, 0.1, 0.9, 0.3, 0.6, -0.6, 0.3, 0.6, 0.0, 0.3)
DRAW_BACK: Pose = (0.3, -0.4, 0.2, 0.3, -0.9, 1.3, -0.5, 0.4, 0.7, 0.8, 0.4, 0.5, 0.0, 0.3)
SQUAT: Pose = (0.7, 0.0, 1.55, 2.1, 1.55, 2.1, 1.5, 0.05, 0.0, 1.5, 0.05, 0.0, 0.0, 0.3)
STAR: Pose = (0.0, 0.0, 0.0, 0.05, 0.0, 0.05, 2.0, 0.1, 1.1, 2.0, 0.1, 1.1, 0.12, 0.3)
BALANCE: Pose = (0.35, 0.9, 0.6, 0.9, 0.3, 0.7, 0.7, 0.5, 0.9, 0.5, 0.4, 1.0, 0.0, 0.3)
TUCK: Pose = (0.5, 0.9, 1.4, 1.9, 1.2, 1.8, 1.0, 0.4, 1.1, 0.9, 0.4, 1.1, 0.3, 0.3)


def _mirrored(pose: Pose) -> Pose:
    lean, turn, *rest = pose
    return (lean, -turn, *rest[2:4], *rest[:2], *rest[7:10], *rest[4:7], *rest[10:])


@dataclass(frozen=True)
class Action:
    """Poses in turn, `seconds` from one to the next; `again`: they go round.

    `speed` is that over the ground (m/s); `holds`: with a bat, racket or club.
    """

    poses: tuple[Pose, ...]
    again: bool
    seconds: float
    speed: float = 0.0
    holds: bool = False


ACTIONS = (
    Action((STRIDE, PASS, _mirrored(STRIDE), _mirrored(PASS)), True, 0.17, 4.5),
    Action((STEP, STAND, _mirrored(STEP), STAND), True, 0.27, 1.3),
    Action((STAND, CROUCH, REACH, REACH, CROUCH, STAND), False, 0.28),
    Action((STAND, GATHER, REACH, STAND), False, 0.35),
    Action((GATHER, STAND), True, 0.3),
    Action((SQUAT, STAND), True, 0.7),
    Action((STAND, STAR), True, 0.3),
    Action((ADDRESS, WIND, WIND, ADDRESS, FINISH, FINISH), False, 0.25, 0.0, True),
    Action((STAND, WIND, ADDRESS, FINISH, STAND), False, 0.2, 0.5, True),
    Action((STAND, COCK, SMASH, FOLLOW, STAND), False, 0.22, 1.0, True),
    Action((STAND, LIFT, COCK, SMASH, FOLLOW, FOLLOW), False, 0.25, 0.6),
    Action((STEP, DRAW_BACK, KICK, STEP, STAND), False, 0.2, 1.5),
    Action((BALANCE, GATHER, TUCK, BALANCE), False, 0.3, 4.0),
    Action((STAND, _mirrored(STAND)), True, 0.8),
)

# Joints; of those with two sides the left one, and joint + 10 is the right one.
ROOT, NECK, HEAD, ELBOW, HAND, KNEE, ANKLE, SHOULDER, HIP, TOE = range(10)
THIGH, SHIN, TRUNK, UPPER_ARM, FOREARM, FOOT = 0.245, 0.25, 0.30, 0.165, 0.18, 0.09  # in statures


class Figure:
    """A person of capsules who does one thing."""

    def __init__(self, rng: np.random.Generator, at: tuple[float, float, float], seconds: float) -> None:
        action = ACTIONS[int(rng.integers(len(ACTIONS)))]
        self._at, self._stature, self._build = np.array(at), rng.uniform(1.45, 1.98), rng.uniform(0.85, 1.35)
        self._yaw, self._speed = rng.uniform(0, 2 * math.pi), action.speed * rng.uniform(0.5, 1.3)
        self._poses = np.array([STAND, *action.poses] if not action.again and rng.random() < 0.5 else action.poses)
        self._poses = self._poses * rng.uniform(0.8, 1.2) + rng.normal(0, 0.06, self._poses.shape[1]) * (
            np.arange(14) < 12
        )
        self._again, self._pace = action.again, action.seconds * rng.uniform(0.7, 1.6)
        spare = seconds - self._pace * len(self._poses)
        self._delay = rng.uniform(min(spare, 0) / 2, max(spare, 0.1))
        if action.again:
            self._delay = rng.uniform(-2, 0)
        self._middle = seconds / 2
        self._dress(rng, action.holds)

    def _dress(self, rng: np.random.Generator, holds: bool) -> None:
        self._skin, self._hair = near_colour(rng, SKINS, 6), near_colour(rng, HAIRS, 8)
        self._shirt, self._shorts, self._shoes = (any_colour(rng) for _ in range(3))
        self._sleeve = self._shirt if rng.random() < 0.75 else self._skin
        self._cuff = self._shirt if rng.random() < 0.3 else self._skin
        self._shin = self._shorts if rng.random() < 0.45 else self._skin
        self._cap = rng.random() < 0.25
        self._tool = (rng.uniform(0.35, 0.65), bool(rng.random() < 0.4), any_colour(rng)) if holds else None
        self._light = float(rng.choice((-1.0, 1.0)))
        self._shadow = rng.uniform(0.0, 0.55)

    def _pose(self, time: float) -> Array:
        """float64 [14] at `time` seconds: eased from key to key."""
        turn = (time - self._delay) / self._pace
        last = len(self._poses) - 1
        if not self._again:
            turn = min(max(turn, 0.0), float(last))
        key, share = math.floor(turn), turn - math.floor(turn)
        share = share * share * (3 - 2 * share)
        nearer, farther = self._poses[key % (last + 1)], self._poses[(key + 1) % (last + 1)]
        return cast(Array, nearer + share * (farther - nearer))

    def joints(self, time: float) -> Array:
        """World metres float64 [21, 3]: the ten left joints (trunk among them), the right ones, the tool's end."""
        pose = self._pose(time)
        lean, turn, lift, held = pose[0], pose[1], pose[12], pose[13]
        body = np.zeros((21, 3))  # forward, left, up
        body[NECK] = (TRUNK * math.sin(lean), 0, TRUNK * math.cos(lean))
        body[HEAD] = body[NECK] + (0.10 * math.sin(lean * 0.6) + 0.012, 0, 0.10 * math.cos(lean * 0.6))
        cos, sin = math.cos(turn), math.sin(turn)
        for side, hand in ((0, 1.0), (10, -1.0)):
            thigh, knee = pose[2 + side // 5], pose[3 + side // 5]
            arm, elbow, spread = pose[6 + 3 * side // 10 : 9 + 3 * side // 10]
            body[HIP + side] = (-0.05 * hand * sin * 0.3, 0.055 * hand, -0.02)
            body[KNEE + side] = body[HIP + side] + _limb(thigh, 0.10 * hand, THIGH)
            body[ANKLE + side] = body[KNEE + side] + _limb(thigh - knee, 0.04 * hand, SHIN)
            body[TOE + side] = body[ANKLE + side] + (FOOT, 0.015 * hand, -0.025)
            body[SHOULDER + side] = body[NECK] + (-0.11 * hand * sin, 0.11 * hand * cos, -0.035)
            upper, lower = _limb(arm, spread * hand, UPPER_ARM), _limb(arm + elbow, spread * 0.7 * hand, FOREARM)
            body[ELBOW + side] = body[SHOULDER + side] + _turned(upper, cos, sin)
            body[HAND + side] = body[ELBOW + side] + _turned(lower, cos, sin)
        reach = self._tool[0] if self._tool else 0.0
        body[20] = body[HAND + 10] + _turned(_limb(pose[9] + pose[10] + held, 0.2 * held, reach), cos, sin)
        body[:, 2] += lift - min(body[ANKLE, 2], body[ANKLE + 10, 2]) + 0.035
        cos, sin = math.cos(self._yaw), math.sin(self._yaw)
        world = self._at + self._stature * np.column_stack(
            [body[:, 0] * cos - body[:, 1] * sin, body[:, 0] * sin + body[:, 1] * cos, body[:, 2]]
        )
        return cast(Array, world + self._speed * (time - self._middle) * np.array((cos, sin, 0.0)))

    def draw(self, image: Array, camera: Camera, time: float) -> None:
        """Onto uint8 `image`, far limbs first."""
        world = self.joints(time)
        seen = camera.project(world)
        if seen[:, 2].min() < 0.3:
            return
        unit = self._stature * camera.focal / float(seen[ROOT, 2])  # pixels
        if unit > 6 * len(image):
            return
        self._cast_shadow(image, camera, world, unit)
        for _, start, end, thick, colour in sorted(self._parts(seen), key=lambda part: -part[0]):
            _capsule(image, seen[start], seen[end], thick * unit * self._build, colour, self._light)
            if start == NECK:
                self._draw_head(image, seen, unit)
        if self._tool:
            self._draw_tool(image, seen, unit)

    def _cast_shadow(self, image: Array, camera: Camera, world: Array, unit: float) -> None:
        middle = (world[ANKLE] + world[ANKLE + 10]) / 2
        x, y, _ = camera.project(np.array([middle[0], middle[1], self._at[2]]))
        reach, high = int(0.22 * unit), max(1, int(0.04 * unit))
        left, top = int(x) - reach, int(y) - high
        x0, y0 = max(left, 0), max(top, 0)
        patch = image[y0 : max(top + 2 * high, 0), x0 : max(left + 2 * reach, 0)]
        if patch.size == 0:
            return
        dark = np.zeros(patch.shape[:2], np.float32)
        cv2.ellipse(dark, (int(x) - x0, int(y) - y0), (reach, high), 0, 0, 360, self._shadow, -1, cv2.LINE_AA)
        patch[:] = (patch * (1 - cv2.GaussianBlur(dark, (0, 0), max(1.0, high / 3)))[..., None]).astype(np.uint8)

    def _parts(self, seen: Array) -> list[tuple[float, int, int, float, Colour]]:
        """(depth, joint, joint, radius in statures, colour) of each capsule."""
        parts = [(float(seen[ROOT, 2]) - 1e-3, NECK, ROOT, 0.0, self._shirt)]
        for side in (0, 10):
            for start, end, thick, colour in (
                (HIP, KNEE, 0.046, self._shorts),
                (KNEE, ANKLE, 0.031, self._shin),
                (ANKLE, TOE, 0.024, self._shoes),
                (SHOULDER, ELBOW, 0.030, self._sleeve),
                (ELBOW, HAND, 0.022, self._cuff),
            ):
                depth = float(seen[start + side, 2] + seen[end + side, 2]) / 2
                parts.append((depth, start + side, end + side, thick, colour))
            parts.append((float(seen[ROOT, 2]) - 2e-4, SHOULDER + side, HIP + side, 0.052, self._shirt))
            parts.append((float(seen[ROOT, 2]) - 1e-4, HIP + side, ROOT, 0.055, self._shorts))
        parts[0] = (parts[0][0], NECK, ROOT, 0.075, self._shirt)
        return parts

    def _draw_head(self, image: Array, seen: Array, unit: float) -> None:
        _capsule(image, seen[NECK], seen[HEAD], 0.026 * unit, lit(self._skin, 0.8), self._light)
        at, radius = _pixel(seen[HEAD]), max(1, round(0.057 * unit * 8))
        hair = self._shirt if self._cap else self._hair
        cv2.circle(image, at, round(radius * 1.08), hair, -1, cv2.LINE_AA, 3)
        toward = float(seen[TOE, 0] + seen[TOE + 10, 0] - seen[ANKLE, 0] - seen[ANKLE + 10, 0]) / max(
            unit * 2 * FOOT, 1e-3
        )
        facing = float(seen[TOE, 2] + seen[TOE + 10, 2] < seen[ANKLE, 2] + seen[ANKLE + 10, 2])
        if facing or abs(toward) > 0.6:
            face = (at[0] + round(0.45 * toward * radius), at[1] + round(0.25 * radius))
            cv2.circle(image, face, round(0.8 * radius), self._skin, -1, cv2.LINE_AA, 3)

    def _draw_tool(self, image: Array, seen: Array, unit: float) -> None:
        _, racket, colour = self._tool or (0.0, False, self._shirt)
        hand, end = seen[HAND + 10], seen[20]
        cv2.line(image, _pixel(hand), _pixel(end), colour, max(1, round(0.018 * unit)), cv2.LINE_AA, 3)
        if racket:
            axes = (max(8, round(0.075 * unit * 8)), max(6, round(0.05 * unit * 8)))
            angle = math.degrees(math.atan2(end[1] - hand[1], end[0] - hand[0]))
            cv2.ellipse(image, _pixel(end), axes, angle, 0, 360, colour, max(1, round(0.012 * unit)), cv2.LINE_AA, 3)


def _limb(forward: float, aside: float, length: float) -> Array:
    """A limb that hangs, swung `forward` and `aside` (rad): forward, left, up."""
    cos = math.cos(aside)
    return length * np.array((math.sin(forward) * cos, math.sin(aside), -math.cos(forward) * cos))


def _turned(limb: Array, cos: float, sin: float) -> Array:
    return np.array((limb[0] * cos - limb[1] * sin, limb[0] * sin + limb[1] * cos, limb[2]))


def _pixel(seen: Array) -> tuple[int, int]:
    """OpenCV's fixed-point coordinates, to an eighth of a pixel."""
    return round(float(seen[0]) * 8), round(float(seen[1]) * 8)


def _capsule(image: Array, start: Array, end: Array, radius: float, colour: Colour, light: float) -> None:
    """A limb: its dark side, and a lighter streak towards the light."""
    width = max(1, round(2 * radius))
    first, last = _pixel(start), _pixel(end)
    cv2.line(image, first, last, lit(colour, 0.68), width, cv2.LINE_AA, 3)
    if width < 4:
        return
    aside = round(light * 0.15 * width * 8)
    for share, factor in ((0.66, 0.88), (0.34, 1.05)) if width > 9 else ((0.55, 1.0),):
        moved = aside if share < 0.6 else aside // 2
        cv2.line(
            image,
            (first[0] + moved, first[1]),
            (last[0] + moved, last[1]),
            lit(colour, factor),
            max(1, round(share * width)),
            cv2.LINE_AA,
            3,
        )
