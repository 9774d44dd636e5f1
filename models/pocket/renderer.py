"""A rim camera that never was: seeded clips of one shot at a hoop, with exact ground truth.

`render(seed)` draws a court, a camera and a flight, and films it at 30 frames per second. Only numpy and OpenCV.
Run as a module it writes the project's two sample clips.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from .ball import BallLook
from .camera import Camera
from .court import choose_board, choose_look
from .flight import BALL_RADIUS, BOARD_Y, NET_LENGTH, STEP_HZ, Board, Flight
from .lens import Lens
from .scene import (
    RING_PATH,
    Background,
    Look,
    NetState,
    Structure,
    draw_background,
    draw_cords,
    draw_ring,
    net_segments,
)
from .shot import Contact, Entry, Exit, Outcome, Shot, View
from .take import FPS, MARGIN, STEPS_PER_FRAME, Take, ball_inside, camera_margin, choose_take

Array = npt.NDArray[Any]

EventKind = Literal["entry", "backboard", "rim", "net", "through", "exit"]

SAMPLES: dict[Outcome, int] = {"make": 2_000_000_480, "miss": 2_000_000_385}  # seeds of the committed sample clips


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


def render(seed: int, outcome: Outcome | None = None, seconds: float | None = None, size: int = 400) -> RenderedClip:
    """Film one shot.

    The same arguments give the same pixels. `outcome` and `seconds` are drawn at random when None (1 to 2 s).
    """
    rng = np.random.default_rng(seed)
    outcome = outcome or ("make", "miss")[int(rng.integers(2))]
    view: View = ("front", "left", "right")[int(rng.choice(3, p=(0.64, 0.18, 0.18)))]
    look, board = choose_look(rng), choose_board(rng)
    canvas = round(size * (1 + 2 * MARGIN))
    while True:
        camera = _choose_camera(rng, view, size, canvas)
        if hidden_by_board(camera, board):
            continue
        take = choose_take(rng, outcome, camera, board, size, seconds)
        if take is not None:
            break
    background = draw_background(rng, look, canvas)
    structure = Structure(background, camera, board, look, rng)
    shake = _shake(rng, take.frames, size)
    frames = _film(rng, take, camera, structure, background, look, shake, size)
    return RenderedClip(frames, FPS, _truth(take, camera, shake, view, look.background, size))


def _choose_camera(rng: np.random.Generator, view: View, size: int, canvas: int) -> Camera:
    """Below the ring, in front of the board, beside it or a little behind it: "left" means that the hoop points left in
    the picture."""
    beside = rng.normal(84, 9) if rng.random() < 0.6 else rng.uniform(60, 125)
    azimuth = {"front": rng.normal(0, 24), "left": beside, "right": -beside}[view]
    limit = 50 if view == "front" else 125
    across = {"front": rng.uniform(0.34, 0.66), "left": rng.uniform(0.30, 0.52), "right": rng.uniform(0.48, 0.70)}[view]
    margin = (canvas - size) / 2
    return Camera.around_ring(
        azimuth=math.radians(float(np.clip(azimuth, -limit, limit))),
        elevation=math.radians(rng.uniform(8, 45)),
        distance=rng.uniform(2.6, 7.5),
        roll=math.radians(rng.normal(0, 2.0)),
        ring_pixels=rng.uniform(0.13, 0.38) * size,
        ring_at=(margin + across * size, margin + rng.uniform(0.40, 0.68) * size),
    )


def hidden_by_board(camera: Camera, board: Board) -> bool:
    """Whether the board stands between a camera behind it and the middle of the ring or of the net."""
    x, y, z = camera.position
    if y <= BOARD_Y:
        return False
    for height in (0.0, -NET_LENGTH / 2):
        share = BOARD_Y / y  # of the way from the point, above the origin, to the camera
        if board.covers(x * share, height + (z - height) * share):
            return True
    return False


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
    take: Take,
    camera: Camera,
    structure: Structure,
    background: Array,
    look: Look,
    shake: Array,
    size: int,
) -> Array:
    """Expose every frame: scene, shake, lens and sensor."""
    ball = BallLook(rng, look)
    net, lens = NetState.at_rest(rng), Lens(rng, size)
    frames = np.empty((take.frames, size, size, 3), np.uint8)
    shutter = rng.uniform(0.08, 0.6) / FPS
    for n, step in enumerate(take.steps):
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
    """One sharp canvas: whatever is farther than the ball, the ball, whatever is nearer; the board with its post before
    or after the ring, as the camera stands."""
    position = flight.positions[step]
    where, scale = camera.project(position), camera.pixels_per_metre()
    ball_behind, camera_behind = position[1] > BOARD_Y, camera.position[1] > BOARD_Y
    cords = camera.project(net_segments(net, position, look.chain))
    ring = camera.project(np.stack([RING_PATH[:-1], RING_PATH[1:]], axis=1))
    cords_near, ring_near = (part[..., 2].mean(axis=1) < where[2] for part in (cords, ring))
    number = np.arange(len(ring))
    back = cords[..., 2].mean(axis=1) > float(np.median(cords[..., 2]))
    if ball_behind:  # the ring is all on one side of the ball
        ring_near[:], cords_near[:] = not camera_behind, not camera_behind
    image: Array = background.copy() if ball_behind or camera_behind else structure.image.copy()
    if ball_behind and not camera_behind:
        ball.draw(image, camera, flight, step, shutter)
        image = structure.over(image)
    draw_ring(image, ring[~ring_near], number[~ring_near], look, scale)
    draw_cords(image, cords[~cords_near & back], look, scale, near=False)
    draw_cords(image, cords[~cords_near & ~back], look, scale, near=True)
    if not ball_behind:
        ball.draw(image, camera, flight, step, shutter)
    draw_cords(image, cords[cords_near & back], look, scale, near=False)
    draw_cords(image, cords[cords_near & ~back], look, scale, near=True)
    draw_ring(image, ring[ring_near], number[ring_near], look, scale)
    if camera_behind:
        image = structure.over(image)
        if ball_behind:
            ball.draw(image, camera, flight, step, shutter)
    return image


def _truth(take: Take, camera: Camera, shake: Array, view: View, background: Background, size: int) -> ShotTruth:
    seen, ring = camera.project(take.flight.positions[take.steps]), camera.project(np.zeros(3))
    moved = np.einsum("nij,nj->ni", shake[:, :, :2], seen[:, :2]) + shake[:, :, 2]
    ring_moved = shake[:, :, :2] @ ring[:2] + shake[:, :, 2]
    radius = BALL_RADIUS * camera.focal / np.maximum(seen[:, 2], 0.3)
    inside = ball_inside(seen, camera, size)
    width = np.full(take.frames, 0.4572 * camera.focal / ring[2])
    return ShotTruth(
        outcome=take.shot.outcome,
        view=view,
        entry=take.shot.entry,
        contacts=take.shot.contacts,
        exit=take.shot.exit,
        background=background,
        events=_events(take.flight, take.touches, take.steps, take.entered, take.left_at),
        ball=np.column_stack([moved, radius, inside]).astype(np.float32),
        ring=np.column_stack([ring_moved, width]).astype(np.float32),
    )


def _events(
    flight: Flight, touches: Sequence[tuple[Contact, int]], steps: Array, entered: int, left_at: int
) -> tuple[Event, ...]:
    """What happens in frames that show the simulation steps int64 [N], in order."""

    def first_shown(step: int) -> int:
        return int(np.searchsorted(steps, step))

    events = [Event("entry", entered), *(Event(what, first_shown(step)) for what, step in touches)]
    if flight.made_at is not None and first_shown(flight.made_at) < left_at:
        events.append(Event("through", first_shown(flight.made_at)))
    return (*events, Event("exit", left_at))


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
