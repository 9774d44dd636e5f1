"""Time and memory of `describe` against what may grow: a clip's length, its resolution, its frame rate, their number.

Each point is a clip made for it, described by processes of its own (`harness.measure`); a line on disk for each as it
is done, so that a measurement that stops goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..bundle import Bundle
from ..errors import OutputError, SvrtError
from ..records import RecordLog, from_json
from .environment import environment
from .harness import Job, make_ready, measure
from .samples import STAGES, Curve, Report

SCHEMA = 1
WHOLE = "whole"
LOG, JSON = "growth.jsonl", "growth.json"
LENGTH, RESOLUTION, RATE, CLIPS = "length", "resolution", "rate", "clips"
UNITS = {LENGTH: "s", RESOLUTION: "Mpixel", RATE: "frames/s", CLIPS: "clips"}
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Point:
    """One x of one curve, and the clip that is described for it; `clips` of them in one process."""

    axis: str
    x: float
    width: int = 640
    height: int = 360
    fps: float = 30.0
    seconds: float = 2.0
    clips: int = 1


@dataclass(frozen=True)
class Sizes:
    """What grows, and how far. `runs` is of each point, by as many processes up to five."""

    lengths_s: tuple[float, ...] = (2, 5, 10, 30, 60, 120, 300, 600)
    resolutions: tuple[tuple[int, int], ...] = (
        *((640, 360), (854, 480), (1280, 720)),
        *((1920, 1080), (2560, 1440), (3840, 2160)),
    )
    rates: tuple[float, ...] = (24, 30, 60, 120, 240)
    clips: int = 1000
    runs: int = 3

    def points(self) -> list[Point]:
        """All points, those of one process last."""
        found = [Point(LENGTH, seconds, seconds=seconds) for seconds in self.lengths_s]
        found += [Point(RESOLUTION, round(w * h / 1e6, 3), width=w, height=h) for w, h in self.resolutions]
        found += [Point(RATE, fps, fps=fps) for fps in self.rates]
        counts = sorted({*(count for count in COUNTS if count < self.clips), self.clips})
        return found + [Point(CLIPS, count, clips=self.clips) for count in counts]


@dataclass(frozen=True)
class Sample:
    """What was measured at a point: milliseconds of warm runs, whole and by stage; MiB of each process's peak.

    Of many clips in one process it is one figure each: milliseconds of all so far, and the highest resident memory
    since the point before.
    """

    point: Point
    bundle: str  # sha256 of its manifest
    backend: str
    ms: dict[str, list[float]]
    peak_rss_mib: list[float]
    backends: dict[str, str]
    measured_on: str = ""  # svrt's version and the machine


@dataclass(frozen=True)
class Growth:
    """A whole measurement."""

    schema: int
    created: str
    svrt: str
    bundle: str
    bundle_sha256: str
    backends: dict[str, str]
    environment: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)

    def of(self, axis: str) -> list[Sample]:
        """Samples of one axis, by rising x."""
        return sorted((one for one in self.samples if one.point.axis == axis), key=lambda one: one.point.x)

    def curves(self) -> list[Curve]:
        """A curve for each axis: medians of times, highest peaks."""
        return [_curve(axis, found) for axis in UNITS if (found := self.of(axis))]


def _curve(axis: str, samples: Sequence[Sample]) -> Curve:
    def medians(step: str) -> list[float]:
        return [float(np.median(one.ms[step])) for one in samples]

    return Curve(
        title="number of clips" if axis == CLIPS else axis,
        unit=UNITS[axis],
        x=[one.point.x for one in samples],
        whole_ms=medians(WHOLE),
        peak_rss_mib=[max(one.peak_rss_mib) for one in samples],
        stages_ms={stage: medians(stage) for stage in STAGES},
    )


def grow(
    bundle: Bundle,
    folder: Path,
    backend: str = "auto",
    sizes: Sizes | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Growth:
    """Measure every point that the folder's log does not have; `say` is told a line for each.

    Raises `OutputError` where the folder cannot be written, and what `harness.measure` raises.
    """
    sizes = sizes or Sizes()
    points, machine = sizes.points(), environment()
    here = _here(machine)
    found: dict[Point, Sample] = {}
    with RecordLog(folder / LOG, Sample, "svrt bench growth") as log:
        for sample in log.read():
            if (sample.bundle, sample.backend, sample.measured_on) == (bundle.sha256, backend, here):
                found[sample.point] = sample
        if before := sum(point in found for point in points):
            say(f"{before} of {len(points)} points were measured before")
        if any(point not in found for point in points):
            make_ready(bundle, backend)
        for index, point in enumerate(points):
            if point not in found:
                wanted = [one for one in points if one.axis == CLIPS] if point.axis == CLIPS else [point]
                samples = [
                    replace(one, measured_on=here) for one in _measure(bundle, wanted, folder, backend, sizes.runs)
                ]
                log.append(*samples)
                found.update({sample.point: sample for sample in samples})
            one = found[point]
            what = (
                f"{point.x:g} {UNITS[point.axis]}: {np.median(one.ms[WHOLE]):.0f} ms, {max(one.peak_rss_mib):.0f} MiB"
            )
            say(f"{point.axis}, {what} ({index + 1} of {len(points)})")
    samples = [found[point] for point in points]
    return Growth(
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        svrt=version("svrt"),
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        backends=samples[-1].backends,
        environment=machine,
        samples=samples,
    )


def _here(machine: Mapping[str, Any]) -> str:
    """What must be the same for what was measured before to count: svrt, the machine, its power mode."""
    names = ("board", "l4t", "power_mode", "gpu", "processor", "cores")
    return ", ".join([f"svrt {version('svrt')}", *(f"{name} {machine[name]}" for name in names if machine[name])])


def _measure(bundle: Bundle, points: list[Point], folder: Path, backend: str, runs: int) -> list[Sample]:
    """Samples of a point, or of all points of one process."""
    first = points[0]
    clip = write_clip(folder, first)
    try:
        if first.axis != CLIPS:
            report = measure(Job(bundle, [clip], runs, backend=backend))
            ms = {stage: [run.ms(stage) for run in report.warm()] for stage in STAGES}
            ms[WHOLE] = [run.whole_ms for run in report.warm()]
            peaks = [process.peak_rss_mib for process in report.processes]
            return [Sample(first, bundle.sha256, backend, ms, peaks, report.backends)]
        report = measure(Job(bundle, [clip], max(1, first.clips - 1), backend=backend, most_processes=1))
    finally:
        clip.unlink(missing_ok=True)
    return _of_one_process(points, report, bundle, backend)


def _of_one_process(points: list[Point], report: Report, bundle: Bundle, backend: str) -> list[Sample]:
    samples, since = [], report.runs[0].start_s
    memory = [
        (at, mib) for at, mib in zip(report.memory.seconds, report.memory.rss_mib, strict=True) if mib is not None
    ]
    for point in points:
        runs = report.runs[: int(point.x)]
        ms = {stage: [sum(run.ms(stage) for run in runs)] for stage in STAGES}
        ms[WHOLE] = [(runs[-1].stop_s - runs[0].start_s) * 1e3]
        # Where no sample fell between two points, the next one after them says what was resident.
        peak = max((mib for at, mib in memory if since <= at <= runs[-1].stop_s), default=None)
        if peak is None:
            peak = next((mib for at, mib in memory if at >= since), report.processes[0].peak_rss_mib)
        samples.append(Sample(point, bundle.sha256, backend, ms, [peak], report.backends))
        since = runs[-1].stop_s
    return samples


def write_clip(folder: Path, point: Point) -> Path:
    """Write a point's clip: a disc that crosses a textured picture under a panning camera. MPEG-4, in an MP4.

    Raises `OutputError` where it cannot be written.
    """
    path = folder / f"{point.axis}-{point.x:g}.mp4"
    partial = folder / f".{path.name}.partial.mp4"
    writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), point.fps, (point.width, point.height))
    try:
        if not writer.isOpened():
            raise OutputError(f"{partial}: no MPEG-4 video can be written there by this OpenCV")
        for frame in _frames(point):
            writer.write(frame)
    finally:
        writer.release()
    partial.replace(path)
    return path


def _frames(point: Point) -> Iterator[np.ndarray]:
    width, height, pan = point.width, point.height, 64
    coarse = np.random.default_rng(0).integers(40, 160, (height // 8 + 1, (width + pan) // 8 + 1, 3), dtype=np.uint8)
    ground = cv2.resize(coarse, (width + pan, height), interpolation=cv2.INTER_CUBIC)
    count = max(2, round(point.fps * point.seconds))
    for index in range(count):
        at_s = index / point.fps
        left = round(pan / 2 * (1 + np.sin(at_s)))
        frame = ground[:, left : left + width].copy()
        centre = (round(width * (at_s / 2 % 1.0)), round(height * (0.5 + 0.3 * np.sin(3 * at_s))))
        cv2.circle(frame, centre, max(2, height // 12), (40, 110, 230), -1)
        yield frame


def read_growth(path: Path) -> Growth:
    """Read what `svrt bench growth` wrote; figures beside the samples are passed over. Raises `SvrtError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise SvrtError(f"not of schema {SCHEMA}")
        values.pop("figures", None)
        return from_json(Growth, values, "")
    except OSError as exc:
        raise SvrtError(f"{path}: cannot be read: {exc.strerror}") from None
    except (ValueError, RecursionError, SvrtError) as exc:
        raise SvrtError(f"{path}: {exc}; measure again with svrt bench growth") from None


def curves_in(folder: Path, bundle_sha256: str) -> list[Curve]:
    """The curves that lie in the folder of a benchmark, where they are of the same bundle. Raises as `read_growth`."""
    path = folder / JSON
    found = read_growth(path) if path.exists() else None
    return [] if found is None or found.bundle_sha256 != bundle_sha256 else found.curves()
