"""Products in int8 without calibration: weights by output channel, inputs by groups of channels as they come.

OpenVINO's CPU plugin, given weights as int8 times a scale, rounds what they are multiplied with in every run, so many
channels of a row at a time by the largest of them: nothing about footage has to be known before, and an outlier costs
its own group alone. Attention's own products, LayerNorm, softmax and GELU stay as they were.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from ...kernels.int8 import int8_weights

GROUP = 128  # channels of a row that share a scale: 32 take a sixth longer, and are no closer


def quantize_products(graph: ov.Model) -> None:
    """Give the products of a float32 graph with constant matrices int8 weights and a scale by output channel.

    The first and the last stay: patches and what is given to the decoder, 1 % of the arithmetic.
    """
    found = [(node, _matrix(node)) for node in graph.get_ordered_ops()]
    products = [(node, matrix) for node, matrix in found if matrix is not None]
    for product, matrix in products[1:-1]:
        how, weights = product.get_attributes(), np.asarray(matrix.data, np.float32)
        whole, steps = int8_weights(weights if how["transpose_b"] else np.ascontiguousarray(weights.T))
        dequantized = opset.multiply(opset.convert(opset.constant(whole), "f32"), opset.constant(steps[:, None]))
        readers = product.output(0).get_target_inputs()
        anew = opset.matmul(product.input_value(0), dequantized, how["transpose_a"], True)
        anew.set_friendly_name(product.get_friendly_name())
        for reader in readers:
            reader.replace_source_output(anew.output(0))
    graph.validate_nodes_and_infer_types()


def _matrix(node: ov.Node) -> ov.Node | None:
    """The constant matrix that a product multiplies by; None of other nodes and products."""
    if node.get_type_name() != "MatMul":
        return None
    source = node.input_value(1).get_node()
    if source.get_type_name() == "Convert":  # from float16
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" and len(source.shape) == 2 else None
