"""Who is held against svrt, at which stages, and what each stage gives.

A contestant is one stage of one way to do the work, loaded in a process of its own. `load` imports what it needs, so
that a package which is missing is a row of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np

VGG, ENCODE, SAMPLE, DECODE, DESCRIBE = "vgg16", "encoder", "sampler", "decoder", "describe"
STAGES = (VGG, ENCODE, SAMPLE, DECODE, DESCRIBE)
OURS = "svrt"
FLOAT32, BFLOAT16 = "float32", "bfloat16"

# What is timed, by stage, and how the table calls it. Every sample is milliseconds; of `PER_SECOND` the table gives
# the inverse.
FRAME, ENCODING, REST = "frame", "encode", "rest"
PREFILL, STEP = "prefill", "step"
FIRST, WHOLE = "first token", "describe"
TIMED = {
    VGG: {FRAME: "VGG-16, a frame, ms"},
    ENCODE: {ENCODING: "encoder and projector, ms"},
    SAMPLE: {REST: "sampler without VGG-16 and decoding, ms"},
    DECODE: {PREFILL: "prefill, to the first token, ms", STEP: "generation, tokens/s"},
    DESCRIBE: {FIRST: "describe, to the first token, ms", WHOLE: "describe, whole, ms"},
}
PER_SECOND = (STEP,)
VGG_ALONE = "vgg16"  # VGG-16 on the clip: ours times it beside REST, for the sampler's shares


@dataclass(frozen=True)
class Task:
    """One contestant's work: a stage of a bundle on a clip. `folder` holds what was prepared (see `prepare`)."""

    peer: str
    stage: str
    bundle: str
    clip: str
    folder: str

    @property
    def prepared(self) -> Path:
        return Path(self.folder)


@dataclass(frozen=True)
class Outputs:
    """What a contestant gave: arrays (features, video tokens), keyframes by number, text as token ids or as text.

    What a stage does not give is None, or empty.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    keyframes: list[int] | None = None
    token_ids: list[int] | None = None
    text: str | None = None


class Contestant(Protocol):
    """A stage, loaded. `precision` is what it computes in, `note` what a reader of its figures must know."""

    precision: str
    note: str

    def run(self) -> dict[str, float]:
        """Do the stage once: milliseconds by what `TIMED` lists; what could not be told is left out."""

    def outputs(self) -> Outputs:
        """What the last run gave."""


@dataclass(frozen=True)
class Peer:
    """A way to do the work. `checkpoint` is the type of the PyTorch weights it needs, `stock` whether it needs the
    stock export; `floor` marks what is no way to do it, but the least time that the machine allows."""

    name: str
    module: str
    stages: tuple[str, ...]
    checkpoint: str | None = None
    stock: bool = False
    floor: bool = False


_EVERY = (VGG, ENCODE, DECODE, DESCRIBE)
PEERS = (
    Peer(f"PyTorch {FLOAT32}", "torch_peers", (VGG, ENCODE, SAMPLE, DECODE, DESCRIBE), FLOAT32),
    Peer(f"PyTorch {FLOAT32}, compiled", "torch_peers", _EVERY, FLOAT32),
    Peer(f"PyTorch {BFLOAT16}", "torch_peers", _EVERY, BFLOAT16),
    Peer(f"PyTorch {BFLOAT16}, compiled", "torch_peers", _EVERY, BFLOAT16),
    Peer("ONNX Runtime, stock export", "stock_peers", (VGG, ENCODE), FLOAT32, stock=True),
    Peer("OpenVINO, stock export", "stock_peers", (VGG, ENCODE), FLOAT32, stock=True),
    Peer("products at PyTorch's bfloat16 rate", "gemm_peers", (ENCODE,), floor=True),
    Peer("products at OpenVINO's bfloat16 rate", "gemm_peers", (ENCODE,), floor=True),
    Peer("llama-cpp-python", "llama_peers", (DECODE,)),
    Peer("bare llama_decode loop", "llama_peers", (DECODE,)),
)


def load(task: Task) -> Contestant:
    """The contestant of a task, loaded. Raises `ImportError` where it needs a package that is not installed."""
    modules = {OURS: "ours", **{peer.name: peer.module for peer in PEERS}}
    module = import_module(f".{modules[task.peer]}", __package__)
    return cast("Callable[[Task], Contestant]", module.load)(task)
