"""A contact sheet: a description's keyframes side by side, each with its time."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np

from ..errors import OutputError
from ..kernels.preprocess import resize
from .pipeline import Description

COLUMNS = 8
CELL_WIDTH = 200  # pixels
MARGIN = 6
CAPTION_HEIGHT = 22
PAPER, INK, FAINT = (250, 250, 250), (30, 30, 30), (130, 130, 130)  # BGR
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
SUFFIXES = (".png", ".jpg", ".jpeg")


def contact_sheet(description: Description) -> np.ndarray:
    """The keyframes in time order, 8 to a row, as one picture: uint8 BGR [H, W, 3]."""
    height, width = description.thumbnails[0].shape[:2]
    cell_height = max(1, round(CELL_WIDTH * height / width))
    rows = math.ceil(len(description.thumbnails) / COLUMNS)
    columns = min(COLUMNS, len(description.thumbnails))
    step_x, step_y = CELL_WIDTH + MARGIN, cell_height + CAPTION_HEIGHT + MARGIN
    sheet = np.full((rows * step_y + MARGIN, columns * step_x + MARGIN, 3), PAPER, np.uint8)
    for number, (image, keyframe) in enumerate(zip(description.thumbnails, description.keyframes, strict=True)):
        top, left = MARGIN + number // COLUMNS * step_y, MARGIN + number % COLUMNS * step_x
        sheet[top : top + cell_height, left : left + CELL_WIDTH] = resize(image, CELL_WIDTH, cell_height)
        baseline = top + cell_height + CAPTION_HEIGHT - 7
        cv2.putText(sheet, f"{keyframe.time_s:.2f} s", (left, baseline), FONT, FONT_SCALE, INK, 1, cv2.LINE_AA)
        text = f"#{keyframe.index}"
        (text_width, _), _ = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
        place = (left + CELL_WIDTH - text_width, baseline)
        cv2.putText(sheet, text, place, FONT, FONT_SCALE, FAINT, 1, cv2.LINE_AA)
    return sheet


def check_writable(path: Path) -> None:
    """Raise `OutputError` before any work where a picture could not be written to `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path}: the contact sheet's name must end in {', '.join(SUFFIXES)}")
    try:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file for the contact sheet")
        with tempfile.TemporaryFile(dir=path.parent):
            path.exists()  # a name that is too long
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written: {exc.strerror}") from exc


def write_contact_sheet(description: Description, path: Path) -> None:
    """Write the contact sheet to `path` (PNG or JPEG), whole or not at all. Raises `OutputError`."""
    encoded, data = cv2.imencode(path.suffix.lower(), contact_sheet(description))
    if not encoded:
        raise OutputError(f"{path}: OpenCV cannot encode {path.suffix} here")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {exc.strerror}") from exc
