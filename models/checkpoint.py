"""A checkpoint: the tensors of one safetensors file, or of a folder as Hugging Face lays it out.

A file is mapped only while one of its tensors is read, so that a checkpoint larger than memory can be exported: pages
of a mapping count as the process's memory until it is closed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy bfloat16, which safetensors returns
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAMES = ("model.safetensors", "adapter_model.safetensors")
# As `transformers` has it (`modeling_utils.py`): shards that a later save in one file left behind are not read.
PREFERRED_NAMES = (SINGLE_NAMES[0], INDEX_NAME, SINGLE_NAMES[1])
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")


class Checkpoint:
    """Named tensors on disk, and the JSON files beside them.

    `path` is a `.safetensors` file, or a folder holding `model.safetensors`, shards with their
    `model.safetensors.index.json`, or `adapter_model.safetensors`; the first of these counts.

    Raises `CheckpointError` where there is no such file, a shard is missing, or only pickles are found.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self._file_of = self._locate()
        self._shapes: dict[str, tuple[int, ...]] = {}

    def _locate(self) -> dict[str, Path]:
        if self.path.suffix in PICKLE_SUFFIXES:
            raise CheckpointError(f"{self.path}: a pickle can run code when it is read; convert it to safetensors")
        if self.path.is_file():
            return dict.fromkeys(self._names_in(self.path), self.path)
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: no such checkpoint file or folder")
        for name in PREFERRED_NAMES:
            file = self.path / name
            if file.is_file():
                return self._locate_shards(file) if name == INDEX_NAME else dict.fromkeys(self._names_in(file), file)
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

    def _file(self, name: str) -> Path:
        try:
            return self._file_of[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    @contextmanager
    def _mapped(self, name: str) -> Iterator[Any]:
        """The open file that holds `name`, and its errors in our words."""
        file = self._file(name)
        try:
            with safe_open(str(file), framework="numpy") as handle:
                yield handle
        except OSError as exc:
            raise CheckpointError(f"{file}: cannot be read as safetensors: {exc}") from exc
        except SafetensorError as exc:
            raise CheckpointError(f"{file}: tensor {name!r} cannot be read: {exc}") from exc
        except (AttributeError, TypeError) as exc:  # a dtype that numpy has no name for
            raise CheckpointError(f"{file}: tensor {name!r} cannot be read: {exc}") from exc

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        if name not in self._shapes:
            file = self._file(name)
            with self._mapped(name) as handle:  # of all its tensors: opening a file for each would take seconds
                held = set(handle.keys())
                for other in [n for n, where in self._file_of.items() if where == file and n in held]:
                    self._shapes[other] = tuple(handle.get_slice(other).get_shape())
        if name not in self._shapes:
            raise CheckpointError(f"{self._file(name)}: tensor {name!r} is not in it; download it again")
        return self._shapes[name]

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """One tensor in its stored dtype (float32, float16 or ml_dtypes.bfloat16).

        Raises `CheckpointError` where it is missing or has another shape than `shape`.
        """
        if shape is not None and self.shape(name) != shape:
            raise CheckpointError(f"{self.path}: tensor {name!r} is {list(self.shape(name))}, expected {list(shape)}")
        with self._mapped(name) as handle:
            array: np.ndarray = handle.get_tensor(name)
        return array

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of one tensor of two dimensions or more, in its stored dtype; see `tensor`."""
        with self._mapped(name) as handle:
            array: np.ndarray = handle.get_slice(name)[start:stop]
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
