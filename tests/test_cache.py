"""The user's cache: where it may be missing, and what is not kept there for ever."""

import fcntl
import os
import subprocess
import time
from pathlib import Path

import pytest
import svrt
from svrt import cache
from svrt.errors import BundleError, OutputError

OTHER, HALF = "pocket-0123456789ab", ".pocket-ba9876543210.partial"


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home folder, as services and containers run under."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


def test_a_bundle_that_is_given_needs_no_home_folder(pocket, clip, homeless):
    assert (cache.seal_folder(), cache.engine_folder()) == (None, None)
    with svrt.load(pocket.path, max_tokens=2) as model:
        assert len(model.describe(clip).keyframes) == 16


def test_the_built_in_bundle_needs_one(homeless):
    with pytest.raises(OutputError, match="set XDG_CACHE_HOME, or give --bundle"):
        cache.open_bundle(None)


@pytest.fixture
def exporting(tmp_path, monkeypatch):
    """A cache whose built-in bundle is there as soon as it is exported; gives its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "_export", lambda path: path.mkdir())

    def load(path, _seals):
        if not path.is_dir():
            raise BundleError(f"{path}: no such folder")
        return path

    monkeypatch.setattr(cache.seal, "load", load)
    (tmp_path / "svrt").mkdir()
    return tmp_path / "svrt"


def test_bundles_of_other_versions_go_after_a_week_and_nothing_else_does(exporting):
    long_ago = time.time() - 8 * 86400
    for name in (OTHER, HALF, "pocket-fresh0000000", "pocket", "engines", "pocket-0123456789ab-mine"):
        (exporting / name).mkdir()
        (exporting / name / "file").write_text("x")
        os.utime(exporting / name, (long_ago, long_ago))
    (exporting / "pocket-aaaaaaaaaaaa").mkdir()  # of today: another version may use it
    found = cache.built_in_bundle()
    kept = {"pocket-fresh0000000", "pocket", "engines", "pocket-0123456789ab-mine", "pocket-aaaaaaaaaaaa", found.name}
    assert {path.name for path in exporting.iterdir()} == kept


def test_a_file_system_without_locks_is_used_without(exporting, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert cache.built_in_bundle().is_dir()


def test_an_export_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(BundleError, match="not exported: Cannot allocate memory; run: svrt export pocket"):
        cache.built_in_bundle()
