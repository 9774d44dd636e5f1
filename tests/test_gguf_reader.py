"""Our reader of GGUF files against the package's own."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from svrt.models.gguf_reader import GgufReader


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with every kind of value that a vocabulary has, and two tensors."""
    writer = gguf.GGUFWriter(tmp_path / "some.gguf", "llama")
    writer.add_context_length(77)
    writer.add_rope_freq_base(10000.5)
    writer.add_token_list([b"a", "caf\u00e9".encode(), b"", b"\xff\xfe"])
    writer.add_token_types([1, 1, 3, 6])
    writer.add_tensor("vector", np.arange(5, dtype=np.float32))
    writer.add_tensor("matrix", np.arange(6, dtype=np.float16).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "some.gguf"


def test_fields_and_tensors_are_the_packages(file: Path) -> None:
    ours, theirs = GgufReader(file), gguf.GGUFReader(file)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        assert (ours.fields[name].types, ours.fields[name].data) == (field.types, field.data)
        assert [part.tobytes() for part in ours.fields[name].parts] == [part.tobytes() for part in field.parts]
    for mine, tensor in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.tensor_type, mine.data_offset) == (tensor.name, tensor.tensor_type, tensor.data_offset)
        np.testing.assert_array_equal(mine.data, tensor.data)


def test_nothing_of_it_is_a_memmap(file: Path) -> None:
    """Which is what makes it fast."""
    reader = GgufReader(file)
    parts = [part for field in reader.fields.values() for part in field.parts]
    assert {type(array) for array in [reader.data, *parts, *(t.data for t in reader.tensors)]} == {np.ndarray}


def test_a_file_cut_short_is_an_error_as_before(file: Path) -> None:
    for size in (0, 10, 100, file.stat().st_size // 2):
        (cut := file.with_name("cut.gguf")).write_bytes(file.read_bytes()[:size])
        with pytest.raises((ValueError, IndexError, KeyError, OverflowError)):
            GgufReader(cut)
