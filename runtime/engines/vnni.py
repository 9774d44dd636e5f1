"""svrt's own kernels on the processor, where it has AVX-512 VNNI: VGG-16, and large vision transformers.

They are C (`svrt.kernels.vnni`), compiled at their first use; weights are arranged for them once, in a file that is
mapped.
"""

from __future__ import annotations

from pathlib import Path

from . import EngineStore
from .onnx_chain import NotAChainError, chain_of
from .onnx_graph import read
from .vit import VisionTransformer
from .vnni_encoder import VnniEncoder
from .vnni_vgg16 import VnniVgg16


def load(path: Path, _backend: str, _precision: str, store: EngineStore | None) -> VnniEncoder | VnniVgg16:
    """Load the graph at `path`; see `svrt.runtime.engines.load`. Raises `UnsuitedError` for other graphs."""
    graph = read(path)
    try:
        chain = chain_of(path, graph)
    except NotAChainError:
        return VnniEncoder(path, VisionTransformer.of(path, graph), store)
    return VnniVgg16(path, chain, store)
