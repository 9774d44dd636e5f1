"""The weights of a large graph in bfloat16, in a file of the engine cache that OpenVINO reads them from.

Asked to compute in bfloat16, OpenVINO widens float16 weights to float32, packs them for its products, and keeps every
copy for as long as the model lives: 2.4 GB for a ViT-L whose weights are 0.6 GB. It widens nothing in a graph that is
bfloat16 throughout. Here such a graph's weights are a mapped file: once they are packed its pages are given back, and
would be read again from the file, should OpenVINO ever look at them.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from . import EngineStore
from .files import digest_of, locked, write_whole

LARGE = 64 << 20  # bytes of weights; of fewer the copies take little, and a file of them is not worth its place
_CHUNK = 1 << 22  # elements converted at a time


def narrow(graph: ov.Model, path: Path, store: EngineStore) -> mmap.mmap | None:
    """Turn a large float16 graph, read from `path`, into bfloat16 throughout: weights, and what is computed from them.

    The mapped file that the weights lie in has to live as long as the graph and what is compiled from it; its pages may
    be dropped (`MADV_DONTNEED`) at any time. None where the graph stays as it is: its weights are not large, or the
    cache cannot be written, which `store.say` is told.
    """
    constants = [node for node in graph.get_ordered_ops() if _is(node, "Constant")]
    constants.sort(key=lambda node: str(node.get_friendly_name()))  # the file's order, whatever the graph's is
    size = 2 * sum(_count(node) for node in constants)
    if size < LARGE:
        return None
    key = hashlib.sha256(f"{digest_of(path, store.digests)} {ov.get_version()}".encode()).hexdigest()
    file = store.cache / f"{path.stem}-{key[:12]}.bf16"
    try:
        with locked(store, "converts weights", "weights.lock"):
            if not file.is_file() or file.stat().st_size != size:
                store.say(f"converting the weights of {path.name} to bfloat16 (once)")
                write_whole(file, _converted(constants))
        with file.open("rb") as handle:
            weights = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as exc:
        store.say(f"{file}: cannot be kept ({exc}); {path.name} takes three times the memory")
        return None
    _replace(constants, weights)
    for node in graph.get_ordered_ops():
        if _is(node, "Convert"):
            node.set_attribute("destination_type", "bf16")
    graph.validate_nodes_and_infer_types()
    return weights


def _is(node: Any, kind: str) -> bool:
    """Whether a node is of that kind and gives float16."""
    return bool(node.get_type_name() == kind and node.get_element_type() == ov.Type.f16)


def _count(node: Any) -> int:
    return int(np.prod(list(node.shape), dtype=np.int64))


def _converted(constants: Sequence[Any]) -> Iterator[memoryview]:
    """The values in bfloat16, rounded to nearest, ties to even; the float16 of a network has no NaN."""
    for node in constants:
        values = node.data.reshape(-1)
        for at in range(0, len(values), _CHUNK):
            bits = values[at : at + _CHUNK].astype(np.float32).view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            yield memoryview(rounded.astype(np.uint16)).cast("B")


def _replace(constants: Sequence[Any], weights: mmap.mmap) -> None:
    """Let what reads the constants read `weights`, where they lie one after the other."""
    at = 0
    for node in constants:
        shape, count = list(node.shape), _count(node)
        values = np.frombuffer(weights, np.uint16, count, at).reshape(shape)
        at += values.nbytes
        node.output(0).replace(ov.op.Constant(ov.Tensor(values, shape, ov.Type.bf16)).output(0))
