"""OpenVINO on the processor: bfloat16 where that has it, which halves the time of a float32 product."""

from __future__ import annotations

import mmap
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from ...errors import EngineError
from ..processors import usable_processors
from . import QUANTIZED, EngineStore, UnsuitedError, check_inputs
from .compiled_graph import CompiledGraph, Interface
from .dynamic_int8 import GROUP
from .mapped_weights import as_float32, is_large, mapped
from .openvino_nodes import constant, only_reader

FLOAT32_ONLY = "openvino-fp32"
DYNAMIC = "dynamic int8"  # what `precision` says of that
# OpenVINO's names of the types that it computes in, and ours.
_PRECISIONS = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}


class OpenVinoEngine:
    """A model compiled for the processor; see `svrt.runtime.engines.Engine`.

    `hint` is the type that OpenVINO is asked to compute in, "f32" or "bf16"; `precision` what it says it does.
    With a `store`, a large float16 graph takes a third of the memory (`mapped_weights`), and a small graph is compiled
    once (`compiled_graph`).
    Of a graph that begins with a convolution, as VGG-16 does, that one loses nothing to bfloat16 (`_in_two_parts`). It
    has one product in 180, but of what moves the distances between frames a third comes in by it, between motion maps
    two thirds: where a map is black, a mean of 124 is subtracted, and there bfloat16 has steps of a half.
    A graph with quantized products ("int8" in `stored`) keeps those, and computes the others in that type. As
    "openvino-int8" it does the same to the products of a large float16 graph (`dynamic_int8`).

    Raises `EngineError` where the graph cannot be loaded, `UnsuitedError` for one that is not of that kind.
    """

    device = "cpu"

    def __init__(self, path: Path, name: str, stored: str, hint: str, store: EngineStore | None = None) -> None:
        self.path, self.name = path, name
        quantized = name == QUANTIZED
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": usable_processors(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if quantized else 0,
        }
        self._weights: mmap.mmap | None = None  # has to stay mapped as long as the model
        compiled = None if quantized or store is None else CompiledGraph(path, name, options, store)
        try:
            core = _core()
            found = None if compiled is None else compiled.read(core)
            if found is not None:
                model, self._interface, self._weights = found
            else:
                graph = core.read_model(str(path))
                graph, self._interface = self._suited(core, graph, stored, hint, store)
                model = core.compile_model(graph, "CPU", options)
                if compiled is not None and compiled.suits(graph):
                    compiled.keep(model, self._interface)
            if self._weights is not None:
                self._weights.madvise(mmap.MADV_DONTNEED)  # they are packed
            self._request = model.create_infer_request()
        except RuntimeError as exc:
            raise EngineError(f"{path}: OpenVINO cannot load it: {_reason(exc)}") from exc
        self.inputs = self._interface.inputs
        computed = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        computed = _PRECISIONS.get(computed, computed)
        self.precision = DYNAMIC if quantized else stored if stored == "int8" else computed

    def _suited(
        self, core: ov.Core, graph: ov.Model, stored: str, hint: str, store: EngineStore | None
    ) -> tuple[ov.Model, Interface]:
        """A graph as it is to be compiled, and its interface; `graph` is taken apart."""
        # Named now: compiled, an output goes by the names of what was fused into it too.
        outputs = [tensor.any_name for tensor in graph.outputs]
        interface = Interface({tensor.any_name: _shape(tensor.partial_shape) for tensor in graph.inputs}, outputs)
        quantized = self.name == QUANTIZED
        large = stored == "fp16" and is_large(graph)
        if quantized and not large:
            raise UnsuitedError(f"{self.path}: {self.name} runs large float16 graphs alone")
        if large and store is not None:
            found = mapped(core, graph, self.path, store, quantized=quantized)
            if found is not None:
                graph, self._weights = found
                return graph, interface
        if quantized:
            graph = core.read_model(str(self.path))  # anew: the other may be half written
            as_float32(graph, quantized=True)
        elif hint == "bf16" and (split := _in_two_parts(graph)) is not None:
            return split, replace(interface, in_two_parts=True)
        return graph, interface

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once. Raises `EngineError` where an input does not fit."""
        # OpenVINO converts other types, and takes an input by its place where the name is unknown.
        check_inputs(self.path, self.inputs, inputs)
        if self._interface.in_two_parts:
            inputs = {name: _operands(array) for name, array in inputs.items()}
        try:
            values = self._request.infer(inputs, share_inputs=True).to_tuple()
        except RuntimeError as exc:
            raise EngineError(f"{self.path}: OpenVINO cannot run it: {_reason(exc)}") from exc
        return dict(zip(self._interface.outputs, values, strict=True))


def _in_two_parts(graph: ov.Model) -> ov.Model | None:
    """A graph that begins with a convolution, so that bfloat16 costs that one nothing; None for others.

    Every pixel and every weight is a sum of two: what bfloat16 holds of it, and the rest, of which it holds enough. The
    products are of three times as many channels (`_operands`), added up in float32; left out are those of rest and
    rest, some 2**-16 of the whole. `graph` itself is taken apart.
    """
    source = graph.inputs[0]
    convolution = only_reader(source)
    while convolution is not None and convolution.get_type_name() == "Convert":
        convolution = only_reader(convolution.output(0))
    if convolution is None or convolution.get_type_name() != "Convolution" or len(graph.inputs) > 1:
        return None
    weights = constant(convolution.input_value(1))
    if weights is None:
        return None
    high, rest = _parts(weights)
    shape = source.get_partial_shape()
    shape[1] = shape[1].get_length() * 3
    pixels = opset.parameter(shape, ov.Type.f32)
    pixels.output(0).set_names(source.get_names())
    how = convolution.get_attributes()
    sums = opset.convolution(
        pixels,
        np.concatenate([high, high, rest], axis=1),
        *(how[name] for name in ("strides", "pads_begin", "pads_end", "dilations")),
        auto_pad=how["auto_pad"],
    )
    readers = convolution.output(0).get_target_inputs()
    as_it_was = opset.convert(sums, convolution.get_element_type().to_string())
    for reader in readers:
        reader.replace_source_output(as_it_was.output(0))
    return ov.Model(graph.get_results(), [pixels], graph.get_friendly_name())


def _operands(pixels: np.ndarray) -> np.ndarray:
    """What the convolution of `_in_two_parts` reads: float32 [N, C, H, W] to [N, 3C, H, W]."""
    high, rest = _parts(pixels)
    return np.concatenate([high, rest, high], axis=1)


def _parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 values as what bfloat16 holds of each, cut off, and the rest."""
    high = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return high, values - high


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
    hint = "f32" if backend == FLOAT32_ONLY else fast_type()
    return OpenVinoEngine(path, backend, precision, hint, store)
