"""What the doctor says: findings, and which backends run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    `fail` keeps `svrt describe` from working; `warn` costs speed, memory or a figure of the benchmark. `where` is a
    file, a package or a command; `fix` the line that mends it, "" where nothing is to be mended.
    """

    level: Level
    topic: str
    what: str
    where: str
    fix: str = ""


@dataclass(frozen=True)
class Backend:
    """Something that computes or decodes: whether an operation was done on it here, by which version, on what."""

    name: str
    runs: bool
    version: str
    detail: str
