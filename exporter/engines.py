"""TensorRT engines of a bundle's graphs, built at export: on the board itself, or for an RTX card anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle import ENCODER, ENGINES, VGG16, EngineRecord
from ..errors import EngineError, OutputError
from ..runtime.engines import AbsentError
from ..runtime.engines.cuda import Device
from ..runtime.engines.files import digest_of, write_whole
from ..runtime.engines.tensorrt_build import (
    MODULES,
    Options,
    Progress,
    Target,
    build,
    engine_name,
    find_module,
)
from ..runtime.sampler import VGG_BATCH

GRAPHS = (VGG16, ENCODER)


@dataclass(frozen=True)
class Request:
    """Engines that an export is asked for: the backend, and the compute capability (such as "8.6") to build for.

    Without one it is that of this machine's GPU.
    """

    backend: str
    compute_capability: str | None = None

    def check(self) -> None:
        """Raise `EngineError` where engines cannot be built here: before the work of an export, not after it."""
        self.target()

    def target(self) -> Target:
        """What the engines will be built by and for; raises `EngineError` where they cannot be built here."""
        return Target.of(self.backend, self._module(), _gpu(), self.compute_capability)

    def _module(self) -> Any:
        if self.backend not in MODULES:
            raise EngineError(f"engines of {self.backend!r} are not known; one of {', '.join(MODULES)}")
        return find_module(self.backend)

    def build(
        self, folder: Path, digests: dict[str, str], progress: Progress = lambda *_: None
    ) -> dict[str, EngineRecord]:
        """Build the engines of the graphs in a bundle's folder, under `engines/`; what each is, by name in the bundle.

        `digests` is as in `EngineStore`; `progress` gets done and total, over all graphs, from another thread. Raises
        `EngineError` where one cannot be built, `OutputError` where it cannot be written.
        """
        trt, target, options = self._module(), self.target(), Options(VGG_BATCH)
        records = {}
        for index, name in enumerate(GRAPHS):
            graph = folder / name
            key = target.key(digest_of(graph, digests), options)
            plan = build(trt, graph, target, options, _share(progress, index, len(GRAPHS)))
            file = f"{ENGINES}/{engine_name(graph, key)}"
            _write(folder / file, plan)
            records[file] = target.record(name, key)
        return records


def _gpu() -> Device | None:
    try:
        return Device()
    except AbsentError:
        return None


def _share(progress: Progress, index: int, count: int) -> Progress:
    """The progress of one of `count` equal pieces of work, told as that of all."""
    return lambda done, total: progress(index * total + done, count * total)


def _write(file: Path, plan: memoryview) -> None:
    try:
        file.parent.mkdir(exist_ok=True)
        write_whole(file, plan)
    except OSError as exc:
        raise OutputError(f"{file}: cannot be written: {exc.strerror}") from exc
