"""The parts of a system before any work: found or drawn at random, hashed, and held against each other.

What can be told without reading weights is told here: a projector for another encoder, a LoRA for another base, a disk
too small.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle import DecoderSpec, EncoderSpec, SamplerSpec, Source, sha256_of
from ..errors import OutputError, RecipeError
from ..models import llama, vgg16, vjepa2
from ..models.checkpoint import Checkpoint
from ..models.projector import Names
from . import random_weights
from .decoder import Progress, open_base
from .quantize import QUANTIZATIONS
from .random_weights import Layout
from .recipe import Recipe
from .stages import Stages, key_of

RANDOM_FOLDER = "random"
READ_SUFFIXES = (".safetensors", ".json", ".jinja")  # of files in a checkpoint's folder
CONFIGURATIONS = ("config.json", "adapter_config.json")  # what a checkpoint named by its file is read with
_SPARE = 64 << 20  # bytes of disk for what is not counted: the manifest, parity tokens, the file system's own


@dataclass(frozen=True)
class Part:
    """One part on disk, and where it came from."""

    path: Path
    source: Source


@dataclass(frozen=True)
class Parts:
    """Every part by its role in the recipe, and what the bundle says of sampler, encoder and decoder."""

    by_role: dict[str, Part]
    sampler: SamplerSpec
    encoder: EncoderSpec
    decoder: DecoderSpec

    def path(self, role: str) -> Path:
        return self.by_role[role].path

    @property
    def adapter(self) -> Path | None:
        """The LoRA's folder, where there is one."""
        return self.by_role["adapter"].path if "adapter" in self.by_role else None

    def checkpoint(self, role: str) -> Checkpoint:
        """A part that is a checkpoint of tensors: sampler, encoder or projector."""
        return Checkpoint(self.path(role))

    def hashes(self, *roles: str) -> list[str]:
        """What a stage's key says of the parts it reads."""
        return [self.by_role[role].source.sha256 for role in roles if role in self.by_role]


def locate(recipe: Recipe, progress: Progress = lambda *_: None) -> dict[str, Part]:
    """Every part that is not random: found, or downloaded, and hashed. `progress` gets bytes of downloads.

    Raises `RecipeError` where a source was not given or is not there, `BundleError` where it cannot be read.
    """
    names, parts = recipe.sources(), {}
    for role, found in recipe.find(progress).items():
        parts[role] = Part(found.path, Source(names[role], found.revision, fingerprint(found.path)))
    return parts


def gather(recipe: Recipe, located: Mapping[str, Part], stages: Stages) -> Parts:
    """All parts of `recipe`: those `located`, and the others drawn at random into the working folder.

    Raises `OutputError` where the disk is too small for the export, `RecipeError` or `CheckpointError` where a part is
    none, or two do not fit each other.
    """
    shapes = _Shapes.read(recipe, {role: part.path for role, part in located.items()})
    seeds = recipe.random_seeds()
    layouts = {role: shapes.layout(role) for role in seeds}
    _check_space(_needs(recipe, shapes, layouts, stages), stages)
    parts = dict(located)
    for role, layout in layouts.items():
        folder = stages.work / RANDOM_FOLDER / role
        parts[role] = Part(
            folder, Source(recipe.sources()[role], None, _draw(role, layout, seeds[role], folder, stages))
        )
    return Parts(parts, recipe.sampler.spec(), shapes.encoder_spec(recipe), recipe.decoder.spec(shapes.decoder.width))


def fingerprint(path: Path) -> str:
    """sha256 of a file, or of the sorted names and hashes of those files that an export may read: of a folder, or of a
    file of tensors and the configuration beside it."""
    try:
        if path.is_file():
            beside = [path.with_name(name) for name in CONFIGURATIONS if path.suffix == ".safetensors"]
            files = [path, *(file for file in beside if file.is_file())]
        else:
            files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in READ_SUFFIXES)
    except OSError as exc:
        raise RecipeError(f"{path}: cannot be read: {exc.strerror}") from exc
    if files == [path]:
        return sha256_of(path)
    return _of_files({file.name: sha256_of(file) for file in files})


