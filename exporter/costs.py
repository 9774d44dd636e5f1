"""What the parts of a bundle cost: operations, bytes and memory, from the graphs and the GGUF without their weights.

A graph's shapes come from ONNX's own inference; a GGUF's numbers from its metadata and tensor list.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from onnx import TensorProto, helper

from ..errors import BundleError
from ..models.gguf_reader import GgufReader
from ..runtime.decoder import silence
from .devices import Rates

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}  # another shape of the same bytes
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
_UNQUANTIZED = ("F32", "F16", "BF16")
_CONTEXT_STEP = 256  # llama.cpp rounds a context's positions up to this
_KV_BYTES = 2  # keys and values are float16


@dataclass(frozen=True)
class Operation:
    """One node of a graph: `flops` of its products (a multiply-add is two; other arithmetic is not counted), the type
    of their operands, and the bytes it reads and writes. `weights` is the part of `moved` that lies in the file."""

    name: str
    kind: str
    precision: str
    flops: int
    weights: int
    moved: int


@dataclass(frozen=True)
class GraphCosts:
    """What one run of a graph costs at `batch`. `weights` and `activations` (at their peak) are bytes of memory."""

    operations: list[Operation]
    weights: int
    activations: int
    batch: int

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)

    def floor_s(self, rates: Rates) -> float:
        """Seconds of products alone: each at the full rate or at the speed its weights are read, whichever is slower.

        Everything between them is taken to be fused, and to stay on the chip: no engine can be faster.
        """
        return sum(
            max(operation.flops / rate_of(rates, operation.precision), operation.weights / rates.bandwidth)
            for operation in self.operations
            if operation.flops
        )

    def unfused_s(self, rates: Rates) -> float:
        """Seconds where every operation reads its inputs from memory and writes its outputs there, at full speed."""
        return sum(
            max(operation.flops / rate_of(rates, operation.precision), operation.moved / rates.bandwidth)
            for operation in self.operations
        )


def rate_of(rates: Rates, precision: str) -> float:
    """Operations a second of `fp32`, `fp16` or `int8`."""
    rate: float = getattr(rates, precision)
    return rate


def graph_costs(path: Path, batch: int = 1) -> GraphCosts:
    """Costs of the ONNX graph at `path`, free dimensions set to `batch`; its weights are not read.

    Raises `BundleError` where the file is no ONNX graph, or a shape in it cannot be told.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.WhichOneof("value") != "dim_value":
                    dim.dim_value = batch
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as exc:  # protobuf's and ONNX's exceptions share no base but Exception
        reason = str(exc).strip().partition("\n")[0]
        raise BundleError(f"{path}: not a graph whose shapes can be told: {reason}; export the bundle again") from exc
    graph = _Graph(path, model.graph)
    return GraphCosts(
        [graph.operation(node) for node in model.graph.node], graph.weights, graph.activation_peak(), batch
    )


