"""OpenVINO on the processor: bfloat16 where that has it, which halves the time of a float32 product.

Compiled models are not kept on disk: reading one back saves a third of a load that takes a second at full size, and
costs a file as large as the weights.
"""

from __future__ import annotations

import mmap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from ...errors import EngineError
from ..processors import usable_processors
from . import EngineStore
from .bf16_weights import narrow

FLOAT32_ONLY = "openvino-fp32"
# OpenVINO's names of the types that it computes in, and ours.
_PRECISIONS = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}


class OpenVinoEngine:
    """A model compiled for the processor; see `svrt.runtime.engines.Engine`.

    `hint` is the type that OpenVINO is asked to compute in, "f32" or "bf16"; `precision` what it says it does.
    With a `store`, a large float16 graph that is computed in bfloat16 takes a third of the memory (`bf16_weights`).
    Of a graph that begins with a convolution, as VGG-16 does, that one is computed in float32 always. It has one
    product in 180, but of what moves the distances between frames a third comes in by it, between motion maps two
    thirds: where a map is black, a mean of 124 is subtracted, and there bfloat16 has steps of a half.
    A graph with quantized products ("int8" in `stored`) keeps those, and computes the others in that type.
    """

    device = "cpu"

    def __init__(self, path: Path, name: str, stored: str, hint: str, store: EngineStore | None = None) -> None:
        self.path, self.name = path, name
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": usable_processors(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        try:
            core = _core()
            graph = core.read_model(str(path))
            # Named now: compiled, an output goes by the names of what was fused into it too.
            self._outputs = [tensor.any_name for tensor in graph.outputs]
            self._weights: mmap.mmap | None = None
            if store is not None and hint == "bf16" and stored == "fp16":
                self._weights = narrow(graph, path, store)
            self.inputs = {tensor.any_name: _shape(tensor.partial_shape) for tensor in graph.inputs}
            self._first: ov.InferRequest | None = None
            if hint != "f32" and self._weights is None and (parts := _split(graph)) is not None:
                first, graph = parts
                exact = core.compile_model(first, "CPU", {**options, "INFERENCE_PRECISION_HINT": "f32"})
                self._first = exact.create_infer_request()
            model = core.compile_model(graph, "CPU", options)
            if self._weights is not None:
                self._weights.madvise(mmap.MADV_DONTNEED)  # they are packed
            self._request = model.create_infer_request()
        except RuntimeError as exc:
            raise EngineError(f"{path}: OpenVINO cannot load it: {_reason(exc)}") from exc
        computed = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = stored if stored == "int8" else _PRECISIONS.get(computed, computed)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once. Raises `EngineError` where an input does not fit."""
        self._check(inputs)
        given: Any = inputs
        try:
            if self._first is not None:
                given = self._first.infer(inputs, share_inputs=True).to_tuple()
            values = self._request.infer(given, share_inputs=True).to_tuple()
        except RuntimeError as exc:
            raise EngineError(f"{self.path}: OpenVINO cannot run it: {_reason(exc)}") from exc
        return dict(zip(self._outputs, values, strict=True))

    def _check(self, inputs: dict[str, np.ndarray]) -> None:
        """OpenVINO converts other types, and takes an input by its place where the name is unknown."""
        if inputs.keys() != self.inputs.keys():
            raise EngineError(f"{self.path}: inputs are {sorted(self.inputs)}, not {sorted(inputs)}")
        for name, array in inputs.items():
            shape = self.inputs[name]
            fits = len(shape) == array.ndim and all(
                want in (None, have) for want, have in zip(shape, array.shape, strict=True)
            )
            if array.dtype != np.float32 or not fits:
                raise EngineError(
                    f"{self.path}: input {name!r} is {array.dtype} {list(array.shape)}, expected float32 {list(shape)}"
                )


def _split(graph: ov.Model) -> tuple[ov.Model, ov.Model] | None:
    """A graph that begins with a convolution, in two: that with its activation, and the rest; None for others.

    What goes from one to the other is float32 [N, H, W, C], as OpenVINO has it inside; in the graph's own order it
    would be turned twice. `graph` itself is taken apart.
    """
    source, cut = graph.inputs[0].get_node(), graph.inputs[0]
    convolution, node = None, _reader(cut)
    while node is not None and node.get_type_name() in ("Convert", "Add", "Relu", "Convolution"):
        if node.get_type_name() == "Convolution":
            if convolution is not None:
                break
            convolution = node
        cut, node = node.output(0), _reader(node.output(0))
    if convolution is None or len(graph.inputs) > 1 or len(cut.get_partial_shape()) != 4:
        return None
    stored, readers = cut.get_element_type(), cut.get_target_inputs()
    first = opset.result(opset.transpose(opset.convert(cut, "f32"), np.array([0, 2, 3, 1])))
    shape = cut.get_partial_shape()
    between = opset.parameter(ov.PartialShape([shape[side] for side in (0, 2, 3, 1)]), ov.Type.f32)
    turned = opset.convert(opset.transpose(between, np.array([0, 3, 1, 2])), stored.to_string())
    for reader in readers:
        reader.replace_source_output(turned.output(0))
    return ov.Model([first], [source], "first"), ov.Model(graph.get_results(), [between], "rest")


def _reader(value: Any) -> Any:
    """The only node that reads a value, but for its shape; None where there are more."""
    nodes = [reader.get_node() for reader in value.get_target_inputs()]
    nodes = [node for node in nodes if node.get_type_name() != "ShapeOf"]
    return nodes[0] if len(nodes) == 1 else None


def _shape(shape: Any) -> tuple[int | None, ...]:
    return tuple(None if side.is_dynamic else side.get_length() for side in shape)


def _reason(exc: RuntimeError) -> str:
    """The last clause of OpenVINO's message, as one line: the first ones are places in its own sources."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [type(exc).__name__])[-1]


@cache
def _core() -> ov.Core:
    """The only one of the process, for as long as it lives.

    OpenVINO's CPU plugin gives its thread a stack for signals as it comes, and the one before as it goes. Of two that
    go in the order in which they came the second gives back one that is no more: the next signal, Ctrl-C too, would be
    the end of the process.
    """
    return ov.Core()


def fast_type() -> str:
    """What `openvino` asks for: "bf16" where the processor multiplies it, else "f32"."""
    return "bf16" if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def load(path: Path, backend: str, precision: str, store: EngineStore | None) -> OpenVinoEngine:
    """Load the graph at `path`, stored in `precision`; see `svrt.runtime.engines.load`."""
    return OpenVinoEngine(path, backend, precision, "f32" if backend == FLOAT32_ONLY else fast_type(), store)
