"""svrt: describe a sports clip in words, on a small computer.

import svrt

model = svrt.load()
print(model.describe("clip.mp4").text)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import SvrtError

if TYPE_CHECKING:
    from .runtime.pipeline import Description, Pipeline

__all__ = ["Description", "Pipeline", "SvrtError", "load"]


def load(bundle: Path | str | None = None, *, backend: str = "auto", max_tokens: int | None = None) -> Pipeline:
    """Load a bundle, or the built-in one; the result's `describe(path)` gives a `Description`.

    Raises `SvrtError` where the bundle is damaged or cannot run here; see `svrt.runtime.pipeline.Pipeline`.
    """
    from .cache import engine_folder, open_bundle
    from .runtime.pipeline import Pipeline

    return Pipeline(open_bundle(bundle), backend, max_tokens, engine_cache=engine_folder())


def __getattr__(name: str) -> object:
    if name in ("Description", "Pipeline"):
        from .runtime import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
