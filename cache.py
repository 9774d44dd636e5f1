"""The user's cache: the built-in bundle, exported once and reused, and the seals of bundles that were hashed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from . import seal
from .bundle import SCHEMA, Bundle
from .errors import BundleError, OutputError

RECIPE = "pocket"
_BUILT_IN = re.compile(rf"{RECIPE}-[0-9a-f]{{12}}|\.{RECIPE}-[0-9a-f]{{12}}\.(?:partial|old)")
_KEPT_S = 7 * 24 * 3600.0  # another version may be in use beside this one
_ROOT = Path(__file__).parent
# What the built-in bundle is made from: when any of these changes, another folder is used.
_INGREDIENTS = (
    _ROOT / "exporter" / "recipes" / f"{RECIPE}.toml",
    _ROOT / "models" / "pocket" / "weights" / "SHA256SUMS",
    *sorted((_ROOT / "exporter").glob("*.py")),
    *sorted((_ROOT / "models").glob("*.py")),
)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/svrt`, or `~/.cache/svrt`. Raises `OutputError` where there is neither."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "svrt"
    try:
        return Path.home() / ".cache" / "svrt"
    except RuntimeError:
        raise OutputError(
            "no home folder to keep the built-in bundle in; set XDG_CACHE_HOME, or give --bundle"
        ) from None


def seal_folder() -> Path | None:
    """Where this user's seals are kept (see `svrt.seal`); None where there is no place for them."""
    return _place("seals")


def engine_folder() -> Path | None:
    """Where engines that were built here lie, and the outcomes of trials; None where there is no place for them."""
    return _place("engines")


def _place(name: str) -> Path | None:
    try:
        return cache_folder() / name
    except OutputError:
        return None


def open_bundle(path: Path | str | None, say: Callable[[str], None] = lambda _: None) -> Bundle:
    """The bundle at `path`, hashed where its seal does not spare that; the built-in one for None.

    Raises as `seal.load` and `built_in_bundle` do; `say` is that of the latter.
    """
    return built_in_bundle(say) if path is None else seal.load(path, seal_folder())


def built_in_path() -> Path:
    """Where the built-in bundle of these weights and this exporter lies, or will lie."""
    digest = hashlib.sha256(f"{version('svrt')} {SCHEMA}".encode())
    for file in _INGREDIENTS:
        digest.update(file.read_bytes())
    return cache_folder() / f"{RECIPE}-{digest.hexdigest()[:12]}"


def built_in_bundle(say: Callable[[str], None] = lambda _: None) -> Bundle:
    """The built-in bundle, exported first where it is absent or damaged; `say` is told when that takes a while.

    The export runs in a process of its own: its memory and its libraries do not stay. Raises `BundleError` with that
    process's reason where it fails, `OutputError` where the cache cannot be written.
    """
    path = built_in_path()
    try:
        return seal.load(path, seal_folder())
    except BundleError:
        pass
    with _locked(path.parent):
        try:
            return seal.load(path, seal_folder())  # another process was first
        except BundleError:
            shutil.rmtree(path, ignore_errors=True)
        say(f"exporting the built-in bundle to {path} (once, about 10 s)")
        _export(path)
        _tidy(path)
        return seal.load(path, seal_folder())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder, and hold its lock: of several first runs, one exports."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be made: {exc.strerror}; set XDG_CACHE_HOME, or give --bundle") from exc
    try:
        with suppress(OSError):  # a file system, such as some networks', that knows no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _tidy(path: Path) -> None:
    """Remove the built-in bundles of other versions, whole or not, that are older than `_KEPT_S`."""
    for other in path.parent.iterdir():
        with suppress(OSError):
            old = other.name != path.name and time.time() - other.stat().st_mtime > _KEPT_S
            if old and _BUILT_IN.fullmatch(other.name):
                shutil.rmtree(other)


def _export(path: Path) -> None:
    """Export in a child that starts in the cache's folder: Python would import from the folder it starts in."""
    command = [sys.executable, "-m", "svrt", "export", RECIPE, "--out", str(path.absolute())]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=path.parent,
        )
    except OSError as exc:
        raise BundleError(f"the built-in bundle was not exported: {exc.strerror}; run: svrt export {RECIPE}") from exc
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise BundleError(f"the built-in bundle was not exported: {lines[-1].removeprefix('svrt: error: ')}")
