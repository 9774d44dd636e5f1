"""Whether a bundle fits a device, and the least time each stage can take there: computed, not measured.

Memory is what the files, the graphs' values, the key/value cache and the sampler's pictures need, beside what the
process and the system take. Time is a roofline: operations over the published rate, or bytes over the published
bandwidth, whichever is longer (Williams, Waterman and Patterson, CACM 2009). A floor is no forecast: kernels reach part
of a rate, and clocks fall when a board is hot. Every figure the result rests on is in it, as an assumption in words.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..bundle import DECODER, ENCODER, VGG16, Bundle
from ..runtime.sampler import THUMBNAIL, VGG_BATCH
from .costs import (
    DecoderCosts,
    GraphCosts,
    PromptTokens,
    context_size,
    decoder_costs,
    graph_costs,
    prompt_tokens,
    rate_of,
)
from .devices import DEVICES, THIS, Device, Rates, find
from .measure import Measurement, measure

N_BATCH = 512  # tokens a decoder computes at once: the default of `svrt.runtime.decoder.Decoder`
CLIP = (1280, 720)  # the paper's input
REFERENCE_FRAMES = 17  # that a video decoder may hold (`svrt.runtime.video`), 1.5 bytes a pixel
SYSTEM = 1_500_000_000  # headless JetPack: assumed; an idle Orin NX showed 1,224 MiB in use
TIGHT = 0.1  # of the memory: with less than this to spare, another program decides whether it fits
BUSY = 0.25  # of the threads: with a load average above this, a measurement says as much of what else runs
INT8_OVER_FP32 = 4  # on a processor: a dot-product instruction takes four int8 values for one float32

PUBLISHED = (
    "a floor is not a forecast: the published decode of LLaMA-3.2-3B in 4 bits on an Orin Nano Super is 43 tokens/s, "
    "about 85 % of what its 102 GB/s allow; products reach less of their rate than that"
)

Verdict = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True)
class Workload:
    """One clip: its size in pixels, candidate frames kept, and tokens written after the first."""

    width: int
    height: int
    candidates: int
    steps: int


@dataclass(frozen=True)
class Part:
    """Memory of one thing, in bytes, and how it was found."""

    name: str
    bytes: int
    how: str


@dataclass(frozen=True)
class Memory:
    """All parts against what the device has."""

    parts: list[Part]
    needed: int
    available: int
    spare: int
    verdict: Verdict


@dataclass(frozen=True)
class Stage:
    """One stage on one device. `floor_ms` is everything fused; `unfused_ms` every operation by itself (graphs only)."""

    name: str
    work: str
    flops: float
    weight_bytes: int
    floor_ms: float
    unfused_ms: float | None


@dataclass(frozen=True)
class Comparison:
    """One stage measured here, against its floor; `ratio` is measured over floor."""

    name: str
    runs: int
    measured_ms: float
    floor_ms: float
    ratio: float


@dataclass(frozen=True)
class Check:
    """The model against this machine: the process's memory at its peak, and what the model's parts of it sum to."""

    stages: list[Comparison]
    measured_bytes: int
    predicted_bytes: int
    ratio: float
    load: float  # average of the minute before
    busy: bool  # more ran than a quarter of the threads: times and rates are not the machine's own


@dataclass(frozen=True)
class Plan:
    """What `svrt plan` prints; `to_json` has every figure of it."""

    bundle: str
    sha256: str
    device: str
    mode: str
    memory: Memory
    stages: list[Stage]
    token_ms: float  # of one generated token
    total_ms: float  # of all stages but the decoding of the video
    assumptions: list[str]
    check: Check | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class Costs:
    """A bundle's parts in numbers, the same for every device."""

    bundle: Bundle
    vgg16: GraphCosts
    encoder: GraphCosts
    decoder: DecoderCosts
    gguf_bytes: int
    prompt: PromptTokens

    @classmethod
    def read(cls, bundle: Bundle) -> Costs:
        """Read graphs and GGUF without their weights. Raises `BundleError` where one cannot be read."""
        spec = bundle.manifest.decoder
        gguf = bundle.file(DECODER)
        return cls(
            bundle,
            graph_costs(bundle.file(VGG16), VGG_BATCH),
            graph_costs(bundle.file(ENCODER)),
            decoder_costs(gguf),
            gguf.stat().st_size,
            prompt_tokens(gguf, spec.prefix, spec.suffix),
        )

    @property
    def video_tokens(self) -> int:
        return int(np.prod(self.bundle.manifest.encoder.token_grid))

    @property
    def positions(self) -> int:
        """Positions the decoder makes room for: see `svrt.runtime.decoder`."""
        prompt = self.prompt.prefix + self.video_tokens + self.prompt.suffix
        return prompt + self.bundle.manifest.decoder.max_tokens

    @property
    def batch(self) -> int:
        """Tokens the decoder computes at once."""
        return min(N_BATCH, max(self.prompt.prefix, self.prompt.suffix, self.video_tokens))

    def longest(self) -> Workload:
        """The largest clip that costs the most: all candidates, all tokens."""
        spec = self.bundle.manifest
        return Workload(*CLIP, spec.sampler.candidates, spec.decoder.max_tokens - 1)


