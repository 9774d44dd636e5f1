"""Sources from the Hugging Face hub, against a hub on loopback; each download in a process and a cache of its own."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub
from safetensors.numpy import save
from svrt.exporter.hub import split_id
from svrt.models.checkpoint import Checkpoint

MIB = 1 << 20
PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")
CHILD = """
import json, sys, time
from pathlib import Path
time.sleep = lambda seconds: None  # between the library's tries
sys.modules.update(dict.fromkeys(json.loads(sys.argv[3])))
from svrt.errors import SvrtError
from svrt.exporter.source import resolve
steps = []
try:
    found = resolve(sys.argv[1], Path(sys.argv[2]), lambda *step: steps.append(step))
    answer = {"path": str(found.path), "name": found.name, "revision": found.revision, "pinned": found.pinned}
except SvrtError as exc:
    answer = {"error": type(exc).__name__, "message": str(exc), "exit_code": exc.exit_code}
print(json.dumps(answer | {"steps": steps}))
"""


@pytest.fixture
def hub():
    with Hub() as server:
        yield server


@pytest.fixture
def fetch(hub, tmp_path):
    """Resolve a source in a new process whose hub is the one on loopback; what it says on stderr is an error."""

    def run(source, absent=(), **variables):
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        ours = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, source, str(tmp_path), json.dumps(absent)],
            env=kept | ours | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        answer = json.loads(done.stdout)
        assert "\n" not in answer.get("message", "")
        return answer

    return run


def tensors(seed=0, size=8):
    return save({f"weight{seed}": np.random.default_rng(seed).standard_normal(size).astype(np.float32)})


LLAMA = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "README.md": b"# A llama\n",
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00002.safetensors": tensors(1),
    "model-00002-of-00002.safetensors": tensors(2),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {f"weight{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    ).encode(),
    "original/consolidated.00.pth": b"pickle",
    "original/params.json": b"{}",
    "pytorch_model.bin": b"pickle",
}
LLAMA_READ = set(LLAMA) - {n for n in LLAMA if n.startswith(("original/", "README", ".git", "pytorch"))}


def test_a_sharded_llama_comes_whole_and_with_nothing_that_is_not_read(hub, fetch):
    commit = hub.add("meta/llama", LLAMA)
    found = fetch("meta/llama")
    folder = Path(found["path"])
    assert (found["name"], found["revision"]) == ("meta/llama", commit)
    assert found["pinned"] == f"meta/llama@{commit}"
    assert folder.name == commit and set(os.listdir(folder)) == LLAMA_READ
    assert all((folder / name).read_bytes() == LLAMA[name] for name in LLAMA_READ)
    assert Checkpoint(folder).names == ["weight1", "weight2"]
    assert not hub.downloads(".bin") and not hub.downloads(".pth")


def test_an_adapter_comes_with_its_configuration(hub, fetch):
    hub.add("me/lora", {"adapter_config.json": b'{"r": 16}', "adapter_model.safetensors": tensors(), "README.md": b""})
    folder = Path(fetch("me/lora")["path"])
    assert set(os.listdir(folder)) == {"adapter_config.json", "adapter_model.safetensors"}
    assert Checkpoint(folder).json("adapter_config.json") == {"r": 16}


def test_a_lone_file_of_tensors_is_found_by_whatever_name(hub, fetch):
    hub.add("me/projector", {"projector.safetensors": tensors(3), "projector.pth": b"pickle"})
    path = Path(fetch("me/projector")["path"])
    assert path.name == "projector.safetensors" and Checkpoint(path).names == ["weight3"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.safetensors": b"a", "b.safetensors": b"b"}, "several safetensors files"),
        ({"pytorch_model.bin": b"x", "config.json": b"{}"}, r"only pickles (pytorch_model.bin)"),
        ({"x.pth": b"x", "original/model.safetensors": b"x"}, "ask its owner for safetensors"),
        ({"model.Q4_0.gguf": b"x"}, "holds GGUF files; download the one you mean, and give its path"),
        ({}, "no safetensors file"),
    ],
)
def test_a_repository_without_one_clear_checkpoint_is_refused_before_any_download(hub, fetch, files, message):
    hub.add("me/odd", files)
    answer = fetch("me/odd")
    assert (answer["error"], answer["exit_code"]) == ("CheckpointError", 2) and message in answer["message"]
    assert not [r for r in hub.requests if "/resolve/" in r.path]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b'{"weight_map": {"w": "model-00002-of-00002.safetensors"}}', "shard model-00002-of-00002.safetensors"),
        (b'{"weight_map": {"w": "pytorch_model.bin"}}', "names 'pytorch_model.bin'"),
        (b'{"weight_map": {"w": "../../x.safetensors"}}', "names '../../x.safetensors'"),
        (b"\xff not JSON", "not a shard index"),
    ],
)
def test_an_index_that_cannot_be_followed_is_refused_before_any_tensor_comes(hub, fetch, index, message):
    hub.add("me/broken", {"model-00001-of-00002.safetensors": b"x", "model.safetensors.index.json": index})
    answer = fetch("me/broken")
    assert answer["error"] == "CheckpointError" and message in answer["message"]
    assert not hub.downloads()


def test_a_gated_repository_asks_for_its_licence_and_a_token(hub, fetch):
    hub.add("meta/llama", LLAMA, gated=True, readers=["hf_good"])
    for variables, about_token in (({}, "no token was sent"), ({"HF_TOKEN": "hf_other"}, "token that was sent")):
        answer = fetch("meta/llama", **variables)
        assert answer["error"] == "CheckpointError"
        assert "gated" in answer["message"] and about_token in answer["message"]
        assert "https://huggingface.co/meta/llama" in answer["message"] and "hf auth login" in answer["message"]
    assert not hub.downloads()
    assert set(os.listdir(fetch("meta/llama", HF_TOKEN="hf_good")["path"])) == LLAMA_READ


def test_a_token_goes_to_the_hub_alone_and_only_if_there_is_one(hub, fetch, tmp_path):
    hub.add("me/small", {"model.safetensors": tensors()})
    fetch("me/small")
    assert {r.token for r in hub.requests} == {None}
    hub.requests.clear()
    hub.add("me/private", {"model.safetensors": tensors(5)}, readers=["hf_mine"])
    (tmp_path / "hf" / "token").write_text("hf_mine")  # as `hf auth login` leaves it
    assert "error" not in fetch("me/private")
    assert {r.token for r in hub.requests if "private" in r.path and r.host == "127.0.0.1"} == {"hf_mine"}
    assert [r.token for r in hub.downloads()] == [None]  # a content network must not see it


def test_a_token_that_the_hub_does_not_know_is_named_as_the_cause(hub, fetch):
    hub.add("me/small", {"model.safetensors": tensors()})
    hub.invalid_tokens.add("hf_expired")
    answer = fetch("me/small", HF_TOKEN="hf_expired")
    assert "401" in answer["message"] and "the token that was sent does not open it" in answer["message"]
    assert "hf_expired" not in answer["message"]


def test_what_is_neither_here_nor_there_is_told_of_both(hub, fetch, tmp_path):
    for variables, said in (({}, "refused (401)"), ({"HF_TOKEN": "hf_any"}, "no such repository on http://127.0.0.1")):
        answer = fetch("weights/vgg", **variables)
        assert answer["error"] == "RecipeError" and said in answer["message"]
        assert answer["message"].startswith(f"{tmp_path}/weights/vgg: no such file or folder; as a Hugging Face id, ")


def test_a_revision_that_does_not_exist_is_named(hub, fetch):
    hub.add("me/small", {"model.safetensors": tensors()})
    answer = fetch("me/small@v9")
    assert answer["error"] == "RecipeError" and "me/small: no revision 'v9'" in answer["message"]


def test_a_branch_is_pinned_to_the_commit_it_is_now(hub, fetch):
    old = hub.add("me/small", {"model.safetensors": tensors(1)}, branch="dev")
    assert fetch("me/small@dev")["revision"] == old
    new = hub.add("me/small", {"model.safetensors": tensors(2)}, branch="dev")
    found = fetch("me/small@dev")
    assert (found["name"], found["revision"], found["pinned"]) == ("me/small@dev", new, f"me/small@{new}")
    assert Checkpoint(fetch(f"me/small@{old}")["path"]).names == ["weight1"]
    assert len(hub.downloads()) == 2


def test_without_a_network_a_complete_copy_is_used(hub, fetch):
    commit = hub.add("meta/llama", LLAMA)
    folder = fetch("meta/llama")["path"]
    for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        for source in ("meta/llama", f"meta/llama@{commit}"):
            hub.requests.clear()
            found = fetch(source, **variables)
            assert (found["path"], found["revision"]) == (folder, commit)
            assert not hub.requests
    hub.down = 503
    assert fetch("meta/llama")["revision"] == commit


def test_without_a_network_what_is_not_complete_is_told_in_one_line(hub, fetch):
    hub.add("meta/llama", LLAMA)
    missing = fetch("meta/llama", HF_HUB_OFFLINE="1")
    assert missing["error"] == "RecipeError"
    assert "HF_HUB_OFFLINE is set" in missing["message"] and "holds no complete copy of main" in missing["message"]
    folder = Path(fetch("meta/llama")["path"])
    assert "no complete copy of dev" in fetch("meta/llama@dev", HF_HUB_OFFLINE="1")["message"]
    (folder / "model-00002-of-00002.safetensors").resolve().unlink()
    partly = fetch("meta/llama", HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in partly["message"] and "no complete copy" in partly["message"]
    hub.down = 503
    assert "answered 503" in fetch("meta/llama")["message"]


def test_a_server_that_is_no_hub_is_told_apart(hub, fetch):
    hub.down = 200  # as a captive portal: a page for every question
    answer = fetch("me/small")
    assert answer["error"] == "RecipeError" and "does not answer as a Hugging Face hub does" in answer["message"]


def test_a_download_that_is_cut_off_resumes_in_the_next_run(hub, fetch):
    whole = tensors(size=6 * MIB)  # 24 MiB: the library hands on pieces of 10 MiB
    hub.add("me/large", {"config.json": b"{}", "model.safetensors": whole})
    hub.cuts = [15 * MIB] + [0] * 100
    answer = fetch("me/large")
    assert answer["error"] == "CheckpointError" and "the same command again: it goes on from there" in answer["message"]
    assert f"model.safetensors was cut off at {10 * MIB} of {len(whole)} bytes" in answer["message"]
    hub.cuts.clear()
    hub.requests.clear()
    found = fetch("me/large")
    assert (Path(found["path"]) / "model.safetensors").read_bytes() == whole
    assert [(r.range, r.status, r.sent) for r in hub.downloads()] == [
        (f"bytes={10 * MIB}-", 206, len(whole) - 10 * MIB)
    ]
    assert found["steps"][0][0] == 0 and found["steps"][1] == [len(b"{}"), len(whole) + 2]
    assert min(done for done, _ in found["steps"][2:]) > 10 * MIB  # what was there counts


def test_a_connection_that_breaks_once_is_taken_up_again_in_the_same_run(hub, fetch):
    whole = tensors(size=6 * MIB)
    hub.add("me/large", {"model.safetensors": whole})
    hub.cuts = [12 * MIB]
    found = fetch("me/large")
    assert (Path(found["path"]) / "model.safetensors").read_bytes() == whole
    assert [r.range for r in hub.downloads()] == [None, f"bytes={10 * MIB}-"]


def test_a_server_without_ranges_costs_a_second_download_and_nothing_else(hub, fetch):
    whole = tensors(size=6 * MIB)
    hub.add("me/large", {"model.safetensors": whole})
    hub.cuts, hub.ignores_range = [12 * MIB], True
    assert (Path(fetch("me/large")["path"]) / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_bytes_that_arrive_altered_are_noticed_and_not_kept(hub, fetch, name):
    files = {"model.safetensors": tensors(), "config.json": b"{}"}
    hub.add("me/small", files)
    hub.altered = {name}
    answer = fetch("me/small")
    assert answer["error"] == "CheckpointError" and f"{name} arrived altered" in answer["message"]
    hub.altered.clear()
    assert (Path(fetch("me/small")["path"]) / name).read_bytes() == files[name]


def test_a_partial_file_that_is_no_part_of_it_does_not_stay(hub, fetch, tmp_path):
    whole = tensors()
    hub.add("me/small", {"model.safetensors": whole})
    partial = tmp_path / "hf/hub/models--me--small/blobs" / f"{hashlib.sha256(whole).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(len(whole) - 1))  # what some other program left
    assert "arrived altered" in fetch("me/small")["message"] and not partial.exists()
    partial.write_bytes(bytes(len(whole) + 1))
    assert (Path(fetch("me/small")["path"]) / "model.safetensors").read_bytes() == whole


def test_a_cached_file_of_the_wrong_length_is_fetched_again(hub, fetch, tmp_path):
    hub.add("me/small", {"model.safetensors": tensors()})
    file = Path(fetch("me/small")["path"]) / "model.safetensors"
    file.resolve().write_bytes(tensors()[:-1])
    fetch("me/small")
    assert file.read_bytes() == tensors()
    file.unlink()
    file.write_bytes(tensors()[:-1])  # a copy, as on disks without links
    fetch("me/small")
    assert file.read_bytes() == tensors() and len(hub.downloads()) == 2


def test_a_disk_that_is_too_small_is_told_before_any_tensor_comes(hub, fetch, tmp_path):
    hub.add("me/huge", LLAMA, sizes={"model-00002-of-00002.safetensors": 10**18})
    answer = fetch("me/huge")
    assert answer["error"] == "OutputError" and not hub.downloads()
    assert f"{tmp_path}/hf/hub: me/huge needs 1000000000.0 GB more" in answer["message"]
    assert "HF_HOME" in answer["message"]


def test_a_cache_that_cannot_be_written_is_named(hub, fetch, tmp_path):
    hub.add("me/small", {"model.safetensors": tensors()})
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "hub").write_text("a file where a folder should be")
    answer = fetch("me/small")
    assert answer["error"] == "OutputError" and f"{tmp_path}/hf/hub: cannot be written" in answer["message"]


def test_progress_grows_to_the_total_and_a_second_run_moves_no_tensor(hub, fetch):
    hub.add("meta/llama", LLAMA)
    total = sum(len(LLAMA[name]) for name in LLAMA_READ)
    for fetched in (2, 0):
        hub.requests.clear()
        steps = fetch("meta/llama")["steps"]
        assert steps[0] == [0, total] and steps[-1] == [total, total] and steps == sorted(steps)
        assert len(hub.downloads()) == fetched


def test_files_here_need_no_huggingface_hub_and_ids_say_how_to_get_it(hub, fetch, tmp_path):
    (tmp_path / "here").mkdir()
    assert fetch("here", absent=["huggingface_hub"])["path"] == str(tmp_path / "here")
    answer = fetch("me/small", absent=["huggingface_hub"])
    assert answer["error"] == "RecipeError" and "pip install 'svrt[export]'" in answer["message"]
    assert not hub.requests


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("facebook/vjepa2-vitl-fpc64-256", ("facebook/vjepa2-vitl-fpc64-256", None)),
        ("meta-llama/Llama-3.2-3B@refs/pr/1", ("meta-llama/Llama-3.2-3B", "refs/pr/1")),
        ("./owner/name", None),
        ("../owner/name", None),
        ("~/name", None),
        ("/owner/name", None),
        ("name", None),
        ("a/b/c", None),
        ("a/b@", None),
        ("a/b@../../c", None),
        ("a/b\n", None),
    ],
)
def test_only_owner_and_name_are_an_id(text, parts):
    assert split_id(text) == parts
