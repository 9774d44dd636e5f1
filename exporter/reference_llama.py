"""LLaMA in plain numpy float32, as its source defines it: what an exported decoder is held against.

Nothing is shared with the code that writes the GGUF: names, rotary order and the stretch of rotary frequencies are
written anew, the base is read as it was published and the LoRA stays apart, so that a mistake there cannot hide. Every
sequence passes a weight while that weight is in memory, so a decoder of three billion parameters needs the memory of
its largest matrix.

Sources: transformers `modeling_llama.py` and `_compute_llama3_parameters` of `modeling_rope_utils.py`; GGUF
specification (ggml `docs/gguf.md`) and llama.cpp's rotation of neighbouring rows (`GGML_ROPE_TYPE_NORMAL`); LoRA, arXiv
2106.09685, equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np

from ..errors import CheckpointError
from ..models.checkpoint import Checkpoint
from ..models.gguf_reader import GgufReader
from ..models.llama import Adapter, LlamaShape, RopeScaling

# Called with the layers done and the layers there are.
Progress = Callable[[int, int], None]

# Elements of the output matrix in memory at once: 64 MiB in float32; whole, LLaMA 3.2 3B's would take 1.5 GiB.
_BLOCK_ELEMENTS = 1 << 24
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"
# GGUF specification, "Standardized tensor names", by transformers' names.
_GGUF_TOPS = {EMBEDDING: "token_embd", FINAL_NORM: "output_norm", HEAD: "output"}
_GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Shape:
    """The numbers a forward pass needs. `frequencies` are the rotary ones, radians per position, float32 [head_dim/2].

    `interleaved` says that rows of the query and key projections lie in GGML's order: a rotary pair is two neighbours.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    frequencies: np.ndarray
    interleaved: bool


class Weights(Protocol):
    """A published LLaMA, its tensors under transformers' module names and as stored."""

    shape: Shape

    def __contains__(self, module: str) -> bool: ...

    def length(self, module: str) -> int:
        """Rows of a module's weight."""

    def rows(self, module: str, start: int, stop: int) -> np.ndarray:
        """Rows of a module's weight, float32; a norm's elements are its rows."""


