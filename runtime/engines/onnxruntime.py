"""ONNX Runtime on the CPU: the backend that runs anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from ...errors import EngineError
from ..processors import usable_processors
from . import EngineStore

QUIET = 3  # ONNX Runtime's severity: errors and worse; its warnings are about the graph, not for a user


class OnnxRuntimeEngine:
    """An ONNX Runtime session; see `svrt.runtime.engines.Engine`."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, path: Path, precision: str) -> None:
        self.path, self.precision = path, precision
        options = ort.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = usable_processors()
        # Idle threads that spin cost power, and time where something else runs beside.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # its exceptions share no base but Exception
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {_first_line(exc)}") from exc
        self.inputs = {tensor.name: _shape(tensor.shape) for tensor in self._session.get_inputs()}
        # A graph of one shape is run once a clip, and its arena given back. One whose batch is free is run batch after
        # batch, and keeps it: malloc in its place ends with more memory in pieces than the arena holds, and is slower.
        self._options = ort.RunOptions()
        if not any(None in shape for shape in self.inputs.values()):
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once. Raises `EngineError` where an input does not fit."""
        names = [output.name for output in self._session.get_outputs()]
        try:
            values = self._session.run(names, inputs, self._options)
        except Exception as exc:
            raise EngineError(f"{self.path}: ONNX Runtime cannot run it: {_first_line(exc)}") from exc
        return dict(zip(names, values, strict=True))


def _shape(shape: list[int | str | None]) -> tuple[int | None, ...]:
    return tuple(side if isinstance(side, int) else None for side in shape)


def _first_line(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__


def load(path: Path, _backend: str, precision: str, _store: EngineStore | None) -> OnnxRuntimeEngine:
    """Load the graph at `path`; see `svrt.runtime.engines.load`. Nothing is built, so there is nothing to store."""
    return OnnxRuntimeEngine(path, precision)
