"""The decoder of a bundle: a LLaMA checkpoint and its LoRA, merged into one GGUF.

The base is a Hugging Face folder or another GGUF. Tensors pass through one at a time, in blocks of rows, so that a
3-billion-parameter checkpoint needs the memory of its largest tensor and no more. The same inputs give the same bytes.

Source: GGUF specification (ggml `docs/gguf.md`), architecture `llama`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gguf
import ml_dtypes
import numpy as np

from ..errors import CheckpointError
from ..models import llama
from ..models.checkpoint import Checkpoint
from ..models.gguf_reader import GgufReader
from .quantize import QUANTIZATIONS, quantize, whole_file
from .tokenizer import read_tokenizer

__all__ = ["QUANTIZATIONS", "Progress", "quantize", "write_merged_gguf"]

# Called with the bytes done and the bytes to do.
Progress = Callable[[int, int], None]
# Float32 rows of one tensor: [start, stop) of its first dimension.
RowReader = Callable[[int, int], np.ndarray]

# Elements converted at a time: 64 MiB in float32, which bounds what a large embedding needs beyond its own bytes.
_BLOCK_ELEMENTS = 1 << 24
_ARCHITECTURE = "llama"
# Metadata of a GGUF that tells of its own file, not of the model.
_FILE_KEYS = (
    "GGUF.",
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
    "split.",
    "quantize.",
)


class Base(Protocol):
    """A LLaMA checkpoint whose tensors are read one at a time, under GGUF names and in GGML's rotary order."""

    path: Path
    shape: llama.LlamaShape

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape, rows first, of every tensor in the order to be written."""

    def rows(self, name: str) -> RowReader:
        """Opens one tensor; its memory is let go with the reader."""

    def write_metadata(self, writer: gguf.GGUFWriter, name: str | None) -> None:
        """Adds everything but the architecture and the file type; `name` replaces the model's own name."""