def _of_files(hashes: Mapping[str, str]) -> str:
    lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _draw(role: str, layout: Layout, seed: int, folder: Path, stages: Stages) -> str:
    """Write a random checkpoint, unless an interrupted export already has; returns its fingerprint."""

    def write(progress: Callable[[int, int], None]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        layout.write(folder, seed, progress)

    key = key_of(role, seed, layout.total_bytes, np.__version__)
    done = stages.run(f"random {role}", key, write, lambda: sorted(folder.iterdir()))
    return _of_files({Path(file).name: stored.sha256 for file, stored in done.files.items()})


@dataclass(frozen=True)
class _Shapes:
    """The numbers that parts must agree on, read from configurations: of the files, or of what will be drawn."""

    encoder: vjepa2.Config
    encoder_elements: int
    decoder: llama.LlamaShape

    @classmethod
    def read(cls, recipe: Recipe, paths: Mapping[str, Path]) -> _Shapes:
        """Raises `CheckpointError` for a part that is none, `RecipeError` where two do not fit."""
        if "encoder" in paths:
            checkpoint = Checkpoint(paths["encoder"])
            encoder = vjepa2.Config.read(checkpoint)
            elements = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
        else:
            encoder, elements = vjepa2.Config(), random_weights.vjepa2_layout().elements
        if "decoder" in paths:
            decoder = open_base(paths["decoder"]).shape
        else:
            decoder = llama.LlamaShape.from_config(random_weights.LLAMA_3_2_3B, Path("config.json"))
        time, rows, columns = recipe.encoder.token_grid
        video, text = time * rows * columns, recipe.decoder.max_tokens
        if video + text >= decoder.context:
            raise RecipeError(
                f"{recipe.name}: {video} video tokens and {text} of text do not fit into the decoder's context of "
                f"{decoder.context}; lower token_grid or max_tokens"
            )
        vjepa2.check_fit(encoder, recipe.sampler.keyframes, (time, rows, columns))
        if "sampler" in paths:
            Checkpoint(paths["sampler"])
        if "projector" in paths:
            _check_projector(Checkpoint(paths["projector"]), encoder.hidden_size, decoder.width)
        if "adapter" in paths:
            llama.Adapter(paths["adapter"]).check(decoder.linear_shapes())
        return cls(encoder, elements, decoder)

    def layout(self, role: str) -> Layout:
        """The random checkpoint that fits the other parts."""
        layouts: dict[str, Callable[[], Layout]] = {
            "sampler": random_weights.vgg16_layout,
            "encoder": random_weights.vjepa2_layout,
            "projector": lambda: random_weights.projector_layout(self.encoder.hidden_size, self.decoder.width),
            "decoder": random_weights.llama_layout,
            "adapter": lambda: random_weights.adapter_layout(self.decoder),
        }
        return layouts[role]()

    def encoder_spec(self, recipe: Recipe) -> EncoderSpec:
        return recipe.encoder.spec(recipe.sampler.keyframes, self.encoder.crop_size)


def _check_projector(checkpoint: Checkpoint, width_in: int, width_out: int) -> None:
    names = Names.find(checkpoint)
    found_in, found_out = checkpoint.shape(f"{names.first}.weight")[-1], checkpoint.shape(f"{names.second}.weight")[0]
    if found_in != width_in:
        raise RecipeError(
            f"{checkpoint.path}: the projector reads tokens of width {found_in}, the encoder's width is {width_in}; "
            "they do not fit"
        )
    if found_out != width_out:
        raise RecipeError(
            f"{checkpoint.path}: the projector gives tokens of width {found_out}, the decoder's width is {width_out}; "
            "they do not fit"
        )


def _needs(recipe: Recipe, shapes: _Shapes, layouts: Mapping[str, Layout], stages: Stages) -> int:
    """Bytes of disk that the stages still to do will take; all is there at once before the working folder goes."""
    size = {"fp32": 4, "fp16": 2, "int8": 4}  # at most: parity may leave much of it in float32
    merged = 2 * sum(math.prod(shape) for shape in shapes.decoder.tensor_shapes().values())
    needs = {f"random {role}": layout.total_bytes for role, layout in layouts.items()}
    needs["vgg16"] = size[recipe.sampler.precision] * vgg16.PARAMETERS
    needs["encoder"] = size[recipe.encoder.precision] * shapes.encoder_elements
    needs["calibrate"] = 4 * shapes.encoder_elements if recipe.encoder.precision == "int8" else 0
    needs["merge"] = 0 if "quantize" in stages else merged
    needs["quantize"] = int(merged * QUANTIZATIONS[recipe.decoder.quantization][1] / 16)
    return sum(need for stage, need in needs.items() if stage not in stages) + _SPARE


def _check_space(need: int, stages: Stages) -> None:
    free = shutil.disk_usage(stages.folder).free
    if free < need:
        raise OutputError(
            f"{stages.folder.parent}: the export needs {need / 1e9:.1f} GB of disk there and {free / 1e9:.1f} GB are "
            "free; make room, or choose another place for --out"
        )
