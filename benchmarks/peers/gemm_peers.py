"""The time that the machine's own rate of bfloat16 products allows the encoder: no way to do it, but a floor.

A run multiplies with the matrices of one layer, in the encoder's own shapes, as often as the encoder has layers. What
it gives is not that time but, at that rate, the time of all the graph's products, attention's among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ...bundle import ENCODER
from ...exporter.costs import graph_costs
from .contestants import ENCODING, Contestant, Outputs, Task
from .prepare import load_bundle
from .weights import encoder_layer

SEED = 0


def load(task: Task) -> Contestant:
    """Products in the library that the task's peer names."""
    return _Products(task)


class _Products:
    precision = "bfloat16"

    def __init__(self, task: Task) -> None:
        bundle = load_bundle(task)
        shapes = encoder_layer(bundle)
        costs = graph_costs(bundle.file(ENCODER))
        self._flops = costs.flops
        linear = [one for one in costs.operations if one.name.endswith(("attention/qkv", "mlp/fc1"))]
        self._layers = sum(one.name.endswith("qkv") for one in linear)
        first = next(one for one in linear if one.name.endswith("qkv"))
        rows = first.flops // (2 * shapes[0][0] * shapes[0][1])
        self._layer_flops = sum(2 * rows * a * b for a, b in shapes)
        self._run = (_torch if "PyTorch" in task.peer else _openvino)(rows, shapes)
        self.note = f"{self._flops / 1e12:.3g} TFLOP, {rows} rows, matrices {', '.join(f'{a}x{b}' for a, b in shapes)}"

    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        for _ in range(self._layers):
            self._run()
        rate = self._layer_flops * self._layers / (time.perf_counter() - started)
        return {ENCODING: self._flops / rate * 1e3}

    def outputs(self) -> Outputs:
        return Outputs()


def _torch(rows: int, shapes: list[tuple[int, int]]) -> Callable[[], object]:
    import torch

    from .networks import use_all_processors

    use_all_processors()
    generator = torch.Generator().manual_seed(SEED)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    pairs = [(noise(rows, a), noise(b, a)) for a, b in shapes]
    outs = [torch.empty(rows, b, dtype=torch.bfloat16) for _, b in shapes]

    @torch.inference_mode()
    def run() -> None:
        for (values, weight), out in zip(pairs, outs, strict=True):
            torch.mm(values, weight.T, out=out)

    return run


def _openvino(rows: int, shapes: list[tuple[int, int]]) -> Callable[[], object]:
    """One graph of all products, each with an input of its own; the type is that which OpenVINO is asked for."""
    import openvino
    from openvino import opset13 as operations

    rng = np.random.default_rng(SEED)
    values = [operations.parameter([rows, a], np.float32) for a, _ in shapes]
    weights = [operations.constant(rng.standard_normal((a, b), dtype=np.float32)) for a, b in shapes]
    # The largest element of each product is given out: to write a whole one as float32 is not multiplying.
    products = [
        operations.reduce_max(operations.matmul(value, weight, False, False), np.array([0, 1]))
        for value, weight in zip(values, weights, strict=True)
    ]
    model = openvino.Core().compile_model(
        openvino.Model(products, values),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"},
    )
    request = model.create_infer_request()
    given = [rng.standard_normal((rows, a), dtype=np.float32) for a, _ in shapes]
    return lambda: request.infer(given, share_inputs=True)
