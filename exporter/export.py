"""A recipe becomes a bundle: graphs written, LoRA merged, decoder quantized, each compared with its reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import gguf
import onnx

from .. import bundle as contract
from ..bundle import Bundle, EncoderSpec, FileRecord, Manifest, Parity, TensorSpec
from ..errors import RecipeError
from ..models import vgg16, vjepa2
from ..models.checkpoint import Checkpoint
from ..models.projector import Projector
from .decoder import quantize, write_merged_gguf
from .parity import decoder_parity, encoder_parity, sample_candidates, vgg16_parity
from .recipe import Recipe

# Called with the stage's name, and how much of it is done out of how much.
Report = Callable[[str, int, int], None]


def export(recipe: Recipe, out: Path, report: Report = lambda *_: None) -> Bundle:
    """Export `recipe` to the folder `out`, whole or not at all, and return the bundle.

    `report` is called as stages (`svrt.exporter.report.LABELS`) begin, advance and end. The same recipe, sources and
    versions give the same files, byte by byte; only the parity figures in the manifest, which are measured, may differ
    between machines.

    Raises `RecipeError` where a source is missing or parts do not fit each other, `CheckpointError` for tensors that
    do not, `OutputError` where `out` cannot be written.
    """
    out = out.absolute()  # `--out .` names another folder once this one is replaced
    with _stage(report, "sources"):
        paths = recipe.sources()
        provenance = {role: fingerprint(path) for role, path in paths.items()}
        sampler, encoder, projector = (Checkpoint(paths[role]) for role in ("sampler", "encoder", "projector"))
        size = vjepa2.Config.read(encoder).crop_size
        sampler_spec, encoder_spec = recipe.sampler.spec(), recipe.encoder.spec(recipe.sampler.keyframes, size)
    with contract.atomic_folder(out) as folder:
        with _stage(report, "vgg16"):
            vgg16.build(sampler, recipe.sampler.size, recipe.sampler.precision).save(folder / contract.VGG16)
        with _stage(report, "encoder"):
            width = _write_encoder(recipe, encoder, projector, encoder_spec, folder / contract.ENCODER)
        parity: dict[str, Parity] = {}
        with _stage(report, "parity"):
            clip = sample_candidates(sampler_spec, encoder_spec)
            parity[contract.VGG16] = vgg16_parity(
                folder / contract.VGG16, sampler, sampler_spec, clip, recipe.sampler.precision
            )
            parity[contract.ENCODER], tokens = encoder_parity(
                folder / contract.ENCODER, encoder, projector, encoder_spec, clip, recipe.encoder.precision
            )
        decoder_spec = recipe.decoder.spec(width)
        merged, quantized = folder / "merged.gguf", folder / contract.DECODER
        write_merged_gguf(
            paths["decoder"], paths.get("adapter"), merged, name=recipe.name, progress=_advance(report, "merge")
        )
        _check_width(merged, width)
        quantize(merged, quantized, recipe.decoder.quantization, progress=_advance(report, "quantize"))
        with _stage(report, "manifest"):
            parity[contract.DECODER] = decoder_parity(quantized, merged, decoder_spec, tokens)
            merged.unlink()
            manifest = Manifest(
                schema=contract.SCHEMA,
                name=recipe.name,
                svrt=version("svrt"),
                sampler=sampler_spec,
                encoder=encoder_spec,
                decoder=decoder_spec,
                files=_records(recipe, folder),
                provenance=provenance,
                parity=parity,
            )
            contract.write_manifest(folder, manifest)
    return Bundle.load(out, verify=False)


@contextmanager
def _stage(report: Report, name: str) -> Iterator[None]:
    report(name, 0, 1)
    yield
    report(name, 1, 1)


def _advance(report: Report, name: str) -> Callable[[int, int], None]:
    return lambda done, total: report(name, done, total)


def fingerprint(path: Path) -> str:
    """sha256 of a file, or of the sorted names and hashes of a folder's files."""
    if path.is_file():
        return contract.sha256_of(path)
    digest = hashlib.sha256()
    try:
        files = sorted(p for p in path.iterdir() if p.is_file())
    except OSError as exc:
        raise RecipeError(f"{path}: cannot be read: {exc.strerror}") from exc
    for file in files:
        digest.update(f"{contract.sha256_of(file)}  {file.name}\n".encode())
    return digest.hexdigest()


def _write_encoder(recipe: Recipe, checkpoint: Checkpoint, projector: Checkpoint, spec: EncoderSpec, out: Path) -> int:
    """Write the encoder with its projector; returns the width of a video token."""
    weights = Projector.read(projector, vjepa2.Config.read(checkpoint).hidden_size)
    grid = (spec.token_grid[0], spec.token_grid[1], spec.token_grid[2])
    vjepa2.build(checkpoint, spec.frames, grid, weights, recipe.encoder.precision).save(out)
    return weights.width


def _check_width(merged: Path, width: int) -> None:
    found = gguf.GGUFReader(merged).get_field("llama.embedding_length")
    if found is None or int(found.contents()) != width:
        have = "unknown" if found is None else found.contents()
        raise RecipeError(
            f"projector gives tokens of width {width}, but the decoder's width is {have}; they do not fit"
        )


def _records(recipe: Recipe, folder: Path) -> dict[str, FileRecord]:
    """What `bundle.json` says of every file in the folder."""
    precision = {
        contract.VGG16: recipe.sampler.precision,
        contract.ENCODER: recipe.encoder.precision,
        contract.DECODER: recipe.decoder.quantization,
    }
    records = {}
    for file in sorted(folder.iterdir()):
        inputs, outputs = _graph_ends(file) if file.suffix == ".onnx" else ([], [])
        records[file.name] = FileRecord(
            bytes=file.stat().st_size,
            sha256=contract.sha256_of(file),
            precision=precision[file.name.removesuffix(".data")],
            inputs=inputs,
            outputs=outputs,
        )
    return records


def _graph_ends(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    graph = onnx.load(str(path), load_external_data=False).graph
    return [_tensor_spec(v) for v in graph.input], [_tensor_spec(v) for v in graph.output]


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, shape, dtype)
