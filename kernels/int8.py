"""Weights in int8: a step for each output, so that its largest weight is 127 of them."""

from __future__ import annotations

import numpy as np

INT8_MAX = 127  # -128 is not used: TensorRT takes only zero points of 0, and a range as wide on both sides


def int8_steps(weight: np.ndarray) -> np.ndarray:
    """The step of each output of `weight` [out, in] in int8: its largest value becomes 127 of them. float32 [out]."""
    return np.asarray(np.maximum(np.abs(weight).max(axis=1) / INT8_MAX, np.finfo(np.float32).tiny), np.float32)


def int8_weights(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`weight` [out, in] as int8 [out, in], and the step of each output, float32 [out]."""
    steps = int8_steps(weight)
    return np.rint(weight / steps[:, None]).astype(np.int8), steps
