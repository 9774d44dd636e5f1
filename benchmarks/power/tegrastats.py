"""Lines of NVIDIA's `tegrastats`, JetPack 5 to 7: the grammar, and a reader that follows the running program.

Grammar (Jetson Linux Developer Guide, "tegrastats Utility", and lines seen in the wild):

    [MM-DD-YYYY HH:MM:SS] RAM used/totalMB (lfb NxMMB) [SWAP used/totalMB (cached NMB)] CPU [core,core,...]
    {ENGINE value} {zone@degreesC[/degreesC]} {RAIL nowmW/average[mW]}

    core    u%@MHz, or off
    value   off, MHz, @MHz, u%, u%@MHz, u%@[MHz,...], @[MHz,...]; an optional EMC, GR3D, GR3D2, VIC, NVENC, APE ...

A word that does not match is passed over: what it would have said is unknown, never 0.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from . import rails
from .reading import NoSensorError, Reading

LONGEST = 4096  # characters of a line that are looked at; a Thor's line has about 900
FIRST_LINE_S = 3.0
PROGRAM = "usr/bin/tegrastats"

NUMBER = "[0-9]{1,9}"
DATE = re.compile(r"[0-9]{2}-[0-9]{2}-[0-9]{4}")
CLOCK = re.compile(r"[0-9]{2}:[0-9]{2}:[0-9]{2}")
MEMORY = re.compile(f"({NUMBER})/({NUMBER})MB")
BLOCKS = re.compile(rf"({NUMBER})x({NUMBER})(MB|kB)\)")
CACHED = re.compile(rf"({NUMBER})MB\)")
CORE = re.compile(f"({NUMBER})%@({NUMBER})")
ZONE = re.compile(rf"([A-Za-z][A-Za-z0-9_.-]*)@(-?{NUMBER}(?:\.{NUMBER})?)C(?:/-?{NUMBER}(?:\.{NUMBER})?C)?")
NAME = re.compile("[A-Z][A-Z0-9_]*")
POWER = re.compile(f"(-?{NUMBER})mW/(-?{NUMBER})(?:mW)?")
ENGINE = re.compile(rf"(?:({NUMBER})%)?(?:@({NUMBER})|@\[({NUMBER}(?:,{NUMBER})*)\])?")
MHZ = re.compile(NUMBER)
RAIL = re.compile("VDD|VIN")  # a rail whose value was cut off is not an engine
KB_OF = {"MB": 1024, "kB": 1}


@dataclass(frozen=True)
class Memory:
    """MB in use and in all."""

    used_mb: int
    total_mb: int


@dataclass(frozen=True)
class FreeBlocks:
    """The largest free blocks: how many, and how large."""

    count: int
    kb: int


@dataclass(frozen=True)
class Core:
    """Load of one CPU core in percent, and its clock."""

    percent: int
    mhz: int


@dataclass(frozen=True)
class Engine:
    """Load in percent, and a clock for each of its parts; None and () where the line does not say."""

    percent: int | None
    mhz: tuple[int, ...]


OFF = Engine(None, ())


@dataclass(frozen=True)
class Power:
    """Milliwatts of one rail: now, and the program's own average, whose window reaches back before the run."""

    now_mw: int
    average_mw: int


@dataclass(frozen=True)
class Stats:
    """One line. `cores` holds None for a core that is off; `engines` None for an engine that is off."""

    time: str | None = None
    ram: Memory | None = None
    blocks: FreeBlocks | None = None
    swap: Memory | None = None
    swap_cached_mb: int | None = None
    cores: tuple[Core | None, ...] | None = None
    engines: dict[str, Engine | None] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    rails: dict[str, Power] = field(default_factory=dict)


def parse(line: str) -> Stats:
    """Everything that a line says. Raises nothing: a line that says nothing gives an empty `Stats`."""
    words = line[:LONGEST].split()
    stats = _head(words)
    for word, value in zip(words, [*words[1:], ""], strict=False):
        if zone := ZONE.fullmatch(word):
            stats.temperatures_c.setdefault(zone[1], float(zone[2]))
        elif NAME.fullmatch(word) and word not in ("RAM", "SWAP", "CPU"):
            if power := POWER.fullmatch(value):
                stats.rails.setdefault(word, Power(int(power[1]), int(power[2])))
            elif not RAIL.match(word) and (engine := _engine(value)) is not None:
                stats.engines.setdefault(word, None if engine == OFF else engine)
    return stats


