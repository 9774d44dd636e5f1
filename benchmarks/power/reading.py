"""What a power sensor says at one moment, and what every reader of one offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ...errors import SvrtError


class NoSensorError(SvrtError):
    """A sensor that this machine does not have, or that may not be read. The message says which, and why."""


@dataclass(frozen=True)
class Reading:
    """One moment. What is unknown is None or absent, never 0.

    `watts` is the total named by the reader's `rail`; None where it cannot be formed now, such as before the second
    reading of a counter or when one rail of a sum is missing. `parts` are watts of single rails, by name.
    `temperatures_c` may be empty: they change slowly and are read once a second at most. `joules` is for energy
    counters: what the total has used since the reader was made, never falling. `seconds` is when the values held, on
    `time.monotonic`; None means at the call.
    """

    watts: float | None
    parts: dict[str, float] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    joules: float | None = None
    seconds: float | None = None


class Reader(Protocol):
    """A source of readings. `method` names the sensor, `rail` says what the total is made of."""

    @property
    def method(self) -> str: ...

    @property
    def rail(self) -> str: ...

    def read(self) -> Reading | None:
        """What the sensor says now, or None where it says nothing. Raises nothing."""

    def close(self) -> None:
        """Let go of programs and libraries. `read` gives None from then on, or what plain files still say."""
