"""A bundle's files are hashed once, and again when anything happened to them; a seal is only ever a saving."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from small_system import write_system
from svrt import bundle as contract
from svrt import seal
from svrt.benchmarks import start
from svrt.bundle import MANIFEST, VGG16, Bundle
from svrt.cache import engine_folder
from svrt.errors import BundleError
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from test_bundle import NAMES, make_bundle

OLD_S = time.time() + 3600  # an hour later, everything written by a test has settled


def bytes_read():
    """What this process has read from files so far, by the kernel's count (proc(5), io)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def read_by(work):
    before = bytes_read()
    work()
    return bytes_read() - before


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "seals"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A bundle of three files of 3 MB, looked at an hour after it was written."""
    monkeypatch.setattr(seal.time, "time", lambda: OLD_S)
    (tmp_path / "toy").mkdir()
    place = make_bundle(tmp_path / "toy")
    values = json.loads((place / MANIFEST).read_text())
    for index, name in enumerate(NAMES):
        (place / name).write_bytes(bytes([65 + index]) * 3_000_000)
        values["files"][name] |= {"bytes": 3_000_000, "sha256": contract.sha256_of(place / name)}
    (place / MANIFEST).write_text(json.dumps(values))
    return place


def test_a_second_load_does_not_read_the_files(toy, folder):
    assert read_by(lambda: seal.load(toy, folder)) > 9_000_000
    assert read_by(lambda: seal.load(toy, folder)) < 100_000
    assert seal.load(toy, folder) == Bundle.load(toy)


def test_verify_reads_everything_whatever_the_seal_says(toy, folder):
    seal.load(toy, folder)
    assert read_by(lambda: seal.verify(toy, folder)) > 9_000_000
    assert read_by(lambda: seal.load(toy, folder)) < 100_000


def test_verify_does_not_believe_a_seal_that_it_cannot_take_away(toy, folder, monkeypatch):
    """A cache on a read-only disk, or of another user."""
    seal.load(toy, folder)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    assert read_by(lambda: seal.verify(toy, folder)) > 9_000_000


def flip(file, keep_times=False):
    """Change one bit in place; `keep_times` sets the time of modification back, as copying tools do."""
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(1_500_000)
        handle.write(b"\0")
    if keep_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep_times", [False, True])
def test_a_file_that_changed_in_place_is_named(toy, folder, name, keep_times):
    seal.load(toy, folder)
    flip(toy / name, keep_times)
    for _ in range(2):
        with pytest.raises(BundleError, match=name):
            seal.load(toy, folder)


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_is_named(toy, folder, tmp_path):
    seal.load(toy, folder)
    other = shutil.copy2(toy / VGG16, tmp_path / "other")
    flip(other, keep_times=True)
    other.replace(toy / VGG16)
    with pytest.raises(BundleError, match=VGG16):
        seal.load(toy, folder)


def test_only_the_file_that_was_touched_is_hashed_again(toy, folder):
    seal.load(toy, folder)
    (toy / VGG16).touch()
    assert 3_000_000 < read_by(lambda: seal.load(toy, folder)) < 3_200_000
    assert read_by(lambda: seal.load(toy, folder)) < 100_000


def test_a_copy_is_hashed_for_itself(toy, folder, tmp_path):
    seal.load(toy, folder)
    copy = Path(shutil.copytree(toy, tmp_path / "copy"))
    flip(copy / VGG16, keep_times=True)
    with pytest.raises(BundleError, match=str(copy)):
        seal.load(copy, folder)
    moved = tmp_path / "moved"
    copy.rename(moved)
    toy.rename(copy)
    assert seal.load(copy, folder).path == copy
    with pytest.raises(BundleError, match=str(moved)):
        seal.load(moved, folder)


def test_another_manifest_over_the_same_files_is_checked_against_them(toy, folder):
    seal.load(toy, folder)
    values = json.loads((toy / MANIFEST).read_text())
    values["files"][VGG16]["sha256"] = "0" * 64
    (toy / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleError, match=VGG16):
        seal.load(toy, folder)


def test_a_file_that_was_just_written_is_not_sealed_yet(toy, folder, monkeypatch):
    """A second write within the same tick of the file system's clock would leave no trace."""
    monkeypatch.setattr(seal.time, "time", lambda: (toy / VGG16).stat().st_ctime + seal.SETTLED_S / 2)
    seal.load(toy, folder)
    assert read_by(lambda: seal.load(toy, folder)) > 9_000_000
    monkeypatch.setattr(seal.time, "time", lambda: OLD_S)
    seal.load(toy, folder)
    assert read_by(lambda: seal.load(toy, folder)) < 100_000


