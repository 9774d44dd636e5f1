"""A checkpoint: the tensors of one safetensors file, or of a folder as Hugging Face lays it out.

Tensors are read one at a time and memory-mapped, so that a checkpoint larger than memory can be exported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy bfloat16, which safetensors returns
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAMES = ("model.safetensors", "adapter_model.safetensors")
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")


class Checkpoint:
    """Named tensors on disk, and the JSON files beside them.

    `path` is a `.safetensors` file, or a folder holding `model.safetensors`, `adapter_model.safetensors`,
    or shards with their `model.safetensors.index.json`.

    Raises `CheckpointError` where there is no such file, a shard is missing, or only pickles are found.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self._file_of = self._locate()
        self._open: tuple[Path, Any] | None = None

    def _locate(self) -> dict[str, Path]:
        if self.path.suffix in PICKLE_SUFFIXES:
            raise CheckpointError(f"{self.path}: a pickle can run code when it is read; convert it to safetensors")
        if self.path.is_file():
            return dict.fromkeys(self._names_in(self.path), self.path)
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: no such checkpoint file or folder")
        if (self.path / INDEX_NAME).is_file():
            return self._locate_shards(self.path / INDEX_NAME)
        for name in SINGLE_NAMES:
            if (self.path / name).is_file():
                return dict.fromkeys(self._names_in(self.path / name), self.path / name)
        found = sorted(p.name for p in self.path.iterdir() if p.suffix in PICKLE_SUFFIXES)
        hint = f"found only pickles ({', '.join(found)}): convert them" if found else f"expected {SINGLE_NAMES[0]}"
        raise CheckpointError(f"{self.path}: no safetensors in this folder; {hint}")

    def _locate_shards(self, index: Path) -> dict[str, Path]:
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            located = {name: self.path / shard for name, shard in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise CheckpointError(f"{index}: not a shard index with a weight_map: {exc}") from exc
        for shard in sorted(set(located.values())):
            if not shard.is_file():
                raise CheckpointError(f"{shard}: shard named by {index.name} is missing; download it again")
        return located

    def _names_in(self, file: Path) -> list[str]:
        try:
            with safe_open(str(file), framework="numpy") as handle:
                return list(handle.keys())
        except (SafetensorError, OSError) as exc:
            raise CheckpointError(f"{file}: cannot be read as safetensors: {exc}") from exc

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the files."""
        return list(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def _handle(self, name: str) -> Any:
        """The open shard that holds `name`; only one shard is mapped at a time."""
        try:
            file = self._file_of[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None
        if self._open is None or self._open[0] != file:
            self._open = None
            try:
                self._open = (file, safe_open(str(file), framework="numpy"))
            except (SafetensorError, OSError) as exc:
                raise CheckpointError(f"{file}: cannot be read as safetensors: {exc}") from exc
        return self._open[1]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        try:
            return tuple(self._handle(name).get_slice(name).get_shape())
        except SafetensorError as exc:
            raise CheckpointError(f"{self._file_of[name]}: tensor {name!r} is not in it: {exc}") from exc

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """One tensor in its stored dtype (float32, float16 or ml_dtypes.bfloat16).

        Raises `CheckpointError` where it is missing or has another shape than `shape`.
        """
        try:
            array: np.ndarray = self._handle(name).get_tensor(name)
        except (SafetensorError, AttributeError, TypeError) as exc:  # the latter two: a dtype numpy has no name for
            raise CheckpointError(f"{self._file_of[name]}: tensor {name!r} cannot be read: {exc}") from exc
        if shape is not None and array.shape != shape:
            raise CheckpointError(f"{self.path}: tensor {name!r} is {list(array.shape)}, expected {list(shape)}")
        return array

    def float32(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """One tensor as float32; see `tensor`."""
        return np.asarray(self.tensor(name, shape), dtype=np.float32)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file beside the tensors, such as `config.json` or `adapter_config.json`.

        Raises `CheckpointError` where it is missing or is not a JSON object.
        """
        file = self.folder / name
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{file}: missing; it belongs beside the tensors") from None
        except OSError as exc:
            raise CheckpointError(f"{file}: cannot be read: {exc.strerror}") from None
        except (ValueError, RecursionError) as exc:
            raise CheckpointError(f"{file}: not JSON: {exc}") from exc
        if not isinstance(value, dict):
            raise CheckpointError(f"{file}: expected a JSON object")
        return value
