"""The bundle contract: whole or absent, and refused by name when it is not what it says."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from svrt import bundle as contract
from svrt.bundle import Bundle, FileRecord, Manifest, atomic_folder, write_manifest
from svrt.errors import BundleError, OutputError
from svrt.records import from_json

NAMES = (contract.VGG16, contract.ENCODER, contract.DECODER)


def make_bundle(folder, name="toy", engine=False):
    """A bundle of three small files, or four: the contract does not look inside them."""
    files = {}
    for index, file in enumerate([*NAMES, "engines/encoder-0.engine"] if engine else NAMES):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(bytes([index]) * 5000)
        files[file] = FileRecord(5000, contract.sha256_of(folder / file), "fp32")
    sampler = {"keyframes": 16, "candidates": 64, "wavelet": "haar", "level": 2, "size": 96}
    sampler |= {"channels": "bgr", "scale": 1, "mean": [0, 0, 0], "std": [1, 1, 1]}
    encoder = {"frames": 16, "size": 192, "fit": "crop", "resize": 219, "token_grid": [8, 4, 4]}
    encoder |= {"scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1]}
    manifest = {
        "schema": contract.SCHEMA,
        "name": name,
        "svrt": "0",
        "sampler": sampler,
        "encoder": encoder,
        "decoder": {"prefix": "a", "suffix": "ü", "max_tokens": 9, "width": 4},
        "files": {file: asdict(record) for file, record in files.items()},
        "provenance": {},
        "parity": {},
    }
    write_manifest(folder, from_json(Manifest, manifest, ""))
    return folder


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    return make_bundle(folder)


def test_a_manifest_survives_the_round_trip_and_has_one_spelling(toy, tmp_path):
    found = Bundle.load(toy)
    again = tmp_path / "again"
    again.mkdir()
    write_manifest(again, found.manifest)
    assert (again / contract.MANIFEST).read_bytes() == (toy / contract.MANIFEST).read_bytes()
    assert found.manifest.decoder.suffix == "ü"
    write_manifest(again, replace(found.manifest, name="other"))
    assert contract.sha256_of(again / contract.MANIFEST) != found.sha256


@pytest.mark.parametrize("file", NAMES)
@pytest.mark.parametrize("harm", ["missing", "shorter", "one bit"])
def test_a_file_that_is_not_as_listed_is_named(toy, file, harm):
    path = toy / file
    if harm == "missing":
        path.unlink()
    elif harm == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        data = bytearray(path.read_bytes())
        data[2500] ^= 1
        path.write_bytes(data)
    with pytest.raises(BundleError, match=file) as caught:
        Bundle.load(toy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"decoder": {"prefix": "a", "suffix": "b", "max_tokens": "9", "width": 4}}, "decoder.max_tokens"),
        ({"files": {}}, "lists no vgg16.onnx"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(toy, change, message):
    file = toy / contract.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(toy)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\x00\xff", "[" * 100_000])
def test_garbage_for_a_manifest_is_refused(toy, text):
    (toy / contract.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.load(toy)


def test_a_manifest_cannot_point_outside_its_bundle(toy):
    file = toy / contract.MANIFEST
    values = json.loads(file.read_text())
    values["files"]["../secret"] = values["files"][contract.VGG16]
    file.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.load(toy)


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "b"
    with atomic_folder(out) as folder:
        make_bundle(folder)
        assert not out.exists()
    Bundle.load(out)
    assert os.listdir(out.parent) == ["b"]


def test_a_failure_leaves_nothing_and_keeps_the_older_bundle(tmp_path):
    out = tmp_path / "b"
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_folder(out) as folder:
        make_bundle(folder, "old")
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        raise RuntimeError
    assert Bundle.load(out).manifest.name == "old"
    with atomic_folder(out) as folder:
        make_bundle(folder, "new")
    assert Bundle.load(out).manifest.name == "new"
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavelet": "foo"}, "wavelet 'foo'"),
        ({"level": -1}, "level"),
        ({"mean": [1.0]}, "three numbers"),
        ({"size": 1}, "size"),
    ],
)
def test_a_manifest_whose_values_cannot_work_is_refused(toy, change, message):
    file = toy / contract.MANIFEST
    values = json.loads(file.read_text())
    values["sampler"].update(change)
    file.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=message):
        Bundle.load(toy)


def test_a_folder_that_only_looks_like_a_bundle_is_never_replaced(toy, tmp_path):
    (toy / "notes.txt").write_text("dear")
    project = tmp_path / "project"
    project.mkdir()
    (project / "bundle.json").write_text("{}")
    for place, kept in ((toy, "notes.txt"), (project, "bundle.json")):
        with pytest.raises(OutputError, match=kept), atomic_folder(place):
            pytest.fail("began to work")
        assert (place / kept).exists()


def test_links_and_mount_points_are_refused_before_any_work(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="symbolic link"), atomic_folder(tmp_path / "link"):
        pytest.fail("began to work")
    with pytest.raises(OutputError, match="mount point"), atomic_folder(Path("/proc")):
        pytest.fail("began to work")


def test_a_rename_that_fails_puts_the_older_bundle_back(tmp_path, monkeypatch):
    out = tmp_path / "b"
    with atomic_folder(out) as folder:
        make_bundle(folder, "old")
    rename = Path.rename

    def fail(path, target):
        if path.parent.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Input/output"), atomic_folder(out) as folder:
        make_bundle(folder, "new")
    assert Bundle.load(out).manifest.name == "old"
    assert os.listdir(tmp_path) == ["b"]


def test_a_power_cut_between_the_two_renames_is_mended(tmp_path):
    (tmp_path / ".b.old").mkdir()
    make_bundle(tmp_path / ".b.old", "old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "b"):
        raise RuntimeError
    assert Bundle.load(tmp_path / "b").manifest.name == "old"
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(("name", "there"), [(".b.old", False), (".b.old", True), (".b.partial", False)])
def test_folders_of_these_names_that_are_somebody_elses_are_left_alone(tmp_path, name, there):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    if there:
        (tmp_path / "b").mkdir()
        make_bundle(tmp_path / "b", "old")
    with pytest.raises(OutputError, match=rf"\{name}: "), atomic_folder(tmp_path / "b") as folder:
        make_bundle(folder, "new")
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"
    assert not there or Bundle.load(tmp_path / "b").manifest.name == "old"
    assert not list(tmp_path.glob(".b.partial/bundle"))


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "child.jpg").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for place in ("photos", "file"):
        with pytest.raises(OutputError, match=place), atomic_folder(tmp_path / place):
            pass
    assert (tmp_path / "photos" / "child.jpg").read_text() == (tmp_path / "file").read_text() == "dear"


@pytest.mark.parametrize("place", ["file/b", "/proc/b", "n" * 300])
def test_an_unwritable_place_is_told_before_any_work(tmp_path, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write there"), atomic_folder(tmp_path / place):
        pytest.fail("began to work")


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="No space left"), atomic_folder(tmp_path / "b"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_second_writer_waits_for_the_first(tmp_path):
    out, order = tmp_path / "b", []

    def write(name):
        with atomic_folder(out) as folder:
            order.append(f"{name} begins")
            make_bundle(folder, name)
            time.sleep(0.2)
            order.append(f"{name} ends")

    writers = [threading.Thread(target=write, args=(name,)) for name in ("x", "y")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [event.split()[1] for event in order] == ["begins", "ends", "begins", "ends"]
    Bundle.load(out)


def test_what_a_killed_writer_left_is_there_for_the_next(tmp_path):
    out = tmp_path / "b"
    code = (
        "import sys, time; from pathlib import Path; from svrt.bundle import atomic_folder\n"
        f"with atomic_folder(Path({str(out)!r})) as f: (f / 'half').mkdir(); print('in', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"in\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not out.exists()
    with pytest.raises(KeyboardInterrupt), atomic_folder(out) as folder:
        assert os.listdir(folder) == ["half"]
        raise KeyboardInterrupt
    assert not out.exists()
    with atomic_folder(out) as folder:
        assert os.listdir(folder) == ["half"]
        (folder / "half").rmdir()
        make_bundle(folder)
    Bundle.load(out)
    assert os.listdir(tmp_path) == ["b"]


def test_a_bundle_with_engines_is_replaced_and_one_with_a_strangers_file_beside_them_is_not(tmp_path):
    out = tmp_path / "b"
    for name in ("old", "new"):
        with atomic_folder(out) as folder:
            make_bundle(folder, name, engine=True)
    assert Bundle.load(out).manifest.name == "new"
    (out / "engines" / "notes.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"engines/notes\.txt"), atomic_folder(out):
        pytest.fail("began to work")


def test_an_older_bundle_in_the_way_is_called_one(toy):
    manifest = json.loads((toy / contract.MANIFEST).read_text())
    (toy / contract.MANIFEST).write_text(json.dumps({**manifest, "schema": 1}))
    with pytest.raises(OutputError, match=r"toy: a bundle that cannot be read lies there \(.*schema 1"):
        contract.check_place(toy)
