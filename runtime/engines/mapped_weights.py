"""A large graph in OpenVINO's own format, in the engine cache: its weights stay float16, in a file that is mapped.

Of a float16 graph OpenVINO widens all weights to float32, packs them for its products, and keeps every copy for as long
as the model lives: 2.4 GB for a ViT-L whose weights are 0.6 GB. Of a float32 graph whose weights are said to be
compressed to float16 (its format's rt_info `decompression`) it widens nothing: they are packed straight from the file.
Once that is done the file's pages are given back; they would be read again, should OpenVINO ever look at them. A graph
that is bfloat16 throughout would do for memory, but not for speed: of such it does not join attention's products and
softmax, and writes the scores of all heads to memory. Weights in int8 (`dynamic_int8`) lie in such a file, too.
"""

from __future__ import annotations

import errno
import hashlib
import math
import mmap
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from . import LARGE, EngineStore
from .dynamic_int8 import quantize_products
from .files import digest_of, locked, write_whole


def is_large(graph: ov.Model) -> bool:
    """Whether a graph's float16 weights take enough for a file of their own."""
    return bool(2 * sum(math.prod(node.shape) for node in _float16(graph, "Constant")) >= LARGE)


def mapped(
    core: ov.Core, graph: ov.Model, path: Path, store: EngineStore, *, quantized: bool
) -> tuple[ov.Model, mmap.mmap] | None:
    """A large float16 graph, read from `path`, as float32 with its weights in a mapped file; `graph` is taken apart.

    `quantized`: its products in int8. The file has to stay mapped as long as the model and what is compiled from it;
    its pages may be dropped (`MADV_DONTNEED`) at any time. None where the cache cannot be written, which `store.say`
    is told.
    """
    of = f"{digest_of(path, store.digests)} {ov.get_version()}{' int8' if quantized else ''}"
    topology = store.cache / f"{path.stem}-{hashlib.sha256(of.encode()).hexdigest()[:12]}.xml"
    try:
        with locked(store, "converts a graph", "weights.lock"):
            layers = _kept(topology)
            if layers is None:
                store.say(f"converting {path.name} to OpenVINO's format{', in int8' if quantized else ''} (once)")
                as_float32(graph, quantized=quantized)
                layers = _write(graph, topology)
        held, weights = mapped_bytes(topology.with_suffix(".bin"))
        return core.read_model(layers, held), weights
    except (OSError, ValueError) as exc:
        store.say(f"{topology}: cannot be kept ({exc}); {path.name} takes three times the memory")
        return None


def mapped_bytes(file: Path, offset: int = 0) -> tuple[ov.Tensor, mmap.mmap]:
    """A file's bytes from `offset` on, mapped, and the mapping, which has to last as long. Raises `OSError`, or
    `ValueError` where there are none."""
    with file.open("rb") as handle:
        mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    held = np.frombuffer(mapping, np.uint8, offset=offset)
    return ov.Tensor(held, [len(held)], ov.Type.u8), mapping


def _float16(graph: ov.Model, kind: str) -> list[ov.Node]:
    """The nodes of a kind that give float16."""
    nodes = [node for node in graph.get_ordered_ops() if node.get_type_name() == kind]
    return [node for node in nodes if node.get_element_type() == ov.Type.f16]


def _kept(topology: Path) -> bytes | None:
    """What the file holds, if it is there, and beside it one of weights as long as it says."""
    try:
        layers, size = topology.read_bytes(), topology.with_suffix(".bin").stat().st_size
    except OSError:
        return None
    return layers if size == _weights_end(layers) else None


def _weights_end(layers: bytes) -> int:
    return max((int(at) + int(size) for at, size in re.findall(rb'offset="(\d+)" size="(\d+)"', layers)), default=0)


def _write(graph: ov.Model, topology: Path) -> bytes:
    """Write the float32 graph and its smaller weights; the topology last, so that where it is the weights are.

    Returns the topology. Raises `OSError`.
    """
    folder = topology.with_name(f".{topology.stem}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    try:
        layers, weights = folder / "graph.xml", folder / "graph.bin"
        try:
            ov.serialize(graph, layers, weights)
        except RuntimeError as exc:
            raise OSError(errno.EIO, f"OpenVINO cannot write it: {str(exc).splitlines()[-1]}") from exc
        written = layers.read_bytes()
        if not written.rstrip().endswith(b"</net>") or weights.stat().st_size != _weights_end(written):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # OpenVINO does not look
        with weights.open("rb+") as handle:
            os.fsync(handle.fileno())
        weights.replace(topology.with_suffix(".bin"))
        marked = _said_to_be_compressed(written)
        write_whole(topology, marked)
        return marked
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_float32(graph: ov.Model, *, quantized: bool) -> None:
    """Let a float16 graph compute in float32, from constants that are what they were, or `quantized` ones."""
    for constant in _float16(graph, "Constant"):
        readers = constant.output(0).get_target_inputs()
        wide = opset.convert(constant, "f32")
        for reader in readers:
            reader.replace_source_output(wide.output(0))
    for conversion in _float16(graph, "Convert"):
        conversion.set_attribute("destination_type", "f32")
    graph.validate_nodes_and_infer_types()
    if quantized:
        quantize_products(graph)


def _said_to_be_compressed(layers: bytes) -> bytes:
    """The topology, with a mark on every conversion from float16: those of the weights; no other is left."""
    tree = ElementTree.fromstring(layers)
    for layer in tree.iterfind("layers/layer[@type='Convert']"):
        if layer.find("input/port[@precision='FP16']") is not None:
            mark = ElementTree.SubElement(layer, "rt_info")
            ElementTree.SubElement(mark, "attribute", {"name": "decompression", "version": "0"})
    return ElementTree.tostring(tree)
