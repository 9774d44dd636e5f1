"""Reading a clip: evenly spaced candidate frames from one pass over the stream, in memory that no length changes.

OpenCV decodes (FFmpeg where it is built in) and applies rotation metadata. No frame is kept here: each candidate goes
to a collector as it is decoded.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np

from ..errors import ClipError
from ..kernels.preprocess import resize
from .complaints import decoder_complaints

# A decoder keeps up to 17 frames for reference: 12.6 Mpixel (4096 x 3072) bounds that at about 0.4 GB, which fits on
# an 8 GB board beside the models. 8K would need 1 GB and more.
MAX_PIXELS = 4096 * 3072
# A frame is resized by its shorter side before its centre is cut out: one of 2 x 65,535 would take 8 GB.
MAX_ASPECT = 32
MIN_FRAMES = 2
MISSING_SHARE = 0.25  # of the declared frames; below it, containers with edit lists and variable rates are simply wrong
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0\r", b"v=0\n")  # FFmpeg would open the files that these name


@dataclass(frozen=True)
class Frame:
    """One decoded frame: its number in the stream, presentation time in seconds, uint8 BGR [H, W, 3]."""

    index: int
    time_s: float
    image: np.ndarray


class Collector(Protocol):
    """What keeps something of each candidate; see `svrt.runtime.sampler.Candidates`."""

    def add(self, frame: Frame) -> None: ...


C = TypeVar("C", bound=Collector)


@dataclass
class _Pass:
    """What one pass over the stream found."""

    frames: int = 0
    declared: int = 0
    kept: list[int] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def candidate_indices(frames: int, limit: int) -> list[int]:
    """Every frame up to `limit`, else `limit` of them evenly spaced from the first to the last (our choice; the paper
    does not say)."""
    if frames <= limit:
        return list(range(frames))
    return [int(i) for i in np.linspace(0, frames - 1, limit).round()]


def read_candidates(
    path: Path | str, limit: int, collector: Callable[[], C], go_on: Callable[[], None] = lambda: None
) -> tuple[C, list[str]]:
    """Stream the clip's candidate frames into a collector; returns it with warnings about damage.

    `go_on` is called before each frame of the clip is decoded, and may raise to give the clip up.

    The container's frame count decides which frames are candidates. Where the count proves wrong, a second pass with
    the true one runs into a fresh collector, so the choice never depends on what a header claims.

    Raises `ClipError`, naming the file, where it is not a readable video, has fewer than 2 frames, or frames of more
    than 4096 x 3072 pixels or with one side over 32 times the other.
    """
    path = Path(path)
    check_file(path)
    collected = collector()
    first = _read(path, None, limit, collected, go_on)
    wanted = candidate_indices(first.frames, limit)
    last = first
    if first.frames >= MIN_FRAMES and first.kept != wanted:
        collected = collector()
        last = _read(path, first.frames, limit, collected, go_on)
    if last.frames < MIN_FRAMES:
        raise _too_little(path, last)
    return collected, _warnings(path, first)


def _too_little(path: Path, found: _Pass) -> ClipError:
    reason = f" ({found.complaints[0]})" if found.complaints else ""
    if found.frames == 0:
        return ClipError(f"{path}: no picture could be decoded{reason}; check that it is a complete video")
    return ClipError(f"{path}: only one frame{reason}; a clip needs {MIN_FRAMES} or more")


def _warnings(path: Path, found: _Pass) -> list[str]:
    if found.complaints:
        more = f" and {len(found.complaints) - 1} more" if len(found.complaints) > 1 else ""
        return [f"{path}: damaged ({found.complaints[0]}{more}); described from the {found.frames} frames that decode"]
    if found.frames < found.declared * (1.0 - MISSING_SHARE):
        return [f"{path}: cut short; described from {found.frames} of {found.declared} frames"]
    return []


def check_file(path: Path) -> None:
    """Raise `ClipError`, naming the file, where it is not a readable file with something in it: decodes nothing."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # OpenCV crashes on such a name
        raise ClipError(f"{str(path)!a}: the name is not valid UTF-8; rename the file") from None
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ClipError(f"{path}: is a folder; give a video file")
        if not stat.S_ISREG(status.st_mode):
            raise ClipError(f"{path}: is not a regular file; give a video file")
        if status.st_size == 0:
            raise ClipError(f"{path}: is empty (0 bytes); record or copy it again")
        with path.open("rb") as file:
            if file.read(8).startswith(PLAYLISTS):
                raise ClipError(f"{path}: is a playlist; give the video file itself")
    except OSError as exc:
        raise ClipError(f"{path}: cannot be read: {exc.strerror}; check the path") from None


def _read(path: Path, known: int | None, limit: int, collector: Collector, go_on: Callable[[], None]) -> _Pass:
    """One pass: grab every frame, convert and collect the candidates. `known` is the frame count of an earlier pass."""
    found = _Pass()
    with decoder_complaints() as found.complaints:
        capture = _open(path)
        try:
            if not capture.isOpened():
                return found
            found.declared = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            wanted = set(candidate_indices(found.declared if known is None else known, limit))
            for frame in _grab(capture, wanted, found, go_on):
                collector.add(frame)
        finally:
            capture.release()
    return found


def _open(path: Path) -> cv2.VideoCapture:
    backend = cv2.CAP_FFMPEG if cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG) else cv2.CAP_ANY
    capture = cv2.VideoCapture(str(path.absolute()), backend)  # absolute: FFmpeg reads "a:b.mp4" as a protocol
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > MAX_PIXELS:
        capture.release()
        raise ClipError(
            f"{path}: frames of {width}x{height} are over the limit of 4096x3072; scale the clip down first"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        capture.release()
        raise ClipError(f"{path}: frames of {width}x{height} are a strip; cut a part of it out first")
    return capture


def _grab(capture: cv2.VideoCapture, wanted: set[int], found: _Pass, go_on: Callable[[], None]) -> Iterator[Frame]:
    """Decode in order, counting into `found`; only wanted frames are converted to BGR."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    step = 1.0 / rate if np.isfinite(rate) and rate > 0 else 1.0 / 30.0
    shape: tuple[int, ...] | None = None
    time_s = -step
    while _grabbed(capture, go_on):
        index, found.frames = found.frames, found.frames + 1
        stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
        time_s = stamp if np.isfinite(stamp) and stamp > time_s else time_s + step  # some containers carry no times
        if index not in wanted:
            continue
        decoded, image = capture.retrieve()
        if not decoded or image is None:
            found.frames -= 1
            continue
        shape = shape or image.shape
        if image.shape != shape:  # streams may change size midway; what follows compares frames
            image = resize(image, shape[1], shape[0])
        found.kept.append(index)
        yield Frame(index, time_s, image)


def _grabbed(capture: cv2.VideoCapture, go_on: Callable[[], None]) -> bool:
    go_on()
    return capture.grab()
