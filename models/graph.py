"""Writing an ONNX graph by hand: nodes, constants and their types, with names a reader can follow.

Opset 17 (the first with LayerNormalization) is read by ONNX Runtime, OpenVINO and TensorRT 10.3 to 11.

Weights go to a file of their own beside the graph, each as soon as it is given: writing 1.2 GB takes the memory of the
largest tensor, a runtime maps them instead of parsing them, and the graph itself stays small enough to look into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..kernels.int8 import int8_weights

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

OPSET = 17
IR_VERSION = 8  # what opset 17 was released with: older runtimes on a board accept it
INLINE_BYTES = 1024  # constants up to this lie in the graph: runtimes look into shapes and scalars while optimizing
ALIGNMENT = 4096  # of the others in their file: a page, so that they can be mapped

_ONNX_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}


def data_file(graph: Path) -> Path:
    """Where the weights of the graph at `graph` lie."""
    return graph.with_name(f"{graph.name}.data")


class Graph:
    """An ONNX graph under construction. Methods return the name of the value they make.

    As a context manager it writes the graph to `path`, and its weights to `path` + ".data", when the block ends well,
    and leaves neither when it does not.

    `precision` is the type of matrix products: with "fp16" their weights and operands are float16 while LayerNorm,
    softmax and the residual stream stay float32, written as explicit casts so that a strongly typed TensorRT network
    keeps them.

    `int8` holds the products of weights (`linear`) that are computed in int8, by name, with the step of their input:
    explicit QuantizeLinear and DequantizeLinear, which every runtime turns into its own int8 product. The others are
    float32, as are biases; it goes with "fp32" alone, as scales of another type need opset 19.
    """

    def __init__(
        self, path: Path, name: str, precision: Precision = "fp32", int8: Mapping[str, float] | None = None
    ) -> None:
        self.path, self.name = path, name
        self.int8 = int8 or {}
        self.data = data_file(path)
        self.precision = precision
        self.matmul_dtype = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._scope: list[str] = []
        self._serial: dict[str, int] = {}
        self._weights: BinaryIO | None = None

    def __enter__(self) -> Graph:
        for file in (self.path, self.data):
            file.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._weights is not None:
            self._weights.close()
        if error is not None:
            self.data.unlink(missing_ok=True)
            return
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="svrt", ir_version=IR_VERSION)
        self.path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(self.path, full_check=True)  # types and shapes, by ONNX's own inference

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names made inside, as modules do: `layer.3/attention/...`."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def _unique(self, stem: str) -> str:
        path = "/".join([*self._scope, stem])
        serial = self._serial.get(path, 0)
        self._serial[path] = serial + 1
        return path if serial == 0 else f"{path}.{serial}"

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """A float32 input; a string in `shape` is a dimension left to the caller, such as the batch."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Give `value` out as the float32 output `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def constant(self, array: np.ndarray, stem: str) -> str:
        """A baked tensor: weights, tables (in their own dtype) or shapes (int64)."""
        name = self._unique(stem)
        if array.nbytes <= INLINE_BYTES:
            self._constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        else:
            self._constants.append(self._stored(array, name))
        return name

    def _stored(self, array: np.ndarray, name: str) -> onnx.TensorProto:
        """Write `array` to the weights' file; what the graph says of it."""
        if self._weights is None:
            self._weights = self.data.open("wb")
        self._weights.write(bytes(-self._weights.tell() % ALIGNMENT))
        where = {"location": self.data.name, "offset": self._weights.tell(), "length": array.nbytes}
        self._weights.write(np.ascontiguousarray(array).data)
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def node(self, op: str, inputs: Sequence[str], stem: str | None = None, **attributes: Any) -> str:
        """One node with one output."""
        return self.nodes(op, inputs, 1, stem, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], count: int, stem: str | None = None, **attributes: Any
    ) -> list[str]:
        """One node with `count` outputs."""
        name = self._unique(stem or op.lower())
        outputs = [name] if count == 1 else [f"{name}:{index}" for index in range(count)]
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        return outputs

    def cast(self, value: str, dtype: np.dtype) -> str:
        """Cast where matrix products are float16; nothing where everything is float32."""
        if self.precision == "fp32":
            return value
        return self.node("Cast", [value], to=_ONNX_TYPES[dtype])

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Reshape to a shape known now; one entry may be -1."""
        return self.node("Reshape", [value, self.constant(np.array(shape, np.int64), "shape")])

    def linear(self, value: str, weight: np.ndarray, bias: np.ndarray | None, stem: str) -> str:
        """`value @ weight.T + bias` in the precision of matrix products; `weight` is [out, in], as in checkpoints."""
        step = self.int8.get("/".join([*self._scope, stem]))
        if step is None:
            operands = [value, self.constant(weight.T.astype(self.matmul_dtype), f"{stem}.weight")]
        else:
            operands = [self._rounded(value, step, stem), self._int8_weight(weight, stem)]
        product = self.node("MatMul", operands, stem)
        if bias is None:
            return product
        return self.node("Add", [product, self.constant(bias.astype(self.matmul_dtype), f"{stem}.bias")], f"{stem}.add")

    def _rounded(self, value: str, step: float, stem: str) -> str:
        """`value` to int8 and back, in steps of `step`."""
        scale = [
            self.constant(np.array(step, np.float32), f"{stem}.step"),
            self.constant(np.array(0, np.int8), f"{stem}.zero"),
        ]
        value = self.node("QuantizeLinear", [value, *scale], f"{stem}.int8")
        return self.node("DequantizeLinear", [value, *scale], f"{stem}.rounded")

    def _int8_weight(self, weight: np.ndarray, stem: str) -> str:
        """`weight` [out, in] as int8 in the file, transposed, with a step for each output."""
        whole, steps = int8_weights(weight)
        constants = [self.constant(whole.T, f"{stem}.weight"), self.constant(steps, f"{stem}.weight.steps")]
        return self.node("DequantizeLinear", constants, f"{stem}.weight.rounded", axis=1)

    def layer_norm(self, value: str, weight: np.ndarray, bias: np.ndarray, epsilon: float, stem: str) -> str:
        """LayerNorm over the last axis, in float32 in and out."""
        constants = [
            self.constant(weight.astype(np.float32), f"{stem}.weight"),
            self.constant(bias.astype(np.float32), f"{stem}.bias"),
        ]
        return self.node("LayerNormalization", [value, *constants], stem, axis=-1, epsilon=epsilon)

    def gelu(self, value: str) -> str:
        """Exact GELU by Erf: runtimes fuse these five nodes, and the Gelu operator itself needs opset 20."""
        half = self.constant(np.array(0.5, self.matmul_dtype), "half")
        one = self.constant(np.array(1.0, self.matmul_dtype), "one")
        root = self.constant(np.array(np.sqrt(2.0), self.matmul_dtype), "sqrt2")
        erf = self.node("Erf", [self.node("Div", [value, root])])
        return self.node("Mul", [self.node("Mul", [value, self.node("Add", [erf, one])]), half])
