"""Files of engines: what a graph's are known by, and how those in the cache are written by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ...bundle import sha256_of
from . import EngineStore


def digest_of(graph: Path, known: Mapping[str, str]) -> str:
    """sha256 over the hashes of a graph and of its weights, `known` ones by file name taken as they are.

    Raises `BundleError` where a file cannot be read.
    """
    weights = graph.with_name(f"{graph.name}.data")
    files = [graph, weights] if weights.name in known or weights.is_file() else [graph]
    digests = [known.get(file.name) or sha256_of(file) for file in files]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def write_whole(path: Path, data: memoryview | bytes | Iterable[memoryview]) -> None:
    """Write a file, at once or in parts, that is whole or absent, also after a power cut. One writer at a time.

    Raises `OSError`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as handle:
            handle.writelines([data] if isinstance(data, memoryview | bytes) else data)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def locked(store: EngineStore, does: str, name: str | None = None) -> Iterator[None]:
    """Hold the lock of the store's cache: of several processes one builds, as two at once may not fit into memory.

    `does` says, of whom is waited for, what it does: "builds an engine". `name` is another lock, a file in the cache,
    for what is done while the first may be held. A cache that cannot be written, which is told by who writes to it, or
    that cannot be locked has no lock.
    """
    folder = store.cache
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY if name is None else os.O_RDWR | os.O_CREAT
        lock = os.open(folder / (name or "."), flags, 0o600)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            store.say(f"waiting for another process that {does} in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system, such as some networks', that knows no locks
            pass
        yield
    finally:
        os.close(lock)
