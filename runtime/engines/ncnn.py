"""ncnn on the processor: 3 x 3 convolutions by Winograd's way, F(4 x 4, 3 x 3), a quarter of the products in float32.

It runs VGG-16 and graphs like it, which are converted as they are loaded (`ncnn_model`).
"""

from __future__ import annotations

import os
from pathlib import Path

import ncnn
import numpy as np

from ...errors import EngineError
from ..processors import usable_processors
from . import EngineStore, UnsuitedError, check_inputs
from .ncnn_model import converted
from .onnx_chain import Chain, NotAChainError, read

# ncnn computes in these wherever a processor has them, unless told otherwise.
ROUNDING = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage")


class NcnnEngine:
    """A chain of convolutions; see `svrt.runtime.engines.Engine`. Images go through one at a time."""

    name = "ncnn"
    device = "cpu"
    precision = "fp32"

    def __init__(self, path: Path, chain: Chain) -> None:
        self.path, self._output = path, chain.output
        self.inputs = {chain.input: chain.shape}
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = usable_processors()
        options.use_vulkan_compute = False
        for name in ROUNDING:
            if hasattr(options, name):
                setattr(options, name, False)
        model = converted(path, chain)
        self._blob = model.output
        # Weights are read from a file alone; this one lies in memory, so that no card is written to at each start.
        try:
            with os.fdopen(os.memfd_create("ncnn"), "wb") as file:
                file.writelines(model.weights)
                file.flush()
                if self._net.load_param_mem(model.text) or self._net.load_model(f"/proc/self/fd/{file.fileno()}"):
                    raise EngineError(f"{path}: ncnn cannot load it")
        except OSError as exc:
            raise EngineError(f"{path}: ncnn cannot load it: {exc.strerror}") from exc

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on each image. Raises `EngineError` where an input does not fit."""
        check_inputs(self.path, self.inputs, inputs)
        ((name, images),) = inputs.items()
        return {self._output: np.stack([self._run(name, np.ascontiguousarray(image)) for image in images])}

    def _run(self, name: str, image: np.ndarray) -> np.ndarray:
        """[channels, H, W] to [features]."""
        extractor = self._net.create_extractor()
        failed = extractor.input(name, ncnn.Mat(image))
        failed, found = (failed, None) if failed else extractor.extract(self._blob)
        if failed:
            raise EngineError(f"{self.path}: ncnn cannot run it (its error {failed}; -100: out of memory)")
        return np.array(found)


def load(path: Path, _backend: str, _precision: str, _store: EngineStore | None) -> NcnnEngine:
    """Load the graph at `path`; see `svrt.runtime.engines.load`. Raises `UnsuitedError` for other graphs."""
    if not hasattr(os, "memfd_create"):
        raise UnsuitedError("ncnn is used on Linux alone")
    try:
        return NcnnEngine(path, read(path))
    except NotAChainError as exc:
        raise UnsuitedError(f"{exc}; ncnn runs graphs such as VGG-16's here") from exc
