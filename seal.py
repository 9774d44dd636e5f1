"""Seals: what spares a run the hashing of gigabytes that the last run hashed.

A seal is this user's own note, in the cache, that a bundle's files had their manifest's sha256, and what stat(2) said
of them then. While that is the same, the file is taken to be the same. A copy, a replacement and a write all change it:
the time of change (ctime) is set by the kernel alone, and cannot be put back as the time of modification can.

Hashes are against accidents: whoever may write to a bundle may write its manifest too. What a seal does not see, and a
hash does, is a medium that loses bits without an error, and a disk that is written beneath its file system. `verify`
hashes everything, and takes the seal away where a file is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from .bundle import Bundle, FileRecord, sha256_of
from .errors import BundleError, SvrtError
from .records import from_json

SCHEMA = 1
# Times of a file system come in steps, of 2 s on FAT: a file changed this recently may change again without a trace.
SETTLED_S = 3.0
_ENOUGH = 1 << 20  # bytes; a seal is a few hundred


@dataclass(frozen=True)
class Stamp:
    """What tells a file from any other, and from itself after a write: see stat(2). Times are nanoseconds."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int
    sha256: str  # of its content

    @classmethod
    def of(cls, file: Path, sha256: str) -> Stamp:
        """The stamp that `file` has now. Raises `BundleError` where it is gone."""
        try:
            found = file.stat()
        except OSError as exc:
            raise BundleError(f"{file}: cannot be read: {exc.strerror}") from exc
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, sha256)

    def settled(self, now_s: float) -> bool:
        """Whether the file's times are past, so that a write from `now_s` (seconds since 1970) on would change them."""
        return max(self.modified_ns, self.changed_ns) / 1e9 < now_s - SETTLED_S


@dataclass(frozen=True)
class Seal:
    """Files of one bundle, by name, that were hashed and found right."""

    schema: int
    bundle: str  # where it lies
    files: dict[str, Stamp]


def load(path: Path | str, folder: Path | None) -> Bundle:
    """Read a bundle as `Bundle.load` does, but hash only files that are not as they were when they were last hashed.

    `folder` holds this user's seals, and is made when it is needed; None, or where it cannot be written, hashes
    everything. Raises `BundleError` naming the file that is missing, altered, or of another schema.
    """
    bundle = Bundle.load(path, verify=False)
    if folder is None:
        bundle.check_hashes()
    else:
        note = _place(bundle, folder)
        _check_but(_read(note), bundle, note)
    return bundle


def verify(path: Path | str, folder: Path | None) -> Bundle:
    """Read a bundle and hash every file, whatever its seal says; then seal it anew, or take the seal away.

    Raises `BundleError` as `Bundle.load` does.
    """
    if folder is None:
        return load(path, None)
    bundle = Bundle.load(path, verify=False)
    note = _place(bundle, folder)
    with suppress(OSError):
        note.unlink()
    _check_but(None, bundle, note)  # None: a seal that cannot be taken away is not believed either
    return bundle


def _check_but(seal: Seal | None, bundle: Bundle, note: Path) -> None:
    """Hash what has changed since `seal`, and keep a new one at `note`; raises as `_check` does."""
    records, known = bundle.manifest.files, {} if seal is None else seal.files
    now = {name: Stamp.of(bundle.file(name), record.sha256) for name, record in records.items()}
    doubtful = {name: record for name, record in records.items() if known.get(name) != now[name]}
    if doubtful:
        began = time.time()
        _check(bundle, doubtful)
        _write(
            note, bundle, {name: stamp for name, stamp in now.items() if name not in doubtful or stamp.settled(began)}
        )


def _check(bundle: Bundle, records: dict[str, FileRecord]) -> None:
    """Raise `BundleError` for the first of some files whose sha256 is not the manifest's.

    Each is brought to the disk first: what a power cut could still take away must not be sealed.
    """

    def digest(name: str) -> str:
        with suppress(OSError), bundle.file(name).open("rb") as handle:  # a read-only disk has nothing to bring
            os.fsync(handle.fileno())
        return sha256_of(bundle.file(name))

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for (name, record), found in zip(records.items(), pool.map(digest, records), strict=True):
            if found != record.sha256:
                raise BundleError(f"{bundle.file(name)}: sha256 is not the manifest's; export the bundle again")


def _place(bundle: Bundle, folder: Path) -> Path:
    """Where a bundle's seal is kept: one for each place on this machine."""
    name = os.fsencode(bundle.path.resolve())
    return folder / f"{hashlib.sha256(name).hexdigest()[:32]}.json"


def _read(note: Path) -> Seal | None:
    """A seal; None where there is none, or one that another user could have written."""
    try:
        with note.open("rb") as handle:
            found = os.fstat(handle.fileno())
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            seal = from_json(Seal, json.loads(handle.read(_ENOUGH)), "")
    except (OSError, ValueError, RecursionError, SvrtError):
        return None
    return seal if seal.schema == SCHEMA else None


def _write(note: Path, bundle: Bundle, stamps: dict[str, Stamp]) -> None:
    """Keep a seal, whole or not at all; where that fails, the next run hashes again."""
    text = json.dumps(asdict(Seal(SCHEMA, str(bundle.path.resolve()), stamps)), indent=1) + "\n"
    partial = note.with_name(f".{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
        partial.replace(note)
        _tidy(note.parent)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Remove seals of bundles that are gone."""
    for note in folder.glob("*.json"):
        seal = _read(note)
        if seal is not None and not Path(seal.bundle).exists():
            note.unlink(missing_ok=True)
