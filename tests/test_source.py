"""Sources that are here: nothing of the hub is asked or imported for them."""

import sys

import pytest
from svrt.errors import RecipeError
from svrt.exporter.source import Found, resolve


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def test_a_path_here_comes_before_the_hub(tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve("owner/name", tmp_path) == Found(tmp_path / "owner" / "name", "owner/name", None)


def test_a_local_source_is_displayed_as_it_was_written(tmp_path):
    (tmp_path / "odd@name").touch()
    assert resolve("odd@name", tmp_path).pinned == "odd@name"
    assert Found(tmp_path, "a/b@main", "c" * 40).pinned == f"a/b@{'c' * 40}"


@pytest.mark.parametrize(
    "source", ["./owner/name", "absent", "weights/vgg16.safetensors", "weights/vgg16.pth", "x/y.gguf", "a/b/c"]
)
def test_a_path_that_is_not_here_is_never_sought_on_the_hub(tmp_path, source):
    with pytest.raises(RecipeError, match=r"no such file or folder; sources are relative to .*OWNER/NAME"):
        resolve(source, tmp_path)


def test_the_home_of_nobody_is_a_plain_error(tmp_path):
    with pytest.raises(RecipeError, match="~nobody-of-that-name/x: "):
        resolve("~nobody-of-that-name/x", tmp_path)
