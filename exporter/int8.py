"""int8 for the encoder: steps from calibration clips, and as many products in it as parity allows.

Products of weights become int8: weights in a step for each output, stored as int8; their input in one step, so that the
largest value seen on the calibration clips is 127 of them. Written out as QuantizeLinear and DequantizeLinear, that
means the same to ONNX Runtime, OpenVINO and TensorRT. LayerNorm, softmax, GELU, the products of attention, biases and
the residual stream stay float32, and so do the two products at the ends: of pixels, and of what the decoder reads.

The result is held against the float32 graph on clips that were not calibrated on. Where a cosine is too low, products
go back to float32, those first that int8 changes most by themselves, twice as many each time.

Scaling outliers from LayerNorm into the weights behind it (SmoothQuant, arXiv 2211.10438) was tried and left: on the
built-in encoder it does not bring the outputs nearer to float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..bundle import EncoderSpec, Int8Record, SamplerSpec, sha256_of
from ..errors import CheckpointError, RecipeError
from ..kernels.int8 import INT8_MAX, int8_steps
from ..models.vjepa2 import INPUT, OUTPUT
from ..runtime.engines import Engine, EngineStore, load
from ..runtime.engines.trial import RUNS, try_all
from ..runtime.sampler import Candidates
from ..runtime.video import read_candidates
from .parity import REFERENCE_BACKEND, compare, encoder_input, sample_clip

COSINE = 0.999  # least with the float32 graph, of each judged clip
KEPT = ("patch_embeddings/proj", "projector/fc2")  # products that are never int8
CLIPS = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")
EVERY = 4  # one clip in so many of a folder's is not calibrated on, but judged

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Clips:
    """Clips to calibrate on, others to judge on, and how the encoder reads one."""

    calibration: list[Path]
    judged: list[Path]
    sampler: SamplerSpec
    encoder: EncoderSpec

    def hashes(self) -> tuple[dict[str, str], dict[str, str]]:
        """sha256 of each file by name: of those to calibrate on, and of those to judge on."""
        first, second = ({path.name: sha256_of(path) for path in paths} for paths in (self.calibration, self.judged))
        return first, second

    def inputs(self, paths: list[Path]) -> Iterator[dict[str, np.ndarray]]:
        """What the encoder is given of each clip, one at a time. Raises `ClipError` for one that cannot be read."""
        for path in paths:
            clip, _ = read_candidates(path, self.sampler.candidates, lambda: Candidates(self.sampler, self.encoder))
            yield {INPUT: encoder_input(self.encoder, clip)}


def find_clips(folder: Path | None) -> tuple[list[Path], list[Path]]:
    """Clips to calibrate on, and to judge on: those of `folder`, by name; the two rendered samples without one.

    Raises `RecipeError` where it cannot be read, or holds fewer than two.
    """
    if folder is None:
        made = sample_clip()
        return [made], [made.with_name("miss.mp4")]
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in CLIPS)
    except OSError as exc:
        raise RecipeError(f"{folder}: cannot be read: {exc.strerror}; --calibration is a folder of clips") from exc
    if len(found) < 2:
        raise RecipeError(f"{folder}: {len(found)} clips; int8 needs one to calibrate on and one to be judged by")
    judged = found[1::EVERY]
    return [path for path in found if path not in judged], judged


def steps(graph: Path, clips: Clips, progress: Progress) -> dict[str, float]:
    """The int8 step of the input of each product that may become int8, by name in the float32 graph at `graph`.

    Raises `CheckpointError` for values that are not finite.
    """
    peaks: dict[str, float] = {}
    for done, found in enumerate(_numbers(graph, _add_peak, clips, clips.calibration)):
        progress(done + 1, len(clips.calibration) + 1)
        for name, peak in found.items():
            if not np.isfinite(peak):
                raise CheckpointError(
                    f"{graph.name}: what {name} reads is not finite; are all values of the checkpoint?"
                )
            peaks[name] = max(peaks.get(name, 0.0), peak)
    return {name: max(peak / INT8_MAX, float(np.finfo(np.float32).tiny)) for name, peak in peaks.items()}


def choose(
    graph: Path,
    out: Path,
    steps: Mapping[str, float],
    write: Callable[[Mapping[str, float]], None],
    clips: Clips,
    progress: Progress,
) -> Int8Record:
    """Write the int8 graph `out` by `write(steps of its int8 products)`, as much of it int8 as parity allows.

    `graph` is the same in float32. Raises `CheckpointError`, with the cosine reached, where more than half of the
    products would have to stay float32: nothing would be gained.
    """
    expected = list(_outputs(graph, clips))
    order: list[str] = []
    reached: list[float] = []
    for kept in _counts(len(steps) // 2):
        progress(kept, len(steps))
        order = order or (_by_error(graph, steps, clips) if kept else [])
        write({name: step for name, step in steps.items() if name not in order[:kept]})
        reached.append(min(compare(a, b)[1] for a, b in zip(_outputs(out, clips), expected, strict=True)))
        if reached[-1] >= COSINE:
            return _record(graph, order[:kept], reached[-1], clips)
    raise CheckpointError(
        f"{out.name}: int8 reaches cosine {reached[0]:.6f} with float32 on clips it was not calibrated on, and "
        f"{reached[-1]:.6f} with half of its products in float32; {COSINE} is wanted: export it with --precision fp32"
    )


def _counts(most: int) -> list[int]:
    """0, 1, 2, 4 ... up to `most`."""
    return [0, *(1 << power for power in range(most.bit_length()))]


def speed(graph: Path, out: Path, clips: Clips, folder: Path) -> dict[str, Any]:
    """`speed` and `timed` of an `Int8Record`: the float32 `graph` against `out`, each on its fastest backend here.

    They run in turn, and the shortest run of each counts: whatever else the machine does slows both. Raises
    `EngineError` where no backend here runs one of them.
    """
    store = EngineStore(folder, max_batch=1)
    float32, int8 = (try_all(path, precision, store).backend for path, precision in ((graph, "fp32"), (out, "int8")))
    engines = load(graph, float32, "fp32"), load(out, int8, "int8")
    inputs = next(clips.inputs(clips.judged))
    times: list[list[float]] = []
    while len(times) <= RUNS:
        times.append([_seconds(engine, inputs) for engine in engines])
    before, after = (min(column) for column in zip(*times[1:], strict=True))
    return {"speed": round(before / after, 2), "timed": f"{int8} in int8, {float32} in {engines[0].precision}"}


def _seconds(engine: Engine, inputs: dict[str, np.ndarray]) -> float:
    started = time.perf_counter()
    engine(inputs)
    return time.perf_counter() - started


def _outputs(graph: Path, clips: Clips) -> Iterator[np.ndarray]:
    """Video tokens of each judged clip."""
    engine = load(graph, REFERENCE_BACKEND)
    return (engine(inputs)[OUTPUT] for inputs in clips.inputs(clips.judged))


def _record(graph: Path, kept: list[str], cosine: float, clips: Clips) -> Int8Record:
    model = onnx.load(str(graph), load_external_data=False)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    weights = {node.name: sizes[node.input[1]] for node in _products(model)}
    kept = [name for name in weights if name in kept or name in KEPT]
    calibration, judged = clips.hashes()
    share = 1 - sum(weights[name] for name in kept) / sum(weights.values())
    return Int8Record(
        products=len(weights),
        int8=len(weights) - len(kept),
        share=round(share, 4),
        kept=kept,
        calibration=calibration,
        judged=judged,
        cosine=round(cosine, 8),
        limit=COSINE,
        speed=0.0,
        timed="",
    )


def _by_error(graph: Path, steps: Mapping[str, float], clips: Clips) -> list[str]:
    """Products by what int8 does to each alone, given the inputs it has in float32: the largest error first."""

    def add(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
        return _add_error(model, node, steps[node.name], graph.parent)

    errors: dict[str, float] = {}
    for found in _numbers(graph, add, clips, clips.judged):
        errors = {name: max(error, errors.get(name, 0.0)) for name, error in found.items()}
    return sorted(errors, key=lambda name: -errors[name])


def _products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The products with weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def _numbers(
    graph: Path, add: Callable[[onnx.ModelProto, onnx.NodeProto], str], clips: Clips, paths: list[Path]
) -> Iterator[dict[str, float]]:
    """One number for each product that may become int8, by name, of each clip: `add` adds nodes that compute it.

    The float32 graph itself gives them, so that what is between the products never leaves the runtime.
    """
    model = onnx.load(str(graph), load_external_data=False)
    names = {}
    for node in _products(model):
        if node.name not in KEPT:
            value = add(model, node)
            names[value] = node.name
            model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, []))
    path = graph.with_name(f"{graph.stem}-numbers.onnx")  # beside the weights, which it shares
    path.write_bytes(model.SerializeToString())
    engine = load(path, REFERENCE_BACKEND)
    path.unlink()
    for inputs in clips.inputs(paths):
        found = engine(inputs)
        yield {name: float(found[value]) for value, name in names.items()}


def _add_peak(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """The largest absolute value of a product's input."""
    stem = f"{node.name}/peak"
    model.graph.node.append(helper.make_node("Abs", [node.input[0]], [f"{stem}/abs"]))
    model.graph.node.append(helper.make_node("ReduceMax", [f"{stem}/abs"], [stem], keepdims=0))
    return stem


def _add_error(model: onnx.ModelProto, node: onnx.NodeProto, step: float, folder: Path) -> str:
    """How far a product of the same input and weights, both rounded to int8, is from it: squared, relative."""
    stem = f"{node.name}/error"
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    rounded = []
    scales = np.array(step, np.float32), int8_steps(numpy_helper.to_array(weight, str(folder)).T)
    for value, scale, axis in zip(node.input, scales, (0, 1), strict=True):
        constants = [f"{stem}/{axis}/step", f"{stem}/{axis}/zero"]
        for name, array in zip(constants, (scale, np.zeros(scale.shape, np.int8)), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        whole, back = f"{stem}/{axis}/int8", f"{stem}/{axis}"
        model.graph.node.append(helper.make_node("QuantizeLinear", [value, *constants], [whole], axis=axis))
        model.graph.node.append(helper.make_node("DequantizeLinear", [whole, *constants], [back], axis=axis))
        rounded.append(back)
    for op, inputs, output in (
        ("MatMul", rounded, "product"),
        ("Sub", [f"{stem}/product", node.output[0]], "difference"),
        ("ReduceSumSquare", [f"{stem}/difference"], "noise"),
        ("ReduceSumSquare", [node.output[0]], "signal"),
        ("Div", [f"{stem}/noise", f"{stem}/signal"], ""),
    ):
        more = helper.make_node(op, inputs, [f"{stem}/{output}".rstrip("/")])
        if op == "ReduceSumSquare":
            more.attribute.append(helper.make_attribute("keepdims", 0))
        model.graph.node.append(more)
    return stem
