"""A recipe: what to export, from where, and how. TOML on disk, checked key by key.

A source is a path (relative to the recipe), `package:NAME/FILE` for a file inside an installed package, a Hugging Face
id (`owner/name`, `owner/name@revision`), `random` or `random:SEED` for random weights of SV3.3B's shapes, or empty
where it is to be given on the command line. The built-in recipes lie in `svrt/exporter/recipes`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..bundle import DecoderSpec, EncoderSpec, SamplerSpec
from ..errors import RecipeError, SvrtError
from ..models.graph import PRECISIONS, Precision
from ..records import from_json
from .quantize import QUANTIZATIONS
from .source import Found, resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROLES = ("sampler", "encoder", "projector", "decoder", "adapter")
RANDOM = "random"
EncoderPrecision = Literal["fp32", "fp16", "int8"]
INT8: EncoderPrecision = "int8"
NO_INT8_VGG16 = "VGG-16 is not offered in int8: it would choose other keyframes"  # bfloat16 does, in most clips
# What the paper names, for the roles that have public weights.
PUBLIC = {
    "sampler": "timm/vgg16.tv_in1k",
    "encoder": "facebook/vjepa2-vitl-fpc64-256",
    "decoder": "meta-llama/Llama-3.2-3B-Instruct",
}

BUILT_IN = Path(__file__).parent / "recipes"

VJEPA2_RESIZE = 256 / 224  # VJEPA2VideoProcessor: the shorter side is resized to crop_size x 256 / 224
IMAGENET_MEAN = [0.485, 0.456, 0.406]  # RGB, 0 to 1: torchvision's and V-JEPA 2's normalisation
IMAGENET_STD = [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class SamplerRecipe:
    """VGG-16 and how it chooses. `size` is its square input in pixels, 32 or more."""

    source: str
    keyframes: int = 16
    candidates: int = 64
    wavelet: str = "haar"
    level: int = 2
    size: int = 224
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: float = 255.0
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    precision: Precision = "fp32"

    def spec(self) -> SamplerSpec:
        """What the bundle says of it; raises `SvrtError` for values that cannot work."""
        values = asdict(self)
        return SamplerSpec(**{name: values[name] for name in SamplerSpec.__dataclass_fields__})


@dataclass(frozen=True)
class EncoderRecipe:
    """A V-JEPA 2 checkpoint. `resize` is the shorter side before the crop; 0 is V-JEPA 2's own, size x 256 / 224."""

    source: str
    fit: Literal["crop", "stretch"] = "crop"
    resize: int = 0
    token_grid: list[int] = field(default_factory=lambda: [8, 4, 4])
    scale: float = 255.0
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    precision: EncoderPrecision = "fp32"

    def spec(self, frames: int, size: int) -> EncoderSpec:
        """What the bundle says of it, for a checkpoint of `size` pixels; raises `SvrtError` as above."""
        return EncoderSpec(
            frames=frames,
            size=size,
            fit=self.fit,
            resize=self.resize or int(size * VJEPA2_RESIZE),
            token_grid=self.token_grid,
            scale=self.scale,
            mean=self.mean,
            std=self.std,
        )


@dataclass(frozen=True)
class ProjectorRecipe:
    source: str


