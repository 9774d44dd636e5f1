"""A recipe: what to export, from where, and how. TOML on disk, checked key by key.

A source is a path (relative to the recipe), or `package:NAME/FILE` for a file inside an installed package. The
built-in recipes lie in `svrt/exporter/recipes`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..bundle import DecoderSpec, EncoderSpec, SamplerSpec
from ..errors import RecipeError, SvrtError
from ..models.graph import Precision
from ..records import from_json
from .quantize import QUANTIZATIONS
from .source import resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    seed: int = 0
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
    precision: Precision = "fp32"

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
    """A LLaMA (GGUF file or Hugging Face folder), a LoRA to merge, and the prompt around the video tokens."""

    source: str
    prefix: str
    suffix: str
    adapter: str | None = None
    quantization: str = "q4_k_m"
    max_tokens: int = 96

    def spec(self, width: int) -> DecoderSpec:
        """What the bundle says of it, for video tokens of `width`; raises `SvrtError` as above."""
        return DecoderSpec(prefix=self.prefix, suffix=self.suffix, max_tokens=self.max_tokens, width=width)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; `folder` is where relative sources start."""

    name: str
    sampler: SamplerRecipe
    encoder: EncoderRecipe
    projector: ProjectorRecipe
    decoder: DecoderRecipe
    folder: Path = field(default=Path(), metadata={"key": False})

    def sources(self) -> dict[str, Path]:
        """Every source by its role, found on disk. Raises `RecipeError` for the first that is not there."""
        wanted = {
            "sampler": self.sampler.source,
            "encoder": self.encoder.source,
            "projector": self.projector.source,
            "decoder": self.decoder.source,
        }
        if self.decoder.adapter is not None:
            wanted["adapter"] = self.decoder.adapter
        return {role: resolve(source, self.folder) for role, source in wanted.items()}


def read_recipe(recipe: str) -> Recipe:
    """Read a recipe by built-in name ("pocket") or by path to a TOML file.

    Raises `RecipeError` where it does not exist, is not TOML, or has an unknown key, a wrong type or value.
    """
    built_in = sorted(path.stem for path in BUILT_IN.glob("*.toml"))
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
        read = from_json(Recipe, values, "")
        _check(read)
    except SvrtError as exc:
        raise RecipeError(f"{path}: {exc}") from None
    decoder = replace(read.decoder, quantization=read.decoder.quantization.lower())
    return replace(read, decoder=decoder, folder=path.parent.absolute())


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
