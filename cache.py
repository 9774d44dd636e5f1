"""The built-in bundle: exported once into the user's cache, and reused."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from .bundle import SCHEMA, Bundle
from .errors import BundleError, OutputError

RECIPE = "pocket"
_ROOT = Path(__file__).parent
# What the built-in bundle is made from: when any of these changes, another folder is used.
_INGREDIENTS = (
    _ROOT / "exporter" / "recipes" / f"{RECIPE}.toml",
    _ROOT / "models" / "pocket" / "weights" / "SHA256SUMS",
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


def built_in_path() -> Path:
    """Where this version's built-in bundle lies, or will lie."""
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
        bundle = Bundle.load(path)
    except BundleError:
        _make_folder(path.parent)
        say(f"exporting the built-in bundle to {path} (once, about 10 s)")
        _export(path)
        bundle = Bundle.load(path)
        _remove_older(path)
    return bundle


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be made: {exc.strerror}; set XDG_CACHE_HOME, or give --bundle") from exc


def _export(path: Path) -> None:
    command = [sys.executable, "-m", "svrt", "export", RECIPE, "--out", str(path)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise BundleError(f"the built-in bundle was not exported: {lines[-1].removeprefix('svrt: error: ')}")


def _remove_older(path: Path) -> None:
    """Bundles of other versions are 230 MB each, and a board's storage is small."""
    for other in path.parent.glob(f"{RECIPE}-*"):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
