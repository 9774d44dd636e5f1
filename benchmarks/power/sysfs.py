"""Files in which the kernel says one thing each. What cannot be read or is garbage is None."""

from __future__ import annotations

import os
import re
from pathlib import Path

INTEGER = re.compile(rb"-?[0-9]{1,18}")
PAGE = 4096  # bytes: a sysfs file is never longer


def text(path: Path) -> str | None:
    """The file's text without surrounding space, or None: absent, forbidden, failing (EAGAIN of a sensor without
    power), or not ASCII.
    """
    raw = _raw(path)
    if raw is None or not raw.isascii():
        return None
    return raw.decode("ascii").replace("\0", " ").strip()  # device-tree strings end in NUL


def integer(path: Path) -> int | None:
    """The file's decimal integer, or None as for `text`, and for anything else than an integer."""
    raw = _raw(path)
    return int(raw) if raw is not None and INTEGER.fullmatch(raw) else None


def _raw(path: Path) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        return os.read(file, PAGE).strip()
    except OSError:
        return None
    finally:
        os.close(file)


def folders(root: Path, pattern: str) -> list[Path]:
    """Paths under `root` that match a glob, sorted; none where a folder on the way may not be listed."""
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []
