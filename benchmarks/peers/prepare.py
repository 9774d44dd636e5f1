"""What contestants read, made once: inputs of each stage, checkpoints, the stock export. Each in a process of its own.

`inputs.npz` has, of the clip's candidates: `images` float32 [N, 3, S, S] for VGG-16, `features` float32 [N, 1024],
`pixels` float32 [1, T, 3, S, S] of the keyframes, and their `tokens` float32 [n, width]: each stage's input is what
svrt gives it, so that a difference at one stage is not one at the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...bundle import VGG16, Bundle
from ...cache import engine_folder, open_bundle
from ...errors import ClipError
from .contestants import BFLOAT16, FLOAT32, Task

INPUTS, PROMPT, STOCK_ENCODER = "inputs.npz", "prompt.json", "encoder.onnx"
MOST_IMAGES = 32  # of the clip's candidates that VGG-16 is timed on
STOCK = "stock"


@dataclass(frozen=True)
class Prompt:
    """Token ids around the video tokens, those that end a text, and how long it may become."""

    prefix: list[int]
    suffix: list[int]
    ends: list[int]
    max_tokens: int

    @classmethod
    def read(cls, folder: Path) -> Prompt:
        return cls(**json.loads((folder / PROMPT).read_text(encoding="utf-8")))


def load_bundle(task: Task) -> Bundle:
    """The bundle of a task; its hashes were checked by whoever began."""
    return open_bundle(task.bundle)


def inputs(folder: Path) -> dict[str, np.ndarray]:
    """What `write_inputs` wrote."""
    with np.load(folder / INPUTS) as found:
        return dict(found)


def write_inputs(task: Task) -> None:
    """Sample and encode the clip. Raises `ClipError` where it has too few frames to choose from."""
    from ...kernels.preprocess import Normalisation, normalise
    from ...runtime.pipeline import Pipeline
    from ...runtime.sampler import Candidates, select
    from ...runtime.video import read_candidates

    bundle = load_bundle(task)
    sampler, encoder = bundle.manifest.sampler, bundle.manifest.encoder
    candidates, _ = read_candidates(task.clip, sampler.candidates, lambda: Candidates(sampler, encoder))
    if len(candidates) <= sampler.keyframes:
        raise ClipError(f"{task.clip}: {len(candidates)} frames; a sampler needs more than {sampler.keyframes} here")
    with Pipeline(bundle, engine_cache=engine_folder()) as pipeline:
        features = pipeline.sampler.features(candidates)
        picks = select(features, sampler.keyframes)
        views = np.stack([candidates.view(pick) for pick in picks])
        tokens = pipeline.encode(views)
        prefix, suffix = pipeline.decoder.prompt
    norm = Normalisation("rgb", encoder.scale, encoder.mean, encoder.std)
    seen = Normalisation(sampler.channels, sampler.scale, sampler.mean, sampler.std)
    some = np.unique(np.linspace(0, len(candidates) - 1, min(MOST_IMAGES, len(candidates))).round().astype(int))
    images = normalise(np.stack([candidates.appearance[at] for at in some]), seen)
    pixels = normalise(views, norm)[None]
    np.savez(task.prepared / INPUTS, images=images, features=features, pixels=pixels, tokens=tokens)
    prompt = Prompt(prefix, suffix, _ends(bundle), bundle.manifest.decoder.max_tokens)
    (task.prepared / PROMPT).write_text(json.dumps(asdict(prompt)), encoding="utf-8")


def _ends(bundle: Bundle) -> list[int]:
    """Every token that llama.cpp ends a text at."""
    import llama_cpp

    model = vocabulary(bundle)
    pointer = llama_cpp.llama_model_get_vocab(model.model)
    ids = range(llama_cpp.llama_vocab_n_tokens(pointer))
    return [token for token in ids if llama_cpp.llama_vocab_is_eog(pointer, token)]


def vocabulary(bundle: Bundle):  # type: ignore[no-untyped-def]  # llama_cpp.Llama, which is not typed
    """The decoder's vocabulary alone, as a `llama_cpp.Llama`."""
    import llama_cpp

    from ...bundle import DECODER

    return llama_cpp.Llama(str(bundle.file(DECODER)), vocab_only=True, verbose=False)


def write_vision(task: Task) -> None:
    """VGG-16, encoder and projector as checkpoints."""
    from . import weights

    weights.write_vision(load_bundle(task), task.prepared)


def write_decoder(dtype: str) -> Callable[[Task], None]:
    """The decoder as a checkpoint in `dtype`."""

    def write(task: Task) -> None:
        from . import weights

        weights.write_decoder(load_bundle(task), task.prepared / weights.DECODER_FOLDER, dtype)

    return write


def write_stock(task: Task) -> None:
    """Both vision networks through `torch.onnx.export`, left as it makes them: the exporter that PyTorch takes by
    default where what it needs is installed, else the one before it."""
    from importlib.util import find_spec

    import onnx  # noqa: F401  the exporter needs it
    import torch

    from .networks import load_encoder, load_vgg16

    dynamo = find_spec("onnxscript") is not None
    spec, size = load_bundle(task).manifest.encoder, load_bundle(task).manifest.sampler.size
    images, pixels = torch.zeros(2, 3, size, size), torch.zeros(1, spec.frames, 3, spec.size, spec.size)
    free = {"dynamic_shapes": {"images": {0: "batch"}}} if dynamo else {"dynamic_axes": {"images": {0: "batch"}}}
    (task.prepared / STOCK).mkdir()
    with torch.no_grad():
        torch.onnx.export(
            load_vgg16(task.prepared, torch.float32),
            (images,),
            str(task.prepared / STOCK / VGG16),
            input_names=["images"],
            output_names=["features"],
            dynamo=dynamo,
            **free,  # type: ignore[arg-type]
        )
        torch.onnx.export(
            load_encoder(task.prepared, spec, torch.float32),
            (pixels,),
            str(task.prepared / STOCK / STOCK_ENCODER),
            input_names=["pixel_values_videos"],
            output_names=["video_tokens"],
            dynamo=dynamo,
        )


WORK: dict[str, Callable[[Task], None]] = {
    "inputs": write_inputs,
    "vision": write_vision,
    FLOAT32: write_decoder(FLOAT32),
    BFLOAT16: write_decoder(BFLOAT16),
    STOCK: write_stock,
}