class ReferenceLlama:
    """The LLaMA at `source`, a Hugging Face folder or a GGUF file, with the LoRA in `adapter` beside it, unmerged.

    Raises `CheckpointError` where the base or the adapter cannot be read.
    """

    def __init__(self, source: Path, adapter: Path | None = None) -> None:
        self._weights: Weights = _Gguf(source) if source.is_file() or source.suffix == ".gguf" else _Folder(source)
        self._adapter = Adapter(adapter) if adapter is not None else None
        self.shape = self._weights.shape

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """Embeddings of token ids: float32 [n, width]. Raises `CheckpointError` for an id the embedding lacks."""
        unique, places = np.unique(np.asarray(tokens, np.int64), return_inverse=True)
        size = self._weights.length(EMBEDDING)
        if len(unique) and not (unique[0] >= 0 and unique[-1] < size):
            raise CheckpointError(f"token ids {unique[0]} to {unique[-1]} do not fit an embedding of {size} rows")
        rows = [self._weights.rows(EMBEDDING, token, token + 1) for token in unique.tolist()]
        table: np.ndarray = np.concatenate([np.empty((0, self.shape.width), np.float32), *rows])
        return np.asarray(table[places])

    def logits(
        self, sequences: Sequence[np.ndarray], *, last: bool = False, progress: Progress = lambda *_: None
    ) -> list[np.ndarray]:
        """Logits behind every position of each sequence, or behind its `last` one alone.

        A sequence is float32 [n, width], of tokens and of a clip alike; they do not see each other. Returns float32
        [n, vocabulary], or [1, vocabulary], for each.
        """
        ends = np.cumsum([len(sequence) for sequence in sequences])[:-1]
        hidden = np.concatenate([np.asarray(sequence, np.float32) for sequence in sequences])
        for layer in range(self.shape.layers):
            progress(layer, self.shape.layers)
            hidden = self._layer(hidden, ends, f"model.layers.{layer}")
        progress(self.shape.layers, self.shape.layers)
        wanted = [part[-1:] if last else part for part in np.split(self._norm(hidden, FINAL_NORM), ends)]
        result = self._head(np.concatenate(wanted))
        return np.split(result, np.cumsum([len(part) for part in wanted])[:-1])

    def _layer(self, hidden: np.ndarray, ends: np.ndarray, name: str) -> np.ndarray:
        """`LlamaDecoderLayer` over sequences laid one behind the other: float32 [n, width]."""
        hidden = hidden + self._attention(self._norm(hidden, f"{name}.input_layernorm"), ends, f"{name}.self_attn")
        value = self._norm(hidden, f"{name}.post_attention_layernorm")
        gate, up = (self._linear(value, f"{name}.mlp.{part}") for part in ("gate_proj", "up_proj"))
        return np.asarray(hidden + self._linear(_silu(gate) * up, f"{name}.mlp.down_proj"))

    def _attention(self, value: np.ndarray, ends: np.ndarray, name: str) -> np.ndarray:
        shape = self.shape
        query = self._rotary_linear(value, f"{name}.q_proj", shape.heads)
        key = self._rotary_linear(value, f"{name}.k_proj", shape.kv_heads)
        values = self._linear(value, f"{name}.v_proj").reshape(-1, shape.kv_heads, shape.head_dim)
        parts = (np.split(array, ends) for array in (query, key, values))
        mixed = [_attend(q, k, v, shape.frequencies) for q, k, v in zip(*parts, strict=True)]
        return self._linear(np.concatenate(mixed), f"{name}.o_proj")

    def _rotary_linear(self, value: np.ndarray, module: str, heads: int) -> np.ndarray:
        """A query or key projection [n, heads, head_dim], each head's first half against its second to be rotated."""
        result = (value @ self._weight(module).T).reshape(len(value), heads, -1)
        if self.shape.interleaved:
            result = np.concatenate([result[..., 0::2], result[..., 1::2]], axis=-1)
        return np.asarray(result + self._low_rank(value, module).reshape(len(value), heads, -1))

    def _linear(self, value: np.ndarray, module: str) -> np.ndarray:
        return np.asarray(value @ self._weight(module).T + self._low_rank(value, module))

    def _low_rank(self, value: np.ndarray, module: str) -> np.ndarray:
        """What the LoRA adds behind `module`: value · Aᵀ · Bᵀ · scale, or zeros: float32 [n, out]."""
        factors = None if self._adapter is None else self._adapter.factors(module.removeprefix("model."))
        if factors is None:
            return np.zeros((len(value), self._weights.length(module)), np.float32)
        a, b, scale = factors
        return np.asarray(value @ a.T @ b.T * np.float32(scale))

    def _norm(self, value: np.ndarray, module: str) -> np.ndarray:
        scale = np.sqrt(np.mean(value**2, axis=-1, keepdims=True) + np.float32(self.shape.epsilon))
        return np.asarray(value / scale * self._weight(module))

    def _head(self, value: np.ndarray) -> np.ndarray:
        module = HEAD if HEAD in self._weights else EMBEDDING
        size, step = self._weights.length(module), max(1, _BLOCK_ELEMENTS // self.shape.width)
        result = np.empty((len(value), size), np.float32)
        for start in range(0, size, step):
            stop = min(size, start + step)
            result[:, start:stop] = value @ self._weights.rows(module, start, stop).T
        return result

    def _weight(self, module: str) -> np.ndarray:
        return self._weights.rows(module, 0, self._weights.length(module))


def decoder_logits(
    source: Path,
    adapter: Path | None,
    prompt: tuple[Sequence[int], Sequence[int]],
    clips: Sequence[np.ndarray],
    progress: Progress = lambda *_: None,
) -> list[np.ndarray]:
    """Logits of the token next to [prefix][video tokens][suffix] for each clip: float32 [vocabulary] each.

    `prompt` is the token ids of prefix and suffix as the runtime's decoder reads them; a clip is float32 [n, width].
    `progress` gets layers. Raises `CheckpointError` as `ReferenceLlama` does.
    """
    llama = ReferenceLlama(source, adapter)
    prefix, suffix = (llama.embed(tokens) for tokens in prompt)
    sequences = [np.concatenate([prefix, clip, suffix]) for clip in clips]
    return [row[0] for row in llama.logits(sequences, last=True, progress=progress)]


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits less their mean over the vocabulary, which softmax does not see but an error measure would: float32."""
    return np.asarray(logits - logits.mean(axis=-1, keepdims=True, dtype=np.float64), dtype=np.float32)


def _attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Causal grouped-query attention of one sequence.

    `query` is float32 [n, heads, d]; `key` and `value` are [n, kv_heads, d], each for a run of neighbouring query
    heads. Returns [n, heads · d]. One head at a time: its scores [n, n] are what a long sequence costs.
    """
    query, key = _rotate(query, frequencies), _rotate(key, frequencies)
    count, heads, width = query.shape
    group = heads // key.shape[1]
    later = np.triu(np.ones((count, count), bool), 1)
    mixed = np.empty_like(query)
    for head in range(heads):
        scores = query[:, head] @ key[:, head // group].T * np.float32(width**-0.5)
        scores[later] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed[:, head] = weights @ value[:, head // group]
    return mixed.reshape(count, heads * width)


def _rotate(value: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """`apply_rotary_pos_emb`: the first half of each head [n, heads, d] turned against the second by its position."""
    angle = np.arange(len(value), dtype=np.float32)[:, None, None] * frequencies
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = np.split(value, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _silu(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(-x) is infinite where the result is 0
        return np.asarray(value / (1.0 + np.exp(-value)))


def _frequencies(head_dim: int, theta: float) -> np.ndarray:
    return np.asarray(1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim), dtype=np.float32)


def _llama3_frequencies(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """`_compute_llama3_parameters`: by wavelength, short ones stay, long ones are slowed, those between are blended."""
    wavelength = 2 * math.pi / frequencies
    longest, shortest = (
        scaling.original_context / limit for limit in (scaling.low_freq_factor, scaling.high_freq_factor)
    )
    smooth = scaling.original_context / wavelength - scaling.low_freq_factor
    smooth /= scaling.high_freq_factor - scaling.low_freq_factor
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    slowed = np.where(wavelength > longest, frequencies / scaling.factor, frequencies)
    between = (wavelength >= shortest) & (wavelength <= longest)
    return np.where(between, blended, slowed).astype(np.float32)


class _Folder:
    """`Weights` of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        self._checkpoint = Checkpoint(folder)
        config = LlamaShape.from_config(self._checkpoint.json("config.json"), folder / "config.json")
        frequencies = _frequencies(config.head_dim, config.rope_theta)
        scaling = config.rope_scaling
        self.shape = Shape(
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            epsilon=config.rms_epsilon,
            frequencies=frequencies if scaling is None else _llama3_frequencies(frequencies, scaling),
            interleaved=False,
        )
        self._tied = config.tied

    def __contains__(self, module: str) -> bool:
        # A tied model may repeat its embedding as lm_head, which transformers does not read.
        return f"{module}.weight" in self._checkpoint and not (self._tied and module == HEAD)

    def length(self, module: str) -> int:
        return self._checkpoint.shape(f"{module}.weight")[0]

    def rows(self, module: str, start: int, stop: int) -> np.ndarray:
        name = f"{module}.weight"
        if start == 0 and stop == self.length(module):
            return self._checkpoint.float32(name)
        return np.asarray(self._checkpoint.rows(name, start, stop), dtype=np.float32)


class _Gguf:
    """`Weights` of a GGUF, quantized or not. Tensors are read, not mapped: a mapped file would count as memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            reader = GgufReader(file)
        except (ValueError, IndexError, KeyError, OSError, OverflowError) as exc:
            raise CheckpointError(f"{file}: not a whole GGUF file: {exc}") from exc
        self._tensors = {
            tensor.name: _Stored(
                tensor.data_offset, tensor.tensor_type, tuple(int(size) for size in reversed(tensor.shape))
            )
            for tensor in reader.tensors
        }
        self.shape = self._shape(reader)

    def _shape(self, reader: GgufReader) -> Shape:
        def number(key: str, default: float | None = None) -> float:
            field = reader.get_field(f"llama.{key}")
            value = default if field is None else field.contents()
            if not isinstance(value, (int, float)):
                raise CheckpointError(f"{self._file}: llama.{key} is {value!r}; expected one number")
            return float(value)

        heads, width = int(number("attention.head_count")), int(number("embedding_length"))
        head_dim = int(number("attention.key_length", width // heads))
        frequencies = _frequencies(head_dim, number("rope.freq_base", 10000.0))
        if "rope_freqs.weight" in self._tensors:
            frequencies = frequencies / self._read("rope_freqs.weight", 0, head_dim // 2)
        return Shape(
            layers=int(number("block_count")),
            width=width,
            heads=heads,
            kv_heads=int(number("attention.head_count_kv", heads)),
            head_dim=head_dim,
            epsilon=number("attention.layer_norm_rms_epsilon"),
            frequencies=frequencies,
            interleaved=True,
        )

    def __contains__(self, module: str) -> bool:
        return _gguf_name(module) in self._tensors

    def length(self, module: str) -> int:
        return self._stored(_gguf_name(module)).shape[0]

    def rows(self, module: str, start: int, stop: int) -> np.ndarray:
        return self._read(_gguf_name(module), start, stop)

    def _stored(self, name: str) -> _Stored:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self._file}: tensor {name!r} is missing; not a whole LLaMA") from None

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of one tensor, its quantization undone: float32."""
        stored = self._stored(name)
        # Elements of a vector are rows of one.
        shape = (stop - start, *stored.shape[1:]) if len(stored.shape) > 1 else (stop - start,)
        block, block_bytes = gguf.GGML_QUANT_SIZES[stored.kind]
        row = math.prod(stored.shape[1:])
        first, count = start * row // block * block_bytes, (stop - start) * row // block * block_bytes
        raw = np.fromfile(self._file, np.uint8, count, offset=stored.offset + first)
        try:
            values = gguf.dequantize(raw.reshape(shape[0], -1), stored.kind)
        except NotImplementedError:
            raise CheckpointError(f"{self._file}: {name!r} is {stored.kind.name}, which cannot be undone") from None
        return np.asarray(values, dtype=np.float32).reshape(shape)


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies: bytes from the start of the file, type, and shape with rows first."""

    offset: int
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]


def _gguf_name(module: str) -> str:
    if module in _GGUF_TOPS:
        return f"{_GGUF_TOPS[module]}.weight"
    index, part = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{index}.{_GGUF_PARTS[part]}.weight"
