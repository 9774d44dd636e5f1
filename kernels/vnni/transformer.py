"""A vision transformer's layers in int8: what `rows.c`, `product.c` and `attention.c` compute.

Weights have a step for each output; what they are multiplied with is rounded as it comes, `GROUP` channels of a row at
a time by the largest of them; attention's own products are rounded as `attention.c` says. LayerNorm, softmax, GELU and
all sums beyond a group are float32.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_float, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..int8 import int8_weights
from . import COLUMNS, open_library

ROWS, GROUP, FOUR, UNSIGNED, WIDEST_HEAD = 6, 128, 4, 128, 128  # as in vnni.h and attention.c
_STORE, _ADD, _GELU = range(3)


class _Rows(ctypes.Structure):
    _fields_ = (
        ("values", c_void_p),
        ("steps", c_void_p),
        ("offsets", c_void_p),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
    )


class _Weights(ctypes.Structure):
    _fields_ = (
        ("values", c_void_p),
        ("steps", c_void_p),
        ("bias", c_void_p),
        ("outputs", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
    )


class Rows:
    """Room for rows in int8: `values` int8 [rows, columns] in groups, with a step (float32) and an offset for each."""

    def __init__(self, rows: int, columns: int) -> None:
        padded = -(-rows // ROWS) * ROWS
        self.values = np.zeros((padded, columns), np.int8)
        self.steps = np.zeros((padded, columns // GROUP), np.float32)
        self.offsets = np.zeros((padded, columns // GROUP), np.int32)
        pointers = (array.ctypes.data for array in (self.values, self.steps, self.offsets))
        self.struct = _Rows(*pointers, rows, columns)

    def float32(self) -> np.ndarray:
        """What the rows are, float32 [rows, columns]."""
        rows, columns = self.struct.rows, self.struct.columns
        values = self.values[:rows].reshape(rows, -1, GROUP) * self.steps[:rows, :, None]
        return values.reshape(rows, columns)


@dataclass(frozen=True)
class Weights:
    """Weights [outputs, inputs] as `packed` gives them, steps and biases float32 [outputs]."""

    values: np.ndarray
    steps: np.ndarray
    bias: np.ndarray

    @property
    def struct(self) -> _Weights:
        panels, quarters, _, _ = self.values.shape
        pointers = (array.ctypes.data for array in (self.values, self.steps, self.bias))
        return _Weights(*pointers, panels * COLUMNS, quarters * FOUR)


def packed(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`weight` [outputs, inputs] in int8, as the products read it: uint8 [outputs / 64, inputs / 4, 64, 4], 128 added,
    and the step of each output. Both sides are multiples of `GROUP`."""
    outputs, inputs = weight.shape
    whole, steps = int8_weights(weight)
    values = (whole.view(np.uint8) ^ np.uint8(UNSIGNED)).reshape(outputs // COLUMNS, COLUMNS, inputs // FOUR, FOUR)
    return np.ascontiguousarray(values.transpose(0, 2, 1, 3)), steps


class Kernels:
    """The compiled library at `path`, on so many threads. Arrays are contiguous. Raises `EngineError` where it does not
    load."""

    def __init__(self, path: Path, threads: int) -> None:
        self.threads = threads
        self._rows, self._product, self._attention, self._scratch = open_library(
            path, "svrt_rows", "svrt_product", "svrt_attention", "svrt_attention_scratch"
        )
        self._rows.argtypes = (c_void_p, c_void_p, c_void_p, c_float, POINTER(_Rows), c_int)
        self._product.argtypes = (POINTER(_Rows), POINTER(_Weights), c_int, c_void_p, POINTER(_Rows), c_int)
        self._attention.argtypes = (c_void_p, c_void_p, c_void_p, c_int, c_int, c_int, c_void_p, c_void_p, c_int)
        self._scratch.argtypes, self._scratch.restype = (c_int, c_int, c_int), c_size_t
        for function in (self._rows, self._product, self._attention):
            function.restype = None

    def round(self, x: np.ndarray, to: Rows) -> None:
        """float32 [rows, columns] in int8."""
        self._rows(x.ctypes.data, None, None, 0.0, byref(to.struct), self.threads)

    def norm(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float, to: Rows) -> None:
        """LayerNorm of float32 [rows, columns], in int8."""
        self._rows(x.ctypes.data, weight.ctypes.data, bias.ctypes.data, epsilon, byref(to.struct), self.threads)

    def product(self, rows: Rows, weights: Weights, out: np.ndarray) -> None:
        """`out` float32 [rows, outputs] = rows weights^T + bias."""
        self._product(byref(rows.struct), byref(weights.struct), _STORE, out.ctypes.data, None, self.threads)

    def add_product(self, rows: Rows, weights: Weights, out: np.ndarray) -> None:
        """`out` float32 [rows, outputs] += rows weights^T + bias."""
        self._product(byref(rows.struct), byref(weights.struct), _ADD, out.ctypes.data, None, self.threads)

    def gelu_product(self, rows: Rows, weights: Weights, to: Rows) -> None:
        """GELU of rows weights^T + bias, in int8."""
        self._product(byref(rows.struct), byref(weights.struct), _GELU, None, byref(to.struct), self.threads)

    def scratch(self, heads: int, tokens: int, dim: int) -> np.ndarray:
        """Room that `attention` of these sides works in."""
        return np.empty(self._scratch(heads, tokens, dim), np.uint8)

    def attention(
        self, qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray, heads: int, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        """Attention of `qkv` float32 [tokens, 3 x heads x dim], of which queries and keys x are rotated to x cos +
        swap(x) sin, where swap exchanges the halves of a head, and `cos`, `sin` are float32 [tokens, dim]; to `out`
        float32 [tokens, heads x dim]. Queries are scaled already. tokens: a multiple of `COLUMNS`; dim: of 4, at most
        `WIDEST_HEAD`."""
        tokens, dim = cos.shape
        pointers = (array.ctypes.data for array in (qkv, cos, sin))
        self._attention(*pointers, heads, tokens, dim, out.ctypes.data, scratch.ctypes.data, self.threads)