class HuggingFaceBase:
    """A folder as `save_pretrained` writes it.

    Raises `CheckpointError` for another architecture, unknown or missing tensors, wrong shapes, or a missing file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._checkpoint = Checkpoint(folder)
        self._config = self._checkpoint.json("config.json")
        self.shape = llama.LlamaShape.from_config(self._config, folder / "config.json")
        self._tokenizer = read_tokenizer(self._checkpoint, self._config, self.shape.vocabulary)
        self._check_tensors()

    def _check_tensors(self) -> None:
        checkpoint, expected = self._checkpoint, self.shape.tensor_shapes()
        # Tied models may repeat the embedding as lm_head; old checkpoints hold rotary tables the configuration implies.
        ignored = {name for name in checkpoint.names if name.endswith("rotary_emb.inv_freq")}
        ignored |= {"lm_head.weight"} if self.shape.tied else set()
        unknown = [name for name in checkpoint.names if name not in expected and name not in ignored]
        missing = [name for name in expected if name not in checkpoint]
        if unknown or missing:
            what = f"unknown tensor {unknown[0]!r}" if unknown else f"tensor {missing[0]!r} is missing"
            more = len(unknown) + len(missing) - 1
            raise CheckpointError(f"{self.path}: {what}{f' (and {more} more)' if more else ''}; not a whole LLaMA")
        for name, shape in expected.items():
            if checkpoint.shape(name) != shape:
                found = list(checkpoint.shape(name))
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} is {found}, but config.json makes it {list(shape)}"
                )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """See `Base.tensors`."""
        shapes = {_gguf_name(name): shape for name, shape in self.shape.tensor_shapes().items()}
        scaling = self.shape.rope_scaling
        return shapes if scaling is None else {llama.ROPE_FACTORS: (self.shape.head_dim // 2,), **shapes}

    def rows(self, name: str) -> RowReader:
        """See `Base.rows`."""
        scaling = self.shape.rope_scaling
        if name == llama.ROPE_FACTORS and scaling is not None:
            stored = scaling.factors(self.shape.head_dim, self.shape.rope_theta)
        else:
            source = llama.hugging_face_name(name) or name
            heads = self.shape.rotary_heads(source.removesuffix(".weight"))
            if not heads:
                return lambda start, stop: self._floats(self._checkpoint.rows(source, start, stop), source)
            stored = llama.to_ggml_rows(self._floats(self._checkpoint.tensor(source), source), heads)
        return lambda start, stop: stored[start:stop]

    def _floats(self, stored: np.ndarray, name: str) -> np.ndarray:
        if stored.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
            raise CheckpointError(f"{self.path}: tensor {name!r} is {stored.dtype}, not a float")
        return stored.astype(np.float32)

    def write_metadata(self, writer: gguf.GGUFWriter, name: str | None) -> None:
        """See `Base.write_metadata`."""
        shape = self.shape
        writer.add_type("model")
        writer.add_name(name or str(self._config.get("_name_or_path") or self._checkpoint.folder.resolve().name))
        writer.add_block_count(shape.layers)
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.width)
        writer.add_feed_forward_length(shape.feed_forward)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_rope_freq_base(shape.rope_theta)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_layer_norm_rms_eps(shape.rms_epsilon)
        writer.add_vocab_size(shape.vocabulary)
        self._tokenizer.write(writer)


def _gguf_name(name: str) -> str:
    translated = llama.gguf_name(name)
    assert translated is not None, name  # every name of LlamaShape has one
    return translated


class GgufBase:
    """A GGUF of any quantization that the `gguf` package can undo.

    Raises `CheckpointError` for a file that is not a whole GGUF, another architecture, or unknown or missing tensors.
    """

    def __init__(self, file: Path) -> None:
        self.path = file
        try:
            self._reader = GgufReader(file)
        except FileNotFoundError:
            raise CheckpointError(f"{file}: no such file") from None
        except (ValueError, IndexError, KeyError, OSError, OverflowError) as exc:
            raise CheckpointError(f"{file}: not a whole GGUF file: {exc}; download it again") from exc
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shape = self._read_shape()
        self._check_tensors()

    def _value(self, key: str, default: int | float | None = None) -> int | float:
        field = self._reader.get_field(f"{_ARCHITECTURE}.{key}")
        value = default if field is None else field.contents()
        if not isinstance(value, (int, float)):
            raise CheckpointError(f"{self.path}: {_ARCHITECTURE}.{key} is {value!r}; expected one number")
        return value

    def _read_shape(self) -> llama.LlamaShape:
        field = self._reader.get_field("general.architecture")
        architecture = None if field is None else field.contents()
        if architecture != _ARCHITECTURE:
            raise CheckpointError(
                f"{self.path}: unsupported architecture {architecture!r}; the decoder must be a LLaMA"
            )
        scaling = self._reader.get_field(f"{_ARCHITECTURE}.rope.scaling.type")
        if scaling is not None and scaling.contents() != "none":
            raise CheckpointError(
                f"{self.path}: rope scaling {scaling.contents()!r} is not supported; none is, or LLaMA 3's factors"
            )
        heads, width = int(self._value("attention.head_count")), int(self._value("embedding_length"))
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise CheckpointError(f"{self.path}: tensor 'token_embd.weight' is missing; not a whole LLaMA")
        return llama.LlamaShape(
            layers=int(self._value("block_count")),
            width=width,
            feed_forward=int(self._value("feed_forward_length")),
            heads=heads,
            kv_heads=int(self._value("attention.head_count_kv", heads)),
            head_dim=int(self._value("attention.key_length", width // heads)),
            vocabulary=int(embedding.shape[-1]),
            context=int(self._value("context_length")),
            rms_epsilon=float(self._value("attention.layer_norm_rms_epsilon")),
            rope_theta=float(self._value("rope.freq_base", 10000.0)),
            rope_scaling=None,  # a GGUF carries the factors themselves, as a tensor
            tied="output.weight" not in self._tensors,
        )

    def _check_tensors(self) -> None:
        expected = {_gguf_name(name): shape for name, shape in self.shape.tensor_shapes().items()}
        expected |= {llama.ROPE_FACTORS: (self.shape.head_dim // 2,)} if llama.ROPE_FACTORS in self._tensors else {}
        for name in [*self._tensors, *expected]:
            if name not in expected:
                raise CheckpointError(f"{self.path}: unknown tensor {name!r}; not a plain LLaMA")
            if name not in self._tensors:
                raise CheckpointError(f"{self.path}: tensor {name!r} is missing; not a whole LLaMA")
            found = self.tensors()[name]
            if found != expected[name]:
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} is {list(found)}, but the metadata makes it {list(expected[name])}"
                )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """See `Base.tensors`."""
        return {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def rows(self, name: str) -> RowReader:
        """See `Base.rows`."""
        tensor = self._tensors[name]

        def read(start: int, stop: int) -> np.ndarray:
            try:
                values: np.ndarray = gguf.dequantize(tensor.data[start:stop], tensor.tensor_type)
            except NotImplementedError:
                kind = tensor.tensor_type.name
                raise CheckpointError(f"{self.path}: tensor {name!r} is {kind}, which cannot be undone") from None
            return values

        return read

    def write_metadata(self, writer: gguf.GGUFWriter, name: str | None) -> None:
        """See `Base.write_metadata`."""
        for field in self._reader.fields.values():
            if field.name.startswith(_FILE_KEYS) or (name and field.name == "general.name"):
                continue
            kinds = field.types
            if kinds[0] == gguf.GGUFValueType.ARRAY:
                # Strings stay bytes: a copy must not depend on their being valid UTF-8.
                strings = kinds[-1] == gguf.GGUFValueType.STRING
                value = [field.parts[i].tobytes() for i in field.data] if strings else field.contents()
                if value:
                    writer.add_key_value(field.name, value, kinds[0], kinds[-1])
            else:
                value = field.parts[-1].tobytes() if kinds[0] == gguf.GGUFValueType.STRING else field.contents()
                writer.add_key_value(field.name, value, kinds[0])
        if name:
            writer.add_name(name)
        if self._reader.get_field("llama.attention.key_length") is None:
            writer.add_key_length(self.shape.head_dim)
            writer.add_value_length(self.shape.head_dim)


def open_base(source: Path) -> Base:
    """The LLaMA at `source`, a GGUF file or a Hugging Face folder. Raises `CheckpointError` where it is none."""
    if source.is_file() and source.suffix == ".safetensors":
        raise CheckpointError(f"{source}: is one file of a checkpoint; give its folder, tokenizer and all")
    return GgufBase(source) if source.is_file() or source.suffix == ".gguf" else HuggingFaceBase(source)


def write_merged_gguf(
    source: Path, adapter: Path | None, out: Path, *, name: str | None = None, progress: Progress | None = None
) -> None:
    """Merge the LoRA `adapter`, if any, into the LLaMA at `source` and write it to `out` as a GGUF in float16.

    `source` is a `.gguf` file or a Hugging Face folder; merging is done in float32. Norms and rotary factors are
    written in float32. `name` replaces the model's own name in the metadata. `progress` gets bytes of tensors.

    Raises `CheckpointError` for a base or an adapter that is incomplete or not supported, and `OutputError` where
    `out` cannot be written. `out` is either whole or untouched.
    """
    base = open_base(source)
    lora = llama.Adapter(adapter) if adapter is not None else None
    if lora is not None:
        lora.check(base.shape.linear_shapes())
    with whole_file(out) as partial:
        _write(base, lora, partial, name, progress or (lambda done, total: None))


def _write(base: Base, lora: llama.Adapter | None, out: Path, name: str | None, progress: Progress) -> None:
    writer = gguf.GGUFWriter(None, _ARCHITECTURE)
    base.write_metadata(writer, name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tensors = base.tensors()
    dtypes: dict[str, np.dtype[Any]] = {
        tensor: np.dtype(np.float16 if len(shape) > 1 else np.float32) for tensor, shape in tensors.items()
    }
    total = 0
    for tensor, shape in tensors.items():
        size = int(np.prod(shape)) * dtypes[tensor].itemsize
        writer.add_tensor_info(tensor, shape, dtypes[tensor], size)
        total += size
    try:
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done = 0
        progress(done, total)
        for tensor, shape in tensors.items():
            merged = _merge(base, lora, tensor, shape, dtypes[tensor])
            writer.write_tensor_data(merged)
            done += merged.nbytes
            progress(done, total)
    finally:
        writer.close()


def _merge(
    base: Base, lora: llama.Adapter | None, name: str, shape: tuple[int, ...], dtype: np.dtype[np.floating]
) -> np.ndarray:
    """One tensor of the base plus what the adapter adds to it, summed in float32 and rounded once to `dtype`."""
    delta = _delta(base, lora, name)
    rows, merged = base.rows(name), np.empty(shape, dtype)
    step = max(1, _BLOCK_ELEMENTS // max(1, int(np.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        block = rows(start, stop)
        block = block if delta is None else block + delta[start:stop]
        with np.errstate(over="ignore"):  # reported below, by name
            merged[start:stop] = block
        if not np.isfinite(merged[start:stop]).all():
            raise CheckpointError(f"{base.path}: tensor {name!r} is not finite in {dtype.name}; its values are damaged")
    return merged


def _delta(base: Base, lora: llama.Adapter | None, name: str) -> np.ndarray | None:
    module = (llama.hugging_face_name(name) or "").removeprefix("model.").removesuffix(".weight")
    delta = lora.delta(module) if lora is not None else None
    heads = base.shape.rotary_heads(module)
    return llama.to_ggml_rows(delta, heads) if delta is not None and heads else delta
