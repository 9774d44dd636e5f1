"""Describe the clips that are put into a folder, one after the other: `watch.py IN OUT`.

A clip's result is OUT/NAME.json, written whole or not at all, whatever the power does; OUT/HASH.json, of the sha256 of
its name, where that is over 240 bytes. A clip is taken up when its file has not changed for `SETTLED_S`; to be sure,
write it under a name that begins with a dot and rename it. A clip that ends the process (or the power) `ATTEMPTS` times
is given up, and its result says so. Clips are never removed; remove a result to have its clip described again.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

SETTLED_S = 5.0
POLL_S = 2.0
ATTEMPTS = 3
LONGEST_NAME = 240  # bytes; file systems take 255, and `..NAME.tries.part` is written, too


class Description(Protocol):
    """What `svrt` says of a clip."""

    def to_json(self) -> dict[str, Any]: ...


Describe = Callable[[Path], Description]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a power cut leaves the old one or the new one."""
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)


def waiting(source: Path, out: Path, now: float) -> list[Path]:
    """Clips without a result whose files are at rest at `now` (seconds since 1970), oldest first."""
    found = []
    for path in source.iterdir():
        try:
            status = path.stat()
        except OSError:
            continue  # gone meanwhile
        at_rest = abs(now - status.st_mtime) >= SETTLED_S  # a clock that was set back counts as rest
        if path.is_file() and not path.name.startswith(".") and at_rest and not _result(path, out).exists():
            found.append((status.st_mtime, path))
    return [path for _, path in sorted(found)]


def describe_one(clip: Path, out: Path, describe: Describe, clip_error: type[Exception]) -> None:
    """Write what `describe` says of a clip, or why it cannot be read (`clip_error`).

    What else it raises is not the clip's fault, or not surely: it is raised, and the clip tried again by who restarts.
    """
    tries = out / f".{_stem(clip)}.tries"
    count = _read_count(tries) + 1
    if count > ATTEMPTS:
        value: dict[str, Any] = {
            "clip": str(clip),
            "error": f"given up: the process ended {ATTEMPTS} times at this clip",
        }
    else:
        write_whole(tries, f"{count}\n")
        try:
            value = describe(clip).to_json()
        except clip_error as exc:
            value = {"clip": str(clip), "error": str(exc)}
        except (KeyboardInterrupt, SystemExit):
            tries.unlink()  # stopped in good order: it does not count
            raise
    write_whole(_result(clip, out), json.dumps(value) + "\n")
    tries.unlink(missing_ok=True)
    print(f"{clip.name}: {value.get('text', value.get('error'))}", flush=True)


def _result(clip: Path, out: Path) -> Path:
    return out / f"{_stem(clip)}.json"


def _stem(clip: Path) -> str:
    """The clip's name; its hash where no file could have a name of that and what is written beside it."""
    name = os.fsencode(clip.name)
    return clip.name if len(name) <= LONGEST_NAME else hashlib.sha256(name).hexdigest()


def _read_count(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    for folder in (source, out):
        folder.mkdir(parents=True, exist_ok=True)
    for scratch in out.glob(".*.part"):  # of a write that the power cut short
        scratch.unlink()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    import svrt
    from svrt.errors import ClipError

    model = svrt.load()
    print(f"describing what is put into {source}", flush=True)
    while True:
        # One, and look again: while it was described, the others may have been written to, or removed.
        clip = next(iter(waiting(source, out, time.time())), None)
        if clip is None:
            time.sleep(POLL_S)
        else:
            describe_one(clip, out, model.describe, ClipError)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
