"""svrt against what one would otherwise write or run: `python -m svrt.benchmarks.peers [--clip CLIP] [--bundle DIR]`.

PyTorch with transformers and scikit-learn, ONNX Runtime and OpenVINO on a stock export, llama-cpp-python: on the same
clip, with the bundle's own weights. See docs/peers.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...bundle import Bundle
from ...cache import open_bundle
from ...errors import SvrtError
from ..bench import SAMPLE
from ..environment import environment
from ..harness import describe_clip
from ..markdown import machine_name
from ..statistics import Ratio
from .contestants import DECODE, DESCRIBE, PEERS, STAGES, TIMED, Peer, Task
from .duel import FAILED, Duel, PeerError, fight, prepare
from .prepare import STOCK, vocabulary
from .table import compared, table

RUNS = 7
SCHEMA = 1
PACKAGES = (
    *("svrt", "numpy", "opencv-python-headless", "torch", "transformers", "scikit-learn", "PyWavelets"),
    *("onnx", "onnxscript", "onnxruntime", "openvino", "llama-cpp-python"),
)


class Ring:
    """The duels of one bundle and clip, and what is prepared for them in `folder`."""

    def __init__(self, bundle: Bundle, clip: Path, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self._task = Task("", "", str(bundle.path.absolute()), str(clip.absolute()), str(folder))
        self._vocabulary: Any = None
        self._ready: dict[str, PeerError | None] = {}
        prepare(self._task, "inputs")

    def duel(self, peer: Peer, stage: str, runs: int) -> Duel:
        """Hold one peer against ours at one stage."""
        task = Task(peer.name, stage, self._task.bundle, self._task.clip, self._task.folder)
        try:
            self._prepare(peer, stage)
        except PeerError as exc:
            return Duel(stage, peer.name, exc.state, str(exc))
        return fight(task, runs, self._text)

    def _prepare(self, peer: Peer, stage: str) -> None:
        if peer.checkpoint is not None:
            self._once("vision")
        if peer.stock:
            self._once(STOCK)
        if peer.checkpoint is not None and stage in (DECODE, DESCRIBE):
            for other in [name for name in self._ready if name in ("float32", "bfloat16") and name != peer.checkpoint]:
                shutil.rmtree(self._folder / "decoder", ignore_errors=True)  # gigabytes each: one at a time
                del self._ready[other]
            self._once(peer.checkpoint)

    def _once(self, what: str) -> None:
        """Prepare something, unless that was done, or has failed, before."""
        if what not in self._ready:
            try:
                prepare(self._task, what)
                self._ready[what] = None
            except PeerError as exc:
                self._ready[what] = exc
            except SvrtError as exc:  # as where the disk is too small: other peers go on
                self._ready[what] = PeerError(FAILED, str(exc))
        failure = self._ready[what]
        if failure is not None:
            raise failure

    def _text(self, ids: list[int]) -> str:
        """As svrt gives it: tokens may end in the middle of a character, of which a replacement is left."""
        if self._vocabulary is None:
            self._vocabulary = vocabulary(self._bundle)
        return self._vocabulary.detokenize(ids).decode("utf-8", "replace") if ids else ""


def measure(
    bundle: Bundle, clip: Path, runs: int, stages: Sequence[str] = STAGES, against: Sequence[str] = ()
) -> list[Duel]:
    """Every peer at every one of `stages` that it has; with `against` only peers whose name is, or has in it, one of
    them.

    Raises `SvrtError` where the bundle or the clip cannot be used.
    """
    duels = []
    with tempfile.TemporaryDirectory(prefix="svrt-peers-") as folder:
        ring = Ring(bundle, clip, Path(folder))
        for peer in PEERS:
            for stage in [stage for stage in peer.stages if stage in stages and _wanted(peer, against)]:
                print(f"{peer.name}: {stage}", file=sys.stderr)
                duels.append(ring.duel(peer, stage, runs))
    return duels


def _wanted(peer: Peer, against: Sequence[str]) -> bool:
    """Whether one of `against` is in the peer's name; a whole name is that peer's alone."""
    names = {other.name.lower() for other in PEERS}
    parts = {part.lower() for part in against}
    return not parts or any(
        part == peer.name.lower() or (part in peer.name.lower() and part not in names) for part in parts
    )


def versions() -> dict[str, str]:
    """What is installed of what takes part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def report(bundle: Bundle, clip: Path, runs: int, duels: Sequence[Duel], before: dict[str, Any]) -> dict[str, Any]:
    """Plain values for `json.dumps`: every sample, and the ratios made of them."""

    def ratios(duel: Duel) -> dict[str, Ratio | None]:
        return {name: compared(duel, name) for name in TIMED[duel.stage]}

    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.sha256,
        "provenance": {role: asdict(source) for role, source in bundle.manifest.provenance.items()},
        "clip": asdict(describe_clip(clip)),
        "environment": {**before, "load_after": environment()["load_before"]},
        "versions": versions(),
        "runs": runs,
        "duels": [
            {**asdict(duel), "ratios": {name: found and asdict(found) for name, found in ratios(duel).items()}}
            for duel in duels
        ],
    }


def _title(bundle: Bundle, clip: Path, runs: int, before: dict[str, Any]) -> str:
    found = describe_clip(clip)
    return (
        f"## svrt and its peers: {bundle.manifest.name}, {machine_name(before)}, {before['cores']} processors\n\n"
        f"{found.name}: {found.width}x{found.height}, {found.frames} frames; {runs} runs each; load before "
        f"{before.get('load_before')}; {', '.join(f'{name} {number}' for name, number in versions().items())}\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m svrt.benchmarks.peers", description=__doc__)
    parser.add_argument("--clip", type=Path, default=SAMPLE, help="clip to describe; the sample if not given")
    parser.add_argument("--bundle", type=Path, help="bundle to use; the built-in one if not given")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"of each side, {RUNS} if not given")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument(
        "--against", nargs="+", default=(), metavar="PEER", help="peers with one of these as, or in, their name"
    )
    parser.add_argument("--json", type=Path, help="file for every sample")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no process stays behind
    try:
        bundle = open_bundle(given.bundle)
        before, runs = environment(), max(1, given.runs)
        duels = measure(bundle, given.clip, runs, given.only, given.against)
        found = report(bundle, given.clip, runs, duels, before)
        print(_title(bundle, given.clip, runs, before))
    except (SvrtError, PeerError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code if isinstance(exc, SvrtError) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(table(duels))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
