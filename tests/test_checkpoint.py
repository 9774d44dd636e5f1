"""Reading safetensors: single files, folders, shards, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from svrt.errors import CheckpointError
from svrt.models.checkpoint import Checkpoint


def test_shards_are_read_through_their_index(tmp_path):
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, ml_dtypes.bfloat16) * 3
    save_file({"a": a}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": b}, tmp_path / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.names == ["a", "b"]
    np.testing.assert_array_equal(checkpoint.float32("a", (2, 3)), a)
    assert checkpoint.tensor("b").dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(checkpoint.float32("b"), np.full(4, 3, np.float32))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: shard .* is missing"):
        Checkpoint(tmp_path)


def test_one_file_counts_before_shards_that_an_earlier_save_left(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    save_file({"lora": np.ones(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.names == ["a"]
    np.testing.assert_array_equal(checkpoint.float32("a"), [1, 1])


def test_a_wrong_shape_and_a_missing_name_are_told(tmp_path):
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "x.safetensors")
    checkpoint = Checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"'a' is \[2, 3\], expected \[3, 2\]"):
        checkpoint.tensor("a", (3, 2))
    with pytest.raises(CheckpointError, match="'b' is missing"):
        checkpoint.tensor("b")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "vgg16.pth"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="safetensors"):
        Checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"only pickles .*{name}"):
        Checkpoint(tmp_path)


def test_a_truncated_file_is_refused_by_name(tmp_path):
    save_file({"a": np.zeros((200, 30), np.float32)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read"):
        Checkpoint(tmp_path / "x.safetensors")