class _Graph:
    """A graph with every value's shape and type. Bytes of what a file holds are those of its stored form."""

    def __init__(self, path: Path, graph: onnx.GraphProto) -> None:
        self.path, self.graph = path, graph
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
            self.types[value.name] = tensor.elem_type
        self.stored: dict[str, int] = {}
        for constant in graph.initializer:
            self.shapes[constant.name], self.types[constant.name] = tuple(constant.dims), constant.data_type
            self.stored[constant.name] = self.bytes(constant.name)
        self.weights = sum(self.stored.values())
        self.dequantized: set[str] = set()
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                self.dequantized.add(node.output[0])
                if node.input[0] in self.stored:
                    self.stored[node.output[0]] = self.stored[node.input[0]]

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None or 0 in shape:
            raise BundleError(f"{self.path}: the shape of {name!r} cannot be told; export the bundle again")
        return shape

    def bytes(self, name: str) -> int:
        itemsize = helper.tensor_dtype_to_np_dtype(self.types[name]).itemsize if name in self.types else 0
        return int(math.prod(self.shape(name))) * itemsize

    def operation(self, node: onnx.NodeProto) -> Operation:
        inputs = [name for name in node.input if name]
        free = node.op_type in VIEWS or (node.op_type == "DequantizeLinear" and inputs[0] in self.stored)
        weights = sum(self.stored.get(name, 0) for name in inputs)
        read = sum(self.stored.get(name) or self.bytes(name) for name in inputs)
        return Operation(
            name=node.name,
            kind=node.op_type,
            precision=self.precision(node),
            flops=self.flops(node),
            weights=0 if free else weights,
            moved=0 if free else read + sum(self.bytes(name) for name in node.output if name),
        )

    def precision(self, node: onnx.NodeProto) -> str:
        """Type of a product's operands; int8 where both come from quantized values."""
        operands = node.input[:2]
        if all(name in self.dequantized for name in operands):
            return "int8"
        kind = self.types.get(operands[0]) if operands else None
        return _TYPES.get(kind, "fp32") if kind is not None else "fp32"

    def flops(self, node: onnx.NodeProto) -> int:
        if node.op_type == "MatMul":
            return 2 * math.prod(self.shape(node.output[0])) * self.shape(node.input[0])[-1]
        if node.op_type == "Gemm":
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            return 2 * math.prod(self.shape(node.output[0])) * self.shape(node.input[0])[0 if turned else -1]
        if node.op_type == "Conv":  # the weight is [out, in / groups, ...]: one output takes in / groups x kernel
            return 2 * math.prod(self.shape(node.output[0])) * math.prod(self.shape(node.input[1])[1:])
        return 0

    def activation_peak(self) -> int:
        """The most bytes of values alive at once, nodes run in the file's order and nothing fused or done in place.

        Inputs and outputs live for the whole run, as the caller holds them; a view shares its source's bytes.
        """
        nodes, source = self.graph.node, _view_sources(self.graph)
        last: dict[str, int] = {}
        for step, node in enumerate(nodes):
            for name in (*node.input, *node.output):
                last[source.get(name, name)] = step
        held = [*self.graph.input, *self.graph.output]
        last |= {source.get(value.name, value.name): len(nodes) for value in held}
        ending: dict[int, list[str]] = {}
        for name, step in last.items():
            ending.setdefault(step, []).append(name)
        alive = {value.name: self.bytes(value.name) for value in self.graph.input if value.name not in self.stored}
        now = peak = sum(alive.values())
        for step, node in enumerate(nodes):
            for name in node.output:
                if name and name not in source and name not in self.stored:
                    alive[name] = self.bytes(name)
                    now += alive[name]
            peak = max(peak, now)
            now -= sum(alive.pop(name, 0) for name in ending.get(step, ()))
        return peak


def _view_sources(graph: onnx.GraphProto) -> dict[str, str]:
    """For every view, the value whose bytes it shows."""
    source: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in VIEWS:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
    return source


