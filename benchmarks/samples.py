"""What a benchmark keeps: every run, every sample of memory and power. All figures are computed from these.

Seconds are of the monotonic clock, from the benchmark's beginning.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SvrtError
from ..records import from_json

SCHEMA = 1
STAGES = ("decode", "sample", "encode", "prefill", "generate")
OTHER = "other"  # the whole less its stages


@dataclass(frozen=True)
class Run:
    """One description: of which clip, by which process, and when. `cold` is the first of its process.

    `stages_ms` has a key for each of `STAGES`, as the pipeline measures them; `start_s` and `stop_s` are measured
    around the pipeline. `first_token_ms` is from the start to the first text, None where there was no text.
    """

    clip: int
    process: int
    cold: bool
    start_s: float
    stop_s: float
    stages_ms: dict[str, float]
    first_token_ms: float | None
    generated: int
    text: str

    @property
    def whole_ms(self) -> float:
        """Milliseconds of the whole description."""
        return (self.stop_s - self.start_s) * 1e3

    @property
    def other_ms(self) -> float:
        """Milliseconds that belong to no stage."""
        return self.whole_ms - sum(self.stages_ms.values())

    def ms(self, stage: str) -> float:
        """Milliseconds of one of `STAGES`, or of `OTHER`."""
        return self.other_ms if stage == OTHER else self.stages_ms[stage]

    def stretches(self) -> list[tuple[str, float, float]]:
        """(stage, start, stop) in seconds, one after the other from `start_s`.

        Frames are reduced while the video is read, so decoding and sampling alternate; here decoding comes first.
        """
        found, at = [], self.start_s
        for stage in STAGES:
            end = min(at + self.stages_ms[stage] / 1e3, self.stop_s)
            found.append((stage, at, end))
            at = end
        return found


@dataclass(frozen=True)
class Process:
    """One process of the benchmark: started, imports done, bundle checked and loaded, ended; and its peak memory."""

    start_s: float
    imported_s: float
    loaded_s: float
    stop_s: float
    peak_rss_mib: float


@dataclass(frozen=True)
class Clip:
    """A clip that was described. `frames` and `fps` are what its container declares; 0 where it declares none."""

    name: str
    sha256: str
    frames: int
    fps: float
    width: int
    height: int

    @property
    def seconds(self) -> float | None:
        """How long it lasts, where the container says."""
        return self.frames / self.fps if self.frames > 0 and self.fps > 0 else None


@dataclass(frozen=True)
class MemoryTrace:
    """Memory over time, MiB: resident memory of the process, MemAvailable of the machine, GPU memory in use.

    A value that could not be read is None. `gpu` says what the GPU's figure is, or why there is none.
    """

    seconds: list[float]
    rss_mib: list[float | None]
    available_mib: list[float | None]
    gpu_mib: list[float | None]
    gpu: str


@dataclass(frozen=True)
class RunEnergy:
    """Joules of one run, gross and above idle, and gross by stage; None where the trace has a gap there."""

    gross_j: float | None
    above_idle_j: float | None
    stages_j: dict[str, float | None]


@dataclass(frozen=True)
class Power:
    """Power over the benchmark. `rail` names what was measured, `method` with what.

    Without a reader `method` is "none", `note` says why, and everything else is empty or None. `runs` is parallel to
    the report's runs. `idle_w` is the mean before the first process.
    """

    method: str
    rail: str
    note: str
    seconds: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    idle_w: float | None = None
    runs: list[RunEnergy] = field(default_factory=list)


@dataclass(frozen=True)
class Curve:
    """Whole time and peak memory of descriptions against what grows, such as the clip's length.

    `stages_ms` has for some of `STAGES` what the stage takes of `whole_ms`.
    """

    title: str
    unit: str
    x: list[float]
    whole_ms: list[float]
    peak_rss_mib: list[float]
    stages_ms: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A whole benchmark. `limits` are as they were given; `disturbed` says what makes the figures doubtful.

    `condition` is what the board's counters, temperatures and clocks did; `measuring_share` the processor time of
    measuring over the time measured.
    """

    schema: int
    created: str
    svrt: str
    bundle: str
    bundle_sha256: str
    backends: dict[str, str]
    environment: dict[str, Any]
    clips: list[Clip]
    processes: list[Process]
    runs: list[Run]
    memory: MemoryTrace
    power: Power
    condition: dict[str, Any]
    disturbed: list[str]
    limits: dict[str, float]
    measuring_share: float
    growth: list[Curve] = field(default_factory=list)

    def warm(self, clip: int | None = None) -> list[Run]:
        """Runs that were not the first of their process, of one clip or of all."""
        return [run for run in self.runs if not run.cold and clip in (None, run.clip)]

    def cold(self) -> list[Run]:
        """The first run of each process."""
        return [run for run in self.runs if run.cold]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`: all samples."""
        return asdict(self)


def read_report(path: Path) -> Report:
    """Read a benchmark's JSON; figures beside the samples are passed over. Raises `SvrtError` naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SvrtError(f"{path}: cannot be read: {exc.strerror}; give the JSON that `svrt bench` wrote") from None
    except (ValueError, RecursionError) as exc:
        raise SvrtError(f"{path}: not JSON ({exc}); give the JSON that `svrt bench` wrote") from None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise SvrtError(f"{path}: benchmark schema {schema!r}, this svrt reads {SCHEMA}; measure again")
    values.pop("figures", None)
    try:
        report = from_json(Report, values, "")
        _check(report)
    except SvrtError as exc:
        raise SvrtError(f"{path}: {exc}; measure again") from None
    return report


def _check(report: Report) -> None:
    for index, run in enumerate(report.runs):
        if set(run.stages_ms) != set(STAGES):
            raise SvrtError(f"runs[{index}].stages_ms must have {', '.join(STAGES)}")
        if not (0 <= run.clip < len(report.clips) and 0 <= run.process < len(report.processes)):
            raise SvrtError(f"runs[{index}] is of a clip or a process that is not listed")
        if not run.stop_s >= run.start_s:
            raise SvrtError(f"runs[{index}] ends before it begins")
