"""The machine as the doctor reaches it: files below a root folder, commands, and operations in child processes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

from ..cache import cache_folder

# Seconds until an operation counts as hanging. A board reads TensorRT's libraries from a card for half a minute.
PATIENCE = {"llama": 600.0, "describe": 600.0}
_PATIENCE = 300.0


@dataclass(frozen=True)
class Outcome:
    """What became of an operation. `values` is what it measured, `detail` a line that says why it did not run.

    `absent` is what is not installed, or has no device here; `crashed` what took its process with it.
    """

    state: Literal["ran", "absent", "failed", "crashed", "hung"]
    detail: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def ran(self) -> bool:
        return self.state == "ran"


Operate = Callable[..., Outcome]  # name of a function of `operations`, and its arguments


@dataclass(frozen=True)
class Host:
    """A machine to examine.

    `packages` are installed Python distributions, versions by name in lower case with hyphens. `command` gives the
    output of a program, None where it is not there; `opens` tells whether a path may be used so (`os.access`); `free`
    gives the bytes left on a path's disk. `cache` is svrt's, None where there is no home folder.
    """

    root: Path
    architecture: str
    python: tuple[int, int]
    prefix: Path
    packages: Mapping[str, str]
    operate: Operate
    command: Callable[[Sequence[str]], str | None]
    opens: Callable[[Path, int], bool]
    free: Callable[[Path], int]
    cache: Path | None

    def text(self, path: str) -> str | None:
        """Content of a file below the root, without the NUL bytes of a device tree; None where it cannot be read."""
        try:
            content = (self.root / path).read_bytes()
        except (OSError, ValueError):
            return None
        return content.decode(errors="replace").replace("\0", " ").strip()

    def number(self, path: str) -> int | None:
        """The whole number that a file holds; None where it holds none."""
        try:
            return int(self.text(path) or "")
        except ValueError:
            return None

    def paths(self, pattern: str) -> list[Path]:
        """Paths below the root that match, sorted."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def shown(self, path: Path) -> str:
        """The path as a person on that machine knows it."""
        return f"/{path.relative_to(self.root)}"


def this_host() -> Host:
    """The machine this runs on."""
    try:
        cache = cache_folder()
    except Exception:  # no home folder: a finding, not an end
        cache = None
    return Host(
        root=Path("/"),
        architecture=platform.machine(),
        python=sys.version_info[:2],
        prefix=Path(sys.prefix),
        packages=_packages(),
        operate=operate,
        command=_command,
        opens=os.access,
        free=lambda path: shutil.disk_usage(path).free,
        cache=cache,
    )


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:  # a half-removed package has none
            found.setdefault(str(name).lower().replace("_", "-"), distribution.version)
    return found


def _command(words: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace")


def operate(name: str, *arguments: str) -> Outcome:
    """Do one operation of `operations` in a child process: a driver that crashes or hangs ends only that.

    The child starts in a folder of its own, which holds what it writes and is removed afterwards.
    """
    patience = PATIENCE.get(name, _PATIENCE)
    words = [sys.executable, "-m", f"{__package__}.operations", name, *arguments]
    try:
        with tempfile.TemporaryDirectory(prefix="svrt-doctor-", ignore_cleanup_errors=True) as folder:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, cwd=folder, timeout=patience)
    except subprocess.TimeoutExpired:
        return Outcome("hung", f"no answer within {patience:.0f} s")
    except OSError as exc:  # a full disk, no memory for a process
        return Outcome("failed", f"cannot be tried: {exc.strerror or exc}")
    return _outcome(done.returncode, done.stdout, done.stderr)


def _outcome(status: int, stdout: bytes, stderr: bytes) -> Outcome:
    """From the last line of a child's output, which is JSON; what libraries print comes before it."""
    try:
        answer = json.loads(stdout.decode(errors="replace").strip().rpartition("\n")[2])
        if status == 0:
            return Outcome(answer["state"], answer["detail"], answer["values"])
    except (ValueError, KeyError, TypeError):
        pass
    said = stderr.decode(errors="replace").strip().rpartition("\n")[2]
    cause = _signal(-status) if status < 0 else f"ended with exit status {status}"
    return Outcome("crashed", f"{cause}: {said}" if said else cause)


def _signal(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"