def plans(bundle: Bundle, device: str | None = None) -> list[Plan]:
    """The plan for one device by name, for this machine (`this`, measured), or for all known devices.

    Raises `SvrtError` for an unknown name, `BundleError` where the bundle cannot be read.
    """
    if device == THIS:
        return [plan_here(Costs.read(bundle), measure(bundle.path))]
    devices = list(DEVICES.values()) if device is None else [find(device)]
    costs = Costs.read(bundle)
    return [plan(costs, each, costs.longest()) for each in devices]


def plan(costs: Costs, device: Device, work: Workload) -> Plan:
    """Memory and floors of `work` on `device`."""
    stages = [
        _sample(costs, device.rates, work),
        _encode(costs, device.rates),
        _prefill(costs, device.rates),
        _generate(costs, device.rates, work),
    ]
    manifest = costs.bundle.manifest
    return Plan(
        bundle=manifest.name,
        sha256=costs.bundle.sha256,
        device=device.name,
        mode=device.mode,
        memory=_memory(costs, device, work),
        stages=stages,
        token_ms=_step_s(costs, device.rates, costs.positions - manifest.decoder.max_tokens + work.steps // 2) * 1e3,
        total_ms=sum(stage.floor_ms for stage in stages),
        assumptions=_assumptions(costs, device, work),
    )


def plan_here(costs: Costs, found: Measurement) -> Plan:
    """The plan for this machine by its measured rates, and how far its measured times are from it."""
    device = Device(
        name=THIS,
        mode=f"ONNX Runtime and llama.cpp on {found.threads} threads",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        rates=Rates(found.fp32, found.fp32, found.fp32 * INT8_OVER_FP32, found.bandwidth),
        basis=[
            f"float32: {found.fp32 / 1e9:.0f} GFLOP/s, ONNX Runtime's best product here; float16 graphs run in float32",
            f"quantized decoder: {INT8_OVER_FP32} times that, as a dot-product instruction may reach",
            f"bandwidth: {found.bandwidth / 1e9:.1f} GB/s, the better of copying and reading with all threads",
            f"memory: {found.base_bytes / 1e6:.0f} MB for Python and libraries, measured",
        ],
        process=found.base_bytes,
        gpu=False,
    )
    limit = costs.bundle.manifest.decoder.max_tokens
    steps = found.generated if found.generated < limit else limit - 1  # the token that ends a text is computed too
    work = Workload(found.size[0], found.size[1], found.candidates, steps)
    result = plan(costs, device, work)
    return replace(result, check=_check(result, found))


def _check(result: Plan, found: Measurement) -> Check:
    on_cpu = found.backends["decoder"].endswith("CPU")
    stages = []
    for stage in result.stages:
        if on_cpu or stage.name in ("sample", "encode"):
            measured = statistics.median(found.stages_ms[stage.name])
            runs = len(found.stages_ms[stage.name])
            ratio = measured / stage.floor_ms if stage.floor_ms else 0.0
            stages.append(Comparison(stage.name, runs, measured, stage.floor_ms, ratio))
    predicted = sum(part.bytes for part in result.memory.parts if part.name != "system")
    busy = found.load > BUSY * found.threads
    return Check(stages, found.peak_bytes, predicted, found.peak_bytes / predicted, found.load, busy)


def _sample(costs: Costs, rates: Rates, work: Workload) -> Stage:
    images = 2 * work.candidates if work.candidates > costs.bundle.manifest.sampler.keyframes else 0
    runs = 2 * -(-work.candidates // VGG_BATCH) if images else 0
    share = images / (runs * VGG_BATCH) if runs else 0.0  # the last batch of each path may be smaller
    graph = costs.vgg16
    size = costs.bundle.manifest.sampler.size
    return Stage(
        "sample",
        f"VGG-16 on {images} pictures of {size}x{size}, {VGG_BATCH} at a time",
        graph.flops * runs * share,
        graph.weights * runs,
        graph.floor_s(rates) * runs * share * 1e3,
        graph.unfused_s(rates) * runs * share * 1e3,
    )


def _encode(costs: Costs, rates: Rates) -> Stage:
    graph, spec = costs.encoder, costs.bundle.manifest.encoder
    work = f"V-JEPA 2 and projector on {spec.frames} frames of {spec.size}x{spec.size}"
    seconds = graph.floor_s(rates), graph.unfused_s(rates)
    return Stage("encode", work, graph.flops, graph.weights, seconds[0] * 1e3, seconds[1] * 1e3)


def _prefill(costs: Costs, rates: Rates) -> Stage:
    """Video tokens, then the suffix; the prefix is in the cache already. A pass reads all weights once."""
    decoder, behind = costs.decoder, costs.prompt.prefix
    seconds, flops, read = 0.0, 0, 0
    for stretch in (costs.video_tokens, costs.prompt.suffix):
        for start in range(0, stretch, costs.batch):
            tokens = min(costs.batch, stretch - start)
            done = decoder.flops(tokens, behind, 0)
            seconds += max(done / rate_of(rates, decoder.precision), decoder.block_bytes / rates.bandwidth)
            flops, read, behind = flops + done, read + decoder.block_bytes, behind + tokens
    seconds += decoder.head_bytes / rates.bandwidth
    tokens = costs.video_tokens + costs.prompt.suffix
    return Stage(
        "prefill",
        f"{tokens} tokens through {decoder.parameters / 1e6:,.0f} M parameters, {costs.batch} at most at a time",
        flops + 2 * decoder.vocabulary * decoder.width,
        read + decoder.head_bytes,
        seconds * 1e3,
        None,
    )


def _generate(costs: Costs, rates: Rates, work: Workload) -> Stage:
    decoder = costs.decoder
    start = costs.prompt.prefix + costs.video_tokens + costs.prompt.suffix
    seconds = sum(_step_s(costs, rates, start + step) for step in range(work.steps))
    return Stage(
        "generate",
        f"{work.steps} tokens after the first, one at a time",
        sum(decoder.flops(1, start + step, 1) for step in range(work.steps)),
        (decoder.block_bytes + decoder.head_bytes) * work.steps,
        seconds * 1e3,
        None,
    )


def _step_s(costs: Costs, rates: Rates, behind: int) -> float:
    """Seconds of one token behind `behind` others: all weights and the cache so far are read."""
    decoder = costs.decoder
    read = decoder.block_bytes + decoder.head_bytes + decoder.kv_bytes * behind
    return max(read / rates.bandwidth, decoder.flops(1, behind, 1) / rate_of(rates, decoder.precision))


def _memory(costs: Costs, device: Device, work: Workload) -> Memory:
    decoder, both = costs.decoder, (costs.vgg16.activations, costs.encoder.activations)
    copies, how = (1, "as in the graph") if device.gpu else (2, "as in the graph, and packed by ONNX Runtime")
    positions = context_size(costs.positions)
    copied = decoder.embedding_bytes if device.gpu and decoder.tied else 0
    parts = [
        Part("VGG-16 weights", copies * costs.vgg16.weights, how),
        Part("encoder weights", copies * costs.encoder.weights, how),
        Part("decoder weights", costs.gguf_bytes + copied, "the GGUF" + (", token embedding twice" if copied else "")),
        Part(
            "activations",
            sum(both) if device.gpu else max(both),
            f"peak of VGG-16 at batch {VGG_BATCH} {'and' if device.gpu else 'or'} of the encoder, unfused",
        ),
        Part("KV cache", decoder.kv_bytes * positions, f"{positions} positions, float16"),
        Part("llama.cpp scratch", decoder.compute_bytes(costs.batch, costs.positions), f"{costs.batch} tokens at once"),
        Part("candidates", _candidate_bytes(costs, work), f"{work.candidates} frames reduced"),
        Part("video decoder", _video_bytes(work), f"{REFERENCE_FRAMES} reference frames {work.width}x{work.height}"),
        Part("process", device.process, "Python and libraries"),
        Part("system", SYSTEM, "everything else that runs"),
    ]
    needed = sum(part.bytes for part in parts)
    spare = device.memory - needed
    verdict: Verdict = "does not fit" if spare < 0 else "tight" if spare < TIGHT * device.memory else "fits"
    return Memory(parts, needed, device.memory, spare, verdict)


def _candidate_bytes(costs: Costs, work: Workload) -> int:
    """What `svrt.runtime.sampler.Candidates` keeps of each frame, and its motion maps as three float32 channels."""
    sampler, encoder = costs.bundle.manifest.sampler, costs.bundle.manifest.encoder
    ratio = min(1.0, THUMBNAIL / max(work.width, work.height))
    thumbnail = 3 * round(work.width * ratio) * round(work.height * ratio)
    each = sampler.size**2 * (3 + 4 + 12) + 3 * encoder.size**2 + thumbnail
    return each * work.candidates


def _video_bytes(work: Workload) -> int:
    """Reference frames in YUV 4:2:0, and one frame in BGR."""
    return int(work.width * work.height * (1.5 * REFERENCE_FRAMES + 3))


def _assumptions(costs: Costs, device: Device, work: Workload) -> list[str]:
    """Everything the figures rest on, in words."""
    where = "tensor cores" if device.gpu else "processor"
    lines = [
        *device.basis,
        f"memory: {SYSTEM / 1e9:.1f} GB for the system (assumed: headless; an idle Orin NX had 1,224 MiB in use); with "
        f"under {TIGHT:.0%} to spare it is tight",
        f"memory: {'TensorRT holds weights once' if device.gpu else 'ONNX Runtime holds weights twice'}, and every "
        "value a graph needs at its peak, nothing in place",
        f"memory: llama.cpp rounds {costs.positions} positions up to {context_size(costs.positions)}; its scratch is "
        "16 x width + 12 x feed-forward bytes a token and a mask, as it logs on a processor",
        "floor: products at the full dense rate, or at the speed their weights are read; one after the other; all else "
        "fused into them",
        "op by op: every operation also reads its inputs from memory and writes its outputs; an engine fuses some of "
        "that away",
        f"decoder: weights and cache read once a pass; products of a quantized GGUF in INT8 on the {where}: llama.cpp "
        "quantizes what they are multiplied with",
        "not modelled: decoding the video, Haar and resizing, K-means and LDA, copies, starting kernels",
        f"clip: {work.width}x{work.height}, {work.candidates} candidates, {work.steps + 1} tokens written",
    ]
    if device.gpu:
        lines.append(
            "clocks: the mode's highest, not lowered by heat or by another nvpmodel mode; the GPU is ours alone"
        )
    return [*lines, PUBLISHED]


def show(found: Sequence[Plan], console: Console | None = None) -> None:
    """Print plans for a person: one in full, several as a table with a device a line."""
    console = console or Console(highlight=False)
    if len(found) == 1:
        _show_one(found[0], console)
    else:
        _show_many(found, console)


def _show_one(one: Plan, console: Console) -> None:
    console.print(Text(f"{one.bundle} on {one.device}: {one.mode}\n", style="bold"))
    console.print(_memory_table(one.memory))
    console.print(Text(f"\n{_sentence(one.memory)}\n", style="bold"))
    console.print(_stage_table(one))
    console.print(f"\na generated token {one.token_ms:.2f} ms or more: {1e3 / one.token_ms:.0f} tokens/s at most\n")
    if one.check is not None:
        _show_check(one.check, console)
    console.print("Assumptions")
    console.print(_list(one.assumptions))


def _sentence(memory: Memory) -> str:
    if memory.spare < 0:
        return f"Does not fit: {-memory.spare / 1e6:,.0f} MB too little"
    return f"{memory.verdict.capitalize()}: {memory.spare / 1e6:,.0f} MB to spare"


def _columns(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _memory_table(memory: Memory) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("memory")
    table.add_column("MB", justify="right")
    table.add_column("how")
    for part in memory.parts:
        table.add_row(part.name, f"{part.bytes / 1e6:,.1f}", part.how)
    table.add_row("needed", f"{memory.needed / 1e6:,.1f}", "all of these")
    table.add_row("available", f"{memory.available / 1e6:,.1f}", "to Linux")
    return table


def _stage_table(one: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for heading in ("floor ms", "op by op ms", "GFLOP"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("work")
    for stage in one.stages:
        unfused = "" if stage.unfused_ms is None else f"{stage.unfused_ms:,.1f}"
        table.add_row(stage.name, f"{stage.floor_ms:,.1f}", unfused, f"{stage.flops / 1e9:,.1f}", stage.work)
    table.add_row("total", f"{one.total_ms:,.1f}", "", "", "without decoding the video")
    return table


def _show_check(check: Check, console: Console) -> None:
    table = _columns(["stage"], ["median ms", "floor ms", "measured / floor", "runs"])
    for stage in check.stages:
        cells = (f"{stage.measured_ms:,.1f}", f"{stage.floor_ms:,.1f}", f"{stage.ratio:.1f}", str(stage.runs))
        table.add_row(stage.name, *cells)
    console.print("Measured here, on the sample clip")
    console.print(table)
    busy = "the machine was busy: measure again when it is idle" if check.busy else "the machine was idle"
    console.print(f"load average before it began {check.load:.1f}: {busy}")
    console.print(
        f"memory: {check.measured_bytes / 1e6:,.0f} MB at peak, {check.predicted_bytes / 1e6:,.0f} MB by the model: "
        f"measured / model {check.ratio:.2f}\n"
    )


def _show_many(found: Sequence[Plan], console: Console) -> None:
    console.print(Text(f"{found[0].bundle}: floors in ms, memory in GB\n", style="bold"))
    table = _columns(["device", "memory"], ["needs", "has", "sample", "encode", "prefill", "a token", "total"])
    for one in found:
        memory, floors = one.memory, {stage.name: stage.floor_ms for stage in one.stages}
        table.add_row(
            one.device,
            memory.verdict,
            f"{memory.needed / 1e9:.1f}",
            f"{memory.available / 1e9:.1f}",
            *(f"{floors[name]:,.1f}" for name in ("sample", "encode", "prefill")),
            f"{one.token_ms:.2f}",
            f"{one.total_ms:,.0f}",
        )
    console.print(table)
    console.print("\nsvrt plan BUNDLE --device NAME prints each with what it rests on; `--device this` measures here.")
    console.print(_list([PUBLISHED]))


def _list(lines: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column()
    for line in lines:
        table.add_row("-", Text(line))
    return table
