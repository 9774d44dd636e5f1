"""ONNX Runtime and OpenVINO with their default settings, on what `torch.onnx.export` makes of the same networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...bundle import VGG16
from ...runtime.sampler import VGG_BATCH
from .contestants import ENCODING, FRAME, VGG, Contestant, Outputs, Task
from .prepare import STOCK, STOCK_ENCODER, inputs

Run = Callable[[np.ndarray], np.ndarray]


def load(task: Task) -> Contestant:
    """The graph of the task's stage in the library that its peer names."""
    return _Stock(task)


class _Stock:
    def __init__(self, task: Task) -> None:
        self._is_vgg = task.stage == VGG
        graph = task.prepared / STOCK / (VGG16 if self._is_vgg else STOCK_ENCODER)
        self._run, self.precision = (_onnxruntime if task.peer.startswith("ONNX") else _openvino)(graph)
        self._values = inputs(task.prepared)["images" if self._is_vgg else "pixels"]
        self.note = f"{VGG_BATCH} at a time" if self._is_vgg else ""

    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        step = VGG_BATCH if self._is_vgg else 1
        parts = [self._run(self._values[at : at + step]) for at in range(0, len(self._values), step)]
        self._given = np.concatenate(parts)
        ms = (time.perf_counter() - started) * 1e3
        return {FRAME: ms / len(self._values)} if self._is_vgg else {ENCODING: ms}

    def outputs(self) -> Outputs:
        return Outputs({"features" if self._is_vgg else "video_tokens": self._given})


def _onnxruntime(graph: Path) -> tuple[Run, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: np.asarray(session.run(None, {name: values})[0]), "float32"


def _openvino(graph: Path) -> tuple[Run, str]:
    import openvino

    model = openvino.Core().compile_model(str(graph), "CPU")
    computed = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return lambda values: np.array(model([values])[0]), {"f32": "float32", "bf16": "bfloat16"}.get(computed, computed)