@dataclass(frozen=True)
class DecoderCosts:
    """A LLaMA-type GGUF in numbers. Sizes are bytes as stored; `block` is one pass through all layers, `head` the
    product that gives the logits, `embedding` the table of tokens (the same tensor as `head` where `tied`)."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    parameters: int
    block_parameters: int
    block_bytes: int
    head_bytes: int
    embedding_bytes: int
    tied: bool
    precision: str

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one position, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _KV_BYTES

    def flops(self, tokens: int, behind: int, logits: int) -> int:
        """Operations of `tokens` positions decoded at once behind `behind` others, with `logits` of them read."""
        positions = tokens * behind + tokens * (tokens + 1) // 2  # each attends to those before it and to itself
        attention = 4 * self.layers * self.heads * self.head_dim * positions
        return 2 * self.block_parameters * tokens + attention + 2 * self.vocabulary * self.width * logits

    def compute_bytes(self, batch: int, positions: int) -> int:
        """llama.cpp's scratch for `batch` tokens at once, and the logits of one.

        Per token 4 vectors of the model's width and 3 of the feed-forward's in float32, and a float16 mask over the
        positions: this gives what llama.cpp logs to within 1 % for LLaMA 3.2 1B and 3B, SmolLM2 and a made-up shape.
        """
        per_token = 4 * (4 * self.width + 3 * self.feed_forward) + 2 * context_size(positions)
        return batch * per_token + 4 * self.vocabulary


def context_size(positions: int) -> int:
    """Positions that llama.cpp makes room for where `positions` are asked for."""
    return -(-positions // _CONTEXT_STEP) * _CONTEXT_STEP


def decoder_costs(path: Path) -> DecoderCosts:
    """Costs of the GGUF at `path`. Raises `BundleError` where it is no GGUF of the LLaMA architecture."""
    try:
        reader = GgufReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as exc:
        raise BundleError(f"{path}: not a whole GGUF file: {exc}; export the bundle again") from exc
    number = _numbers(reader, path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    block = [tensor for name, tensor in tensors.items() if name.startswith("blk.") and len(tensor.shape) > 1]
    embedding = tensors.get("token_embd.weight")
    if embedding is None or not block:
        raise BundleError(f"{path}: holds no layers or no token embedding; export the bundle again")
    head = tensors.get("output.weight", embedding)
    heads, width = number("attention.head_count"), number("embedding_length")
    quantized = any(tensor.tensor_type.name not in _UNQUANTIZED for tensor in block)
    return DecoderCosts(
        layers=number("block_count"),
        width=width,
        feed_forward=number("feed_forward_length"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", width // heads),
        vocabulary=int(embedding.shape[-1]),
        parameters=sum(int(tensor.n_elements) for tensor in tensors.values()),
        block_parameters=sum(int(tensor.n_elements) for tensor in block),
        block_bytes=sum(int(tensor.n_bytes) for tensor in block),
        head_bytes=int(head.n_bytes),
        embedding_bytes=int(embedding.n_bytes),
        tied=head is embedding,
        precision="int8" if quantized else "fp16",
    )


def _numbers(reader: GgufReader, path: Path) -> Callable[..., int]:
    """Reads whole numbers of the metadata by their name below `llama.`."""

    def number(key: str, default: int | None = None) -> int:
        field = reader.get_field(f"llama.{key}")
        value = default if field is None else field.contents()
        if not isinstance(value, int):
            raise BundleError(f"{path}: its metadata has no number llama.{key}; the decoder must be a LLaMA")
        return value

    return number


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of the fixed text before and after a clip's video tokens."""

    prefix: int
    suffix: int


def prompt_tokens(path: Path, prefix: str, suffix: str) -> PromptTokens:
    """Tokens of the prompt as `svrt.runtime.decoder` makes them, from the GGUF's vocabulary alone.

    Raises `BundleError` where llama.cpp cannot read the vocabulary.
    """
    import llama_cpp

    silence(llama_cpp)
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise BundleError(f"{path}: llama.cpp cannot read its vocabulary; export the bundle again")
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        before, after = (_tokenize(llama_cpp, vocabulary, text) for text in (prefix, suffix))
        bos = llama_cpp.llama_vocab_bos(vocabulary)
        added = llama_cpp.llama_vocab_get_add_bos(vocabulary) and before[:1] != [bos]
        return PromptTokens(len(before) + bool(added), len(after))
    finally:
        llama_cpp.llama_model_free(model)


def _tokenize(library: ModuleType, vocabulary: Any, text: str) -> list[int]:
    encoded = text.encode()
    buffer = (library.llama_token * (len(encoded) + 1))()
    count = library.llama_tokenize(vocabulary, encoded, len(encoded), buffer, len(buffer), False, True)
    return list(buffer[: max(0, count)])