def _head(words: list[str]) -> Stats:
    """Date, memory, swap and cores: what stands in a fixed order and is more than a name and a value."""
    at = {name: words.index(name) for name in ("RAM", "SWAP", "CPU") if name in words}
    dated = len(words) > 1 and DATE.fullmatch(words[0]) and CLOCK.fullmatch(words[1])
    ram = words[at["RAM"] + 1 : at["RAM"] + 4] if "RAM" in at else []
    swap = words[at["SWAP"] + 1 : at["SWAP"] + 4] if "SWAP" in at else []
    blocks = BLOCKS.fullmatch(ram[2]) if len(ram) == 3 and ram[1] == "(lfb" else None
    cached = CACHED.fullmatch(swap[2]) if len(swap) == 3 and swap[1] == "(cached" else None
    return Stats(
        time=f"{words[0]} {words[1]}" if dated else None,
        ram=_memory(ram),
        blocks=FreeBlocks(int(blocks[1]), int(blocks[2]) * KB_OF[blocks[3]]) if blocks else None,
        swap=_memory(swap),
        swap_cached_mb=int(cached[1]) if cached else None,
        cores=_cores(words[at["CPU"] + 1]) if "CPU" in at and at["CPU"] + 1 < len(words) else None,
    )


def _engine(word: str) -> Engine | None:
    """`off`, `115`, `@1600`, `73%@3199`, `14%@[407,407]`; None for anything else."""
    if word == "off":
        return OFF
    if MHZ.fullmatch(word):
        return Engine(None, (int(word),))
    found = ENGINE.fullmatch(word)
    if not (word and found):
        return None
    clocks = found[3].split(",") if found[3] else [found[2]] if found[2] else []
    return Engine(int(found[1]) if found[1] else None, tuple(map(int, clocks)))


def _memory(words: list[str]) -> Memory | None:
    found = MEMORY.fullmatch(words[0]) if words else None
    return Memory(int(found[1]), int(found[2])) if found else None


def _cores(word: str) -> tuple[Core | None, ...] | None:
    """`[8%@1728,off]`; None where one core is damaged, because its neighbours could not be numbered."""
    if not (word.startswith("[") and word.endswith("]")):
        return None
    found: list[Core | None] = []
    for item in word[1:-1].split(","):
        core = CORE.fullmatch(item)
        if core is None and item != "off":
            return None
        found.append(Core(int(core[1]), int(core[2])) if core else None)
    return tuple(found)


class TegrastatsReader:
    """Follows a stream of lines in a thread of its own; `read` gives the newest line that it has not given yet.

    `stop` ends the program behind the stream. Raises `NoSensorError` where no line with a total comes in time.
    """

    method = "tegrastats"

    def __init__(
        self,
        lines: Iterable[str],
        stop: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        first_line_s: float = FIRST_LINE_S,
    ) -> None:
        self._stop, self._clock = stop, clock
        self._lock, self._known = threading.Lock(), threading.Event()
        self._newest: tuple[float, Stats] | None = None
        self._total: tuple[str, ...] | None = None
        threading.Thread(target=self._follow, args=(lines,), name="tegrastats", daemon=True).start()
        self._known.wait(first_line_s)
        if self._total is None:
            stop()
            raise NoSensorError("tegrastats gives no power: run it by hand to see what it says")
        self.rail = " + ".join(self._total)

    @classmethod
    def start(cls, program: Path, period_s: float) -> TegrastatsReader:
        """Run the program at `period_s`. Raises `NoSensorError` where it does not start."""
        command = [str(program), "--interval", str(max(10, round(period_s * 1e3)))]
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as exc:
            raise NoSensorError(f"{program} does not start: {exc.strerror}") from exc

        def stop() -> None:  # it never exits by itself
            child.kill()
            child.wait()

        assert child.stdout is not None
        return cls(child.stdout, stop)

    def read(self) -> Reading | None:
        with self._lock:
            newest, self._newest = self._newest, None
        if newest is None or self._total is None:
            return None
        seconds, stats = newest
        parts = {name: power.now_mw / 1000 for name, power in stats.rails.items()}
        return Reading(rails.add_up(parts, self._total), parts, stats.temperatures_c, seconds=seconds)

    def close(self) -> None:
        self._stop()

    def _follow(self, lines: Iterable[str]) -> None:
        try:
            for line in lines:
                arrived, stats = self._clock(), parse(line)
                if self._total is None:
                    self._total = rails.total_of(stats.rails)
                if self._total is not None:
                    with self._lock:
                        self._newest = (arrived, stats)
                    self._known.set()
        except (OSError, ValueError):
            pass  # the stream was closed under us: there are no more lines
        finally:
            self._known.set()
