"""Looking around in an OpenVINO graph: what a value is, and who reads it."""

from __future__ import annotations

from typing import Any

import numpy as np


def constant(value: Any) -> np.ndarray | None:
    """The values of a constant, float32, whatever it is stored in and in the shape that it is read in; None of what is
    computed."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or value.get_partial_shape().is_dynamic:
        return None
    return np.asarray(node.data, np.float32).reshape(list(value.get_shape()))


def only_reader(value: Any) -> Any:
    """The only node that reads a value, but for its shape; None where there are more."""
    nodes = [reader.get_node() for reader in value.get_target_inputs()]
    nodes = [node for node in nodes if node.get_type_name() != "ShapeOf"]
    return nodes[0] if len(nodes) == 1 else None
