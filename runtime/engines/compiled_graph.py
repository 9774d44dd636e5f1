"""A small graph as OpenVINO compiled it, in the engine cache: reading that back takes half of the time or less.

OpenVINO says in the file which version made it and for which processor, and reads no other. Its weights are packed
from the mapped file. Of a large graph the file would be as large as the weights, and a load is little beside a run.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from ..processors import processor
from . import EngineStore
from .files import digest_of, locked, write_whole
from .mapped_weights import mapped_bytes

RECIPE = 1  # raised when a graph is made ready for compiling in another way, so that what was kept is not read
KEPT_S = 30 * 24 * 3600.0  # seconds since it was written; of a graph that is still used it is written again
LARGEST = 96 << 20  # bytes of weights: a file of more is not worth its place
HEADER = 4096  # bytes before what OpenVINO wrote, which then lies as it would in a file of its own


@dataclass(frozen=True)
class Interface:
    """What a caller has to know of a graph: the shapes of its inputs, None for a dimension left to the caller, the
    names of its outputs, and whether its input is given `in_two_parts` (see `svrt.runtime.engines.openvino`)."""

    inputs: dict[str, tuple[int | None, ...]]
    outputs: list[str]
    in_two_parts: bool = False


class CompiledGraph:
    """The file of the graph at `path` as it is compiled with `options`, by the named backend.

    Raises `BundleError` where the graph cannot be read.
    """

    def __init__(self, path: Path, backend: str, options: Mapping[str, Any], store: EngineStore) -> None:
        of = [RECIPE, digest_of(path, store.digests), backend, ov.get_version(), processor(), dict(options)]
        key = hashlib.sha256(json.dumps(of).encode()).hexdigest()
        self.file = store.cache / f"{path.stem}-{key[:12]}.blob"
        self._options, self._store = options, store

    def read(self, core: ov.Core) -> tuple[ov.CompiledModel, Interface, mmap.mmap] | None:
        """The compiled graph, and the mapped file, which has to stay so as long as that; its pages may be dropped
        (`MADV_DONTNEED`) at any time. None where there is no such file, or none that OpenVINO reads.
        """
        try:
            compiled, mapping = mapped_bytes(self.file, HEADER)
            told = json.loads(mapping[:HEADER].rstrip(b"\0"))
            inputs = {name: tuple(shape) for name, shape in told["inputs"].items()}
            interface = Interface(inputs, told["outputs"], told["in_two_parts"])
            return core.import_model(compiled, "CPU", self._options), interface, mapping
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
            return None

    def suits(self, graph: ov.Model) -> bool:
        """Whether the file would be read again, and is worth its place: as large as the graph's weights."""
        constants = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Constant"]
        bits = sum(math.prod(node.shape) * node.get_element_type().bitwidth for node in constants)
        return self._store.keeps and bits // 8 < LARGEST

    def keep(self, model: ov.CompiledModel, interface: Interface) -> None:
        """Write the file, for the next process, and remove those that are `KEPT_S` old: of graphs that an update
        replaced nobody else would. `store.say` is told where it cannot be written.
        """
        told = json.dumps(asdict(interface)).encode()
        if len(told) > HEADER:
            return
        try:
            with locked(self._store, "keeps a compiled graph", "weights.lock"):
                parts = [memoryview(told.ljust(HEADER, b"\0")), model.export_model().getbuffer()]
                write_whole(self.file, parts)
                for other in self.file.parent.glob("*.blob"):
                    if time.time() - other.stat().st_mtime > KEPT_S:
                        other.unlink()
        except (OSError, RuntimeError) as exc:
            self._store.say(f"{self.file}: cannot be kept ({str(exc).splitlines()[-1]}); it is compiled each time")
