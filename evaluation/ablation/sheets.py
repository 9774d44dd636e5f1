"""Contact sheets: the keyframes that a bundle describes a clip from, above as many uniform ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ...errors import SvrtError
from ...models import pocket
from ...runtime.contact_sheet import FONT, FONT_SCALE, INK, MARGIN, PAPER, contact_sheet
from ...runtime.pipeline import Keyframe, Pipeline
from ...runtime.sampler import Candidates, repeat_evenly
from ...runtime.video import read_candidates
from .variants import PAPER_SAMPLER, UNIFORM, uniform

SAMPLE_CLIP = Path(pocket.__file__).parent / "sample" / "make.mp4"
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
FOOTAGE = "footage"
TITLE_HEIGHT = 28  # pixels


def videos(folder: Path) -> list[Path]:
    """The videos in a folder, by name. Raises `SvrtError` where there is none."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as exc:
        raise SvrtError(f"{folder}: cannot be listed: {exc.strerror}; give a folder of videos") from exc
    if not found:
        raise SvrtError(f"{folder}: holds no video ({', '.join(SUFFIXES)}); give a folder of videos")
    return found


def write_sheets(pipeline: Pipeline, clips: Path | None, out: Path, say: Callable[[str], None]) -> None:
    """The sample clip's sheet, `sample.png`, and in `out`/footage/BUNDLE one of each video of `clips`.

    A sheet there that is newer than its video is left as it is.
    """
    _write(beside_uniform(pipeline, SAMPLE_CLIP), out / "sample.png")
    if clips is None:
        return
    folder = out / FOOTAGE / pipeline.bundle.sha256[:12]
    folder.mkdir(parents=True, exist_ok=True)
    for clip in videos(clips):
        sheet = folder / f"{clip.name}.png"
        if not sheet.exists() or sheet.stat().st_mtime_ns < clip.stat().st_mtime_ns:
            _write(beside_uniform(pipeline, clip), sheet)
            say(f"contact sheet of {clip.name}")


def beside_uniform(pipeline: Pipeline, clip: Path) -> np.ndarray:
    """The sheet of one clip: uint8 BGR [H, W, 3]."""
    spec, encoder = pipeline.sampler.spec, pipeline.bundle.manifest.encoder
    chosen = pipeline.describe(clip)
    candidates, _ = read_candidates(clip, spec.candidates, lambda: Candidates(spec, encoder))
    count = len(candidates)
    picks = uniform(count, spec.keyframes) if count > spec.keyframes else repeat_evenly(count, spec.keyframes)
    evenly = replace(
        chosen,
        keyframes=[Keyframe(candidates.indices[pick], candidates.times_s[pick]) for pick in picks],
        thumbnails=[candidates.thumbnail(pick) for pick in picks],
    )
    return np.vstack([_titled(PAPER_SAMPLER, contact_sheet(chosen)), _titled(UNIFORM, contact_sheet(evenly))])


def _titled(title: str, sheet: np.ndarray) -> np.ndarray:
    band = np.full((TITLE_HEIGHT, sheet.shape[1], 3), PAPER, np.uint8)
    cv2.putText(band, title, (MARGIN, 20), FONT, FONT_SCALE * 1.2, INK, 1, cv2.LINE_AA)
    return np.vstack([band, sheet])


def _write(image: np.ndarray, path: Path) -> None:
    """Whole or not at all."""
    _, data = cv2.imencode(path.suffix, image, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data.tobytes())
    partial.replace(path)