def test_a_file_found_wrong_by_verify_is_never_trusted_after(toy, folder, monkeypatch):
    """Bits that a medium lost change no time: the seal is in place, and verify takes it away."""
    seal.load(toy, folder)
    sha256_of = seal.sha256_of
    monkeypatch.setattr(seal, "sha256_of", lambda file: "0" * 64 if file.name == VGG16 else sha256_of(file))
    seal.load(toy, folder)
    with pytest.raises(BundleError, match=VGG16):
        seal.verify(toy, folder)
    with pytest.raises(BundleError, match=VGG16):
        seal.load(toy, folder)


@pytest.mark.parametrize("harm", ["garbage", "cut", "writable by all", "another's", "a list", "another schema"])
def test_a_seal_that_cannot_be_trusted_only_costs_time(toy, folder, harm, monkeypatch):
    seal.load(toy, folder)
    (note,) = folder.iterdir()
    assert note.stat().st_mode & 0o777 == 0o600
    if harm == "garbage":
        note.write_bytes(b"\xff\0{")
    elif harm == "cut":
        note.write_text(note.read_text()[:-20])
    elif harm == "writable by all":
        note.chmod(0o666)
    elif harm == "another's":
        user = os.geteuid()
        monkeypatch.setattr(seal.os, "geteuid", lambda: user + 1)
    elif harm == "a list":
        note.write_text("[]")
    else:
        note.write_text(note.read_text().replace('"schema": 1', '"schema": 0'))
    assert read_by(lambda: seal.load(toy, folder)) > 9_000_000


def test_where_no_seal_can_be_kept_every_load_is_a_whole_check(toy, tmp_path):
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file" / "seals"):
        for _ in range(2):
            assert read_by(lambda folder=folder: seal.load(toy, folder)) > 9_000_000
    flip(toy / VGG16)
    with pytest.raises(BundleError, match=VGG16):
        seal.load(toy, None)


def test_missing_and_shorter_files_are_named_though_sealed(toy, folder):
    seal.load(toy, folder)
    os.truncate(toy / VGG16, 10)
    with pytest.raises(BundleError, match=f"{VGG16}: 10 bytes"):
        seal.load(toy, folder)
    (toy / VGG16).unlink()
    with pytest.raises(BundleError, match="missing"):
        seal.load(toy, folder)


def test_seals_of_bundles_that_are_gone_are_removed(toy, folder, tmp_path):
    copy = Path(shutil.copytree(toy, tmp_path / "copy"))
    seal.load(copy, folder)
    shutil.rmtree(copy)
    seal.load(toy, folder)
    assert len(list(folder.iterdir())) == 1
    assert read_by(lambda: seal.load(toy, folder)) < 100_000


def test_a_new_process_is_timed_sealed_and_hashed(tmp_path, monkeypatch):
    bundle = export(read_recipe(str(write_system(tmp_path / "system"))), tmp_path / "b")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    found = start.measure(bundle, rounds=1)
    assert found.sealed_ms > found.describe_ms > 0 and found.hashed_ms > found.describe_ms and found.before_ms > 0


def test_a_process_without_the_seal_still_knows_which_backends_were_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    start._remember_backends(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir()), "nothing is remembered yet"
    engine_folder().mkdir(parents=True)
    (engine_folder() / "graph.trial.json").touch()
    start._remember_backends(tmp_path / "empty")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert (engine_folder() / "graph.trial.json").is_file()
