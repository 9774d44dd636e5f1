"""The arrows between rooms run one way, and the runtime carries nothing that only export or training needs."""

import ast
from pathlib import Path

import pytest
import svrt

ROOT = Path(svrt.__file__).parent
ROOMS = ("kernels", "models", "exporter", "runtime", "benchmarks", "evaluation", "doctor")
MAY_IMPORT = {
    "errors": set(),
    "records": {"errors"},
    "bundle": {"errors", "records"},
    "seal": {"errors", "records", "bundle"},
    "cache": {"errors", "bundle", "seal"},
    "inspection": {"errors", "bundle"},
    "kernels": {"errors"},
    "runtime": {"errors", "bundle", "kernels"},
    "models": {"errors", "bundle", "kernels"},  # how weights become int8
    "models/pocket": {"errors", "bundle", "kernels", "models", "runtime"},  # its training samples as the runtime does
    "exporter": {"errors", "records", "bundle", "kernels", "models", "runtime"},  # runtime: for parity
    "doctor": {"errors", "bundle", "cache", "runtime"},
    "benchmarks": {"errors", "records", "bundle", "seal", "cache", "kernels", "runtime"},
    # Peers are what one would otherwise write: PyTorch and its friends, on weights read back from a bundle.
    "benchmarks/peers": {
        *("errors", "records", "bundle", "seal", "cache", "kernels", "models", "exporter", "runtime", "benchmarks"),
    },
    "evaluation": {"errors", "records", "bundle", "kernels", "models", "runtime"},  # models: captions read back
}
HEAVY = {"torch", "transformers", "peft", "sklearn"}
ONLY_EXPORT = {"onnx", "gguf", "safetensors", "ml_dtypes", "huggingface_hub"}


def sources():
    for path in sorted(ROOT.glob("*.py")) + [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = "/".join(parts[:2]) if "/".join(parts[:2]) in MAY_IMPORT else parts[0]
        if room in MAY_IMPORT:
            yield pytest.param(path, room, parts, id="/".join(parts))


def imported(path, parts):
    """Rooms of ours, and top-level names of others, that a file imports anywhere in it."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level]
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            ours |= {name for name in names if not base} | ({base[0]} if base else set())
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


@pytest.mark.parametrize(("path", "room", "parts"), list(sources()))
def test_a_file_imports_only_what_its_room_may(path, room, parts):
    ours, others = imported(path, parts)
    assert ours - {room.split("/")[0]} <= MAY_IMPORT[room]
    assert "svrt" not in others, "imports inside the package are relative"
    if room not in ("models/pocket", "benchmarks/peers"):
        assert not others & HEAVY
    if room in (
        "errors",
        "records",
        "bundle",
        "seal",
        "cache",
        "inspection",
        "kernels",
        "runtime",
        "benchmarks",
        "doctor",
    ):
        assert not others & ONLY_EXPORT


def test_no_python_runs_in_a_fork():
    """Freeing an engine in a fork waits for threads that only its parent has, and garbage is collected anywhere."""
    forks = {"preexec_fn", "fork", "forkpty"}
    for path in [*(ROOT / "tests").glob("*.py"), *(param.values[0] for param in sources())]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        used = {node.arg for node in nodes if isinstance(node, ast.keyword)}
        used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not used & forks, path
