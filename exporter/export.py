"""A recipe becomes a bundle: graphs written, LoRA merged, decoder quantized, each compared with its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .. import bundle as contract
from ..bundle import Bundle, EngineRecord, FileRecord, Int8Record, Manifest, Parity, TensorSpec
from ..models import vgg16, vjepa2
from ..models.graph import Precision, data_file
from ..models.projector import Projector
from . import engines as tensorrt
from . import int8
from .decoder import Progress, quantize, write_merged_gguf
from .parity import decoder_parity, encoder_parity, sample_candidates, vgg16_parity
from .parts import Parts, gather, locate
from .recipe import INT8, Recipe
from .stages import Done, Report, Stages, key_of

MERGED, TOKENS = "merged.gguf", "tokens.npy"


def export(
    recipe: Recipe,
    out: Path,
    report: Report = lambda *_: None,
    engines: tensorrt.Request | None = None,
    calibration: Path | None = None,
) -> Bundle:
    """Export `recipe` to the folder `out`, whole or not at all, and return the bundle.

    `report` is called as stages (`svrt.exporter.report.LABELS`) begin, advance and end; a stage that ends without
    having begun was kept from an export that was interrupted. `engines` asks for TensorRT engines too. An encoder in
    int8 is calibrated and judged on the clips of the folder `calibration`, on the sample clips without one. The same
    recipe, sources and versions give the same files, byte by byte, but for engines; and the figures in the manifest
    that are measured, parity and speed, may differ between machines, and speed between exports.

    Raises `RecipeError` where a source is missing or parts do not fit each other, `ClipError` for a clip that cannot be
    read, `CheckpointError` for tensors that do not fit, or are not near enough to their reference when exported,
    `EngineError` where engines cannot be built, `OutputError` where `out` cannot be written or is too small.
    """
    out = out.absolute()  # `--out .` names another folder once this one is replaced
    contract.check_place(out)
    if engines is not None:
        engines.check()
    if recipe.encoder.precision == INT8:
        int8.find_clips(calibration)  # before the work of an export, not in it
    with _reported(report, "sources") as progress:
        located = locate(recipe, progress)
    with contract.atomic_folder(out) as folder:
        stages = Stages(folder, report)
        run = _Export(recipe, gather(recipe, located, stages), stages, calibration)
        run.write_graphs()
        run.write_decoder()
        if engines is not None:
            run.build_engines(engines)
        with _reported(report, "manifest"):
            stages.finish()
            contract.write_manifest(folder, run.manifest())
    return Bundle.load(out, verify=False)


@contextmanager
def _reported(report: Report, name: str) -> Iterator[Callable[[int, int], None]]:
    """Report a stage that is done anew every time; gives a function for its progress."""
    report(name, 0, 1)
    yield lambda done, total: report(name, min(done, total - 1), total)
    report(name, 1, 1)


class _Export:
    """One export under way: its stages, and what they have found out so far."""

    def __init__(self, recipe: Recipe, parts: Parts, stages: Stages, calibration: Path | None) -> None:
        self.recipe, self.parts, self.stages, self.calibration = recipe, parts, stages, calibration
        self.folder = stages.bundle
        self.files: dict[str, FileRecord] = {}
        self.parity: dict[str, Parity] = {}
        self.engines: dict[str, EngineRecord] = {}
        self.int8: dict[str, Int8Record] = {}
        self.tokens = stages.work / TOKENS  # the sample clip's video tokens, float32 [tokens, width]

    def write_graphs(self) -> None:
        """VGG-16 and the encoder with its projector, each held against its reference."""
        recipe, parts = self.recipe, self.parts
        vgg, encoder = self.folder / contract.VGG16, self.folder / contract.ENCODER
        size, precision = recipe.sampler.size, recipe.sampler.precision
        vgg_key = key_of(*parts.hashes("sampler"), size, precision)
        self._run_graph(
            "vgg16", vgg_key, vgg, precision, lambda: vgg16.write(vgg, parts.checkpoint("sampler"), size, precision)
        )
        spec, encoder_precision = parts.encoder, recipe.encoder.precision
        encoder_key = key_of(*parts.hashes("encoder", "projector"), spec.frames, spec.token_grid, encoder_precision)
        if encoder_precision == "int8":
            encoder_key = self._quantize_encoder(encoder_key, encoder)
        else:
            write = partial(self._write_encoder, encoder, encoder_precision)
            self._run_graph("encoder", encoder_key, encoder, encoder_precision, write)
        done = self.stages.run(
            "parity", key_of(vgg_key, encoder_key, parts.sampler, spec), self._compare_graphs, lambda: [self.tokens]
        )
        self.parity |= {name: Parity(**figures) for name, figures in done.result.items()}

    def _run_graph(self, name: str, key: str, path: Path, precision: str, write: Callable[[], None]) -> None:
        def work(_: object) -> None:
            write()

        self._add_files(self.stages.run(name, key, work, lambda: [path, data_file(path)]), precision)

    def _quantize_encoder(self, key: str, path: Path) -> str:
        """The encoder in int8 at `path`, by way of one in float32; returns what it was made from, as a key."""
        stages, parts = self.stages, self.parts
        float32 = stages.work / contract.ENCODER
        clips = int8.Clips(*int8.find_clips(self.calibration), parts.sampler, parts.encoder)

        def calibrate(progress: Progress) -> dict[str, Any]:
            self._write_encoder(float32, "fp32")
            return int8.steps(float32, clips, progress)

        def choose(progress: Progress) -> dict[str, Any]:
            write = partial(self._write_encoder, path, "fp32")
            return asdict(int8.choose(float32, path, steps, write, clips, progress))

        key = key_of(key, clips.hashes(), asdict(parts.encoder), parts.sampler.candidates)
        steps = stages.run("calibrate", key, calibrate, lambda: [float32, data_file(float32)]).result
        done = stages.run("encoder", key, choose, lambda: [path, data_file(path)])
        self._add_files(done, INT8)
        record = Int8Record(**done.result)
        timed = stages.run("speed", key, lambda _: int8.speed(float32, path, clips, stages.work))
        self.int8[contract.ENCODER] = replace(record, **timed.result)
        return key

    def _write_encoder(self, path: Path, precision: Precision, steps: Mapping[str, float] | None = None) -> None:
        checkpoint, spec = self.parts.checkpoint("encoder"), self.parts.encoder
        projector = Projector.read(self.parts.checkpoint("projector"), vjepa2.Config.read(checkpoint).hidden_size)
        grid = (spec.token_grid[0], spec.token_grid[1], spec.token_grid[2])
        vjepa2.write(path, checkpoint, spec.frames, grid, projector, precision, steps)

    def _compare_graphs(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        recipe, parts = self.recipe, self.parts
        clip = sample_candidates(parts.sampler, parts.encoder)
        vgg = vgg16_parity(
            self.folder / contract.VGG16, parts.checkpoint("sampler"), parts.sampler, clip, recipe.sampler.precision
        )
        progress(1, 3)
        checkpoints = parts.checkpoint("encoder"), parts.checkpoint("projector")
        encoder, tokens = encoder_parity(
            self.folder / contract.ENCODER, *checkpoints, parts.encoder, clip, recipe.encoder.precision
        )
        np.save(self.tokens, tokens)
        return {contract.VGG16: asdict(vgg), contract.ENCODER: asdict(encoder)}

    def write_decoder(self) -> None:
        """LLaMA with its LoRA merged, quantized, and held against both apart in float32."""
        recipe, parts, stages = self.recipe, self.parts, self.stages
        merged, out = stages.work / MERGED, self.folder / contract.DECODER
        quantization = recipe.decoder.quantization
        merge_key = key_of(*parts.hashes("decoder", "adapter"), recipe.name)
        quantize_key = key_of(merge_key, quantization)

        def merge(progress: Progress) -> None:
            write_merged_gguf(parts.path("decoder"), parts.adapter, merged, name=recipe.name, progress=progress)

        parity_key = key_of(quantize_key, parts.decoder, self.parity[contract.ENCODER])
        if stages.kept("decoder parity", parity_key) is None:
            stages.run("merge", merge_key, merge, lambda: [merged])
        done = stages.run(
            "quantize", quantize_key, lambda p: quantize(merged, out, quantization, progress=p), lambda: [out]
        )
        self._add_files(done, quantization)
        done = stages.run("decoder parity", parity_key, self._compare_decoder)
        self.parity |= {name: Parity(**figures) for name, figures in done.result.items()}

    def _compare_decoder(self, progress: Progress) -> dict[str, Any]:
        parts = self.parts
        merged, quantized = decoder_parity(
            self.stages.work / MERGED,
            self.folder / contract.DECODER,
            parts.path("decoder"),
            parts.adapter,
            parts.decoder,
            np.load(self.tokens),
            self.recipe.decoder.quantization,
            progress,
        )
        return {MERGED: asdict(merged), contract.DECODER: asdict(quantized)}

    def build_engines(self, request: tensorrt.Request) -> None:
        """TensorRT engines of both graphs, under `engines/`."""
        digests = {name: record.sha256 for name, record in self.files.items()}

        def build(progress: Progress) -> dict[str, Any]:
            built = request.build(self.folder, digests, progress)
            return {name: asdict(record) for name, record in built.items()}

        done = self.stages.run(
            "engines",
            key_of(digests, asdict(request.target())),
            build,
            lambda: sorted((self.folder / contract.ENGINES).iterdir()),
        )
        self.engines = {name: EngineRecord(**values) for name, values in done.result.items()}
        for name, stored in done.files.items():
            file = (self.folder.parent / name).relative_to(self.folder).as_posix()
            precision = self.files[self.engines[file].graph].precision
            self.files[file] = FileRecord(stored.bytes, stored.sha256, precision)

    def _add_files(self, done: Done, precision: str) -> None:
        """What `bundle.json` will say of the files that a stage made."""
        for name, stored in done.files.items():
            path = self.folder.parent / name
            inputs, outputs = _graph_ends(path) if path.suffix == ".onnx" else ([], [])
            self.files[path.relative_to(self.folder).as_posix()] = FileRecord(
                stored.bytes, stored.sha256, precision, inputs, outputs
            )

    def manifest(self) -> Manifest:
        parts = self.parts
        return Manifest(
            schema=contract.SCHEMA,
            name=self.recipe.name,
            svrt=version("svrt"),
            sampler=parts.sampler,
            encoder=parts.encoder,
            decoder=parts.decoder,
            files=self.files,
            provenance={role: part.source for role, part in parts.by_role.items()},
            parity=self.parity,
            engines=self.engines,
            int8=self.int8,
        )


def _graph_ends(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    graph = onnx.load(str(path), load_external_data=False).graph
    return [_tensor_spec(v) for v in graph.input], [_tensor_spec(v) for v in graph.output]


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, shape, dtype)