@dataclass(frozen=True)
class DecoderRecipe:
    """A LLaMA (GGUF file or Hugging Face folder), a LoRA to merge if any, and the prompt around the video tokens."""

    source: str
    prefix: str
    suffix: str
    adapter: str | None = None
    quantization: str = "q4_k_m"
    max_tokens: int = 96
    answers: dict[str, str] = field(default_factory=dict)
    temperature: float = 1.0

    def spec(self, width: int) -> DecoderSpec:
        """What the bundle says of it, for video tokens of `width`; raises `SvrtError` as above."""
        return DecoderSpec(self.prefix, self.suffix, self.max_tokens, width, self.answers, self.temperature)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `bases` are the folders where a role's relative source starts, if not in `folder`."""

    name: str
    sampler: SamplerRecipe
    encoder: EncoderRecipe
    projector: ProjectorRecipe
    decoder: DecoderRecipe
    folder: Path = field(default=Path(), metadata={"key": False})
    bases: dict[str, Path] = field(default_factory=dict, metadata={"key": False})

    def sources(self) -> dict[str, str]:
        """Every source by its role, as it was given; no adapter where the recipe has none."""
        sources = {
            "sampler": self.sampler.source,
            "encoder": self.encoder.source,
            "projector": self.projector.source,
            "decoder": self.decoder.source,
        }
        return sources if self.decoder.adapter is None else {**sources, "adapter": self.decoder.adapter}

    def with_sources(self, given: dict[str, str], base: Path) -> Recipe:
        """The same recipe with other sources by role; relative paths among them start at `base`."""
        given = {role: source for role, source in given.items() if source}
        changed = {
            role: replace(getattr(self, role), source=source) for role, source in given.items() if role != "adapter"
        }
        recipe = replace(self, **changed, bases={**self.bases, **dict.fromkeys(given, base)})
        if "adapter" not in given:
            return recipe
        return replace(recipe, decoder=replace(recipe.decoder, adapter=given["adapter"]))

    def with_random_weights(self, seed: int) -> Recipe:
        """The same recipe with random weights for each role that has no source."""
        return self.with_sources({role: f"{RANDOM}:{seed}" for role, s in self.sources().items() if not s}, self.folder)

    def with_precision(self, precision: EncoderPrecision) -> Recipe:
        """The same recipe with both graphs in `precision`; with "int8" the encoder alone, see `NO_INT8_VGG16`."""
        sampler = self.sampler if precision == "int8" else replace(self.sampler, precision=precision)
        return replace(self, sampler=sampler, encoder=replace(self.encoder, precision=precision))

    def with_quantization(self, quantization: str) -> Recipe:
        """The same recipe with the decoder in `quantization`. Raises `RecipeError` for one that is not known."""
        quantization = quantization.lower()
        if quantization not in QUANTIZATIONS:
            raise RecipeError(f"quantization {quantization!r} is not known; one of {', '.join(QUANTIZATIONS)}")
        return replace(self, decoder=replace(self.decoder, quantization=quantization))

    def random_seeds(self) -> dict[str, int]:
        """The seed of each role that is to get random weights. Raises `RecipeError` for one that is no number."""
        seeds = {}
        for role, source in self.sources().items():
            kind, _, seed = source.partition(":")
            if kind == RANDOM:
                if not (seed or "0").isdecimal():
                    raise RecipeError(f"{role}: {source!r} is not of the form {RANDOM} or {RANDOM}:SEED")
                seeds[role] = int(seed or "0")
        return seeds

    def find(self, progress: Callable[[int, int], None]) -> dict[str, Found]:
        """Every source that is not random, found on disk or downloaded; `progress` gets bytes of downloads.

        Raises `RecipeError` for those that were not given, and for the first that is not there.
        """
        sources = self.sources()
        missing = [role for role, source in sources.items() if not source]
        if missing:
            flags = " ".join(f"--{role} {PUBLIC.get(role, 'PATH')}" for role in missing)
            raise RecipeError(f"{self.name}: no source for {', '.join(missing)}; give {flags}, or --random-weights")
        wanted = {role: source for role, source in sources.items() if role not in self.random_seeds()}
        return {role: resolve(source, self.bases.get(role, self.folder), progress) for role, source in wanted.items()}


def read_recipe(recipe: str) -> Recipe:
    """Read a recipe by built-in name ("pocket", "sv3.3b") or by path to a TOML file.

    Raises `RecipeError` where it does not exist, is not TOML, or has an unknown key, a wrong type or value.
    """
    built_in = sorted(path.name.removesuffix(".toml") for path in BUILT_IN.glob("*.toml"))
    path = BUILT_IN / f"{recipe}.toml" if recipe in built_in else Path(recipe)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{recipe}: no recipe of that name or path; built in: {', '.join(built_in)}") from None
    except OSError as exc:
        raise RecipeError(f"{path}: cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not a text file; a recipe is TOML") from None
    except tomllib.TOMLDecodeError as exc:
        raise RecipeError(f"{path}: not TOML: {exc}") from exc
    try:
        sampler = values.get("sampler")
        if isinstance(sampler, dict) and sampler.get("precision") == INT8:
            raise SvrtError(f"[sampler] precision = 'int8': {NO_INT8_VGG16}")
        read = from_json(Recipe, values, "")
        _check(read)
    except SvrtError as exc:
        raise RecipeError(f"{path}: {exc}") from None
    decoder = replace(read.decoder, quantization=read.decoder.quantization.lower())
    return replace(read, decoder=decoder, folder=path.parent.absolute())


def check_precision(precision: str) -> EncoderPrecision:
    """`precision` as that of graphs. Raises `RecipeError` for one that is not known."""
    for known in (*PRECISIONS, INT8):
        if precision.lower() == known:
            return known
    raise RecipeError(f"precision {precision!r} is not known; one of {', '.join((*PRECISIONS, INT8))}")


def _check(recipe: Recipe) -> None:
    """Raise `SvrtError` for values of the right type that cannot work."""
    for where, check in (
        ("sampler", recipe.sampler.spec),
        ("encoder", lambda: recipe.encoder.spec(recipe.sampler.keyframes, recipe.encoder.resize or 256)),
        ("decoder", lambda: recipe.decoder.spec(1)),
    ):
        try:
            check()
        except SvrtError as exc:
            raise SvrtError(f"[{where}] {exc}") from None
    if recipe.decoder.quantization.lower() not in QUANTIZATIONS:
        given = recipe.decoder.quantization
        raise SvrtError(f"decoder.quantization = {given!r}; one of {', '.join(QUANTIZATIONS)}")
