"""Stages of an export: each whole one is kept, so that an interrupted export goes on where it stopped.

A journal in the working folder says of each finished stage what it was made from (its key) and which files it made,
with their sizes and hashes. A stage is kept only if its key is the same and its files are, byte by byte; what the
journal does not name is cleared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..bundle import sha256_of
from ..errors import SvrtError
from ..records import from_json
from .quantize import whole_file

# Called with the stage's name, and how much of it is done out of how much.
Report = Callable[[str, int, int], None]

JOURNAL = "stages.json"
_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class StoredFile:
    """A file as it was when its stage ended."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Done:
    """A finished stage: its key, the files it made (relative to the working folder) and what it found out."""

    key: str
    files: dict[str, StoredFile] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


class Stages:
    """The stages of one export. `bundle` becomes the bundle; `work` holds what is needed only until then."""

    def __init__(self, bundle: Path, report: Report) -> None:
        self.bundle, self.folder, self.report = bundle, bundle.parent, report
        self.work = self.folder / "work"
        self.work.mkdir(exist_ok=True)
        self._done = self._read()
        self._used: set[str] = set()
        self._clear({file for done in self._done.values() for file in done.files})

    def __contains__(self, name: str) -> bool:
        return name in self._done

    def kept(self, name: str, key: str) -> Done | None:
        """The finished stage, if its key and its files are still the same."""
        done = self._done.get(name)
        if done is None or done.key != key:
            return None
        self._used.add(name)
        for file, stored in done.files.items():
            path = self.folder / file
            if not path.is_file() or path.stat().st_size != stored.bytes or sha256_of(path) != stored.sha256:
                return None
        return done

    def run(
        self,
        name: str,
        key: str,
        work: Callable[[Callable[[int, int], None]], dict[str, Any] | None],
        makes: Callable[[], list[Path]] = list,
    ) -> Done:
        """Do `work`, unless an interrupted export has already done it; see `Done` for what is returned.

        `work` gets a function for its progress and may return plain values to remember. `makes` lists the files that
        the stage has made, once it has.
        """
        done = self.kept(name, key)
        if done is not None:
            self.report(name, 1, 1)
            return done
        self._forget(name)
        self._used.add(name)
        self.report(name, 0, 1)
        result = work(lambda at, total: self.report(name, min(at, total - 1), total)) or {}
        files = {str(p.relative_to(self.folder)): StoredFile(p.stat().st_size, sha256_of(p)) for p in makes()}
        self._done[name] = Done(key, files, result)
        self._write()
        self.report(name, 1, 1)
        return self._done[name]

    def finish(self) -> None:
        """Leave in the bundle only what this export's stages made."""
        self._clear({file for name in self._used for file in self._done[name].files})

    def _forget(self, name: str) -> None:
        done = self._done.pop(name, None)
        if done is not None:
            self._write()
            for file in done.files:
                (self.folder / file).unlink(missing_ok=True)

    def _clear(self, keep: set[str]) -> None:
        """Remove every file that is not named in `keep`, and folders left empty."""
        keep = {*keep, str((self.work / JOURNAL).relative_to(self.folder))}
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what a folder holds comes before it
            if path.is_dir() and not path.is_symlink():
                if path not in (self.bundle, self.work) and not any(path.iterdir()):
                    path.rmdir()
            elif str(path.relative_to(self.folder)) not in keep:
                path.unlink()

    def _read(self) -> dict[str, Done]:
        try:
            values = json.loads((self.work / JOURNAL).read_text(encoding="utf-8"))
            return {name: from_json(Done, value, name) for name, value in values.items()}
        except (OSError, ValueError, AttributeError, SvrtError):
            return {}  # absent, or cut off: begin anew

    def _write(self) -> None:
        with whole_file(self.work / JOURNAL) as partial:
            partial.write_text(json.dumps({name: asdict(done) for name, done in self._done.items()}), encoding="utf-8")


def key_of(*parts: object) -> str:
    """A stage's key: sha256 of what it is made from, this version's own code included."""
    return hashlib.sha256(json.dumps([_code(), *parts], sort_keys=True, default=str).encode()).hexdigest()


def _code() -> str:
    digest = hashlib.sha256(version("svrt").encode())
    for room in ("exporter", "models", "kernels", "runtime", "runtime/engines"):
        for file in sorted((_PACKAGE / room).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
