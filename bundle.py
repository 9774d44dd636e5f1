"""The bundle: a folder that holds everything the runtime needs, and `bundle.json`, which says what that is.

This is the one contract between the exporter and the runtime. A bundle is written into a hidden folder beside its
place and renamed, so it is whole or absent; and it is read only if its schema, sizes and hashes are right.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from .errors import BundleError, OutputError, SvrtError
from .records import from_json

MANIFEST = "bundle.json"
SCHEMA = 3
VGG16, ENCODER, DECODER = "vgg16.onnx", "encoder.onnx", "decoder.gguf"
# The least cosine with float32 arithmetic that a graph's precision may cost, at export and on the machine at hand.
GRAPH_COSINE = {"fp32": 0.99999, "int16": 0.9999, "fp16": 0.999, "bf16": 0.999, "dynamic int8": 0.999, "int8": 0.99}
ENGINES = "engines"  # folder of TensorRT engines, where the export built any


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph; a string in `shape` is a dimension left to the caller."""

    name: str
    shape: list[int | str]
    dtype: str


@dataclass(frozen=True)
class FileRecord:
    """One file of a bundle. `bytes` and `sha256` are of the file; `precision` is fp32, fp16, q8_0, ..."""

    bytes: int
    sha256: str
    precision: str
    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)


@dataclass(frozen=True)
class Parity:
    """How far an exported component is from its float32 reference, measured at export.

    `relative_error` is the L2 norm of the difference over that of the reference; `cosine` is of the flattened outputs.
    `reference` and `data` say what was compared with what.
    """

    relative_error: float
    cosine: float
    reference: str
    data: str


@dataclass(frozen=True)
class Source:
    """Where a part came from: its name as it was given, the hub's commit if it came from one, sha256 of what was read.

    The hash of a folder is that of its files' sorted names and hashes.
    """

    name: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class EngineRecord:
    """What a TensorRT engine was built from and for: see `svrt.runtime.engines.tensorrt_build`.

    `graph` is the bundle's file it was built from, `key` the sha256 of all that an engine depends on.
    """

    graph: str
    backend: str
    version: str
    compute_capability: str
    device: str
    key: str


@dataclass(frozen=True)
class Int8Record:
    """How much of a graph computes in int8, and what that was chosen by: see `svrt.exporter.int8`.

    Of `products` with weights, `int8` of them, holding `share` of all those weights, are int8; `kept` names the others.
    Clips are named with the sha256 of their files: `calibration` set the ranges; on `judged`, none of those, `cosine`
    is the least with the same graph in float32, and `limit` the least that was allowed. `speed` is how many times as
    fast as that graph it was on the machine that exported, each on its fastest backend: those in `timed`.
    """

    products: int
    int8: int
    share: float
    kept: list[str]
    calibration: dict[str, str]
    judged: dict[str, str]
    cosine: float
    limit: float
    speed: float
    timed: str


@dataclass(frozen=True)
class SamplerSpec:
    """How keyframes are chosen: see `svrt.runtime.sampler`. `size` is VGG-16's square input in pixels."""

    keyframes: int
    candidates: int
    wavelet: str
    level: int
    size: int
    channels: Literal["rgb", "bgr"]
    scale: float
    mean: list[float]
    std: list[float]

    def __post_init__(self) -> None:
        _require(
            2 <= self.keyframes <= self.candidates <= 1024, "keyframes must be from 2 to candidates, those to 1024"
        )
        _require(0 <= self.level <= 6, "level must be from 0 to 6")
        _require(32 <= self.size <= 1024, "size must be from 32 to 1024 pixels")
        _require(_is_wavelet(self.wavelet), f"wavelet {self.wavelet!r} is not known to PyWavelets")
        _check_normalisation(self.scale, self.mean, self.std)


@dataclass(frozen=True)
class EncoderSpec:
    """What the encoder reads: `frames` keyframes of `size` x `size` pixels, and the grid of tokens it gives.

    `fit` and `resize` are those of `svrt.kernels.preprocess.fit_square`.
    """

    frames: int
    size: int
    fit: Literal["crop", "stretch"]
    resize: int
    token_grid: list[int]
    scale: float
    mean: list[float]
    std: list[float]

    def __post_init__(self) -> None:
        _require(self.frames >= 2 and self.frames % 2 == 0, "frames must be even and 2 or more")
        _require(16 <= self.size <= self.resize <= 8192, "size must be 16 or more, and resize no less than it")
        grid = self.token_grid
        _require(len(grid) == 3 and min(grid) >= 1, "token_grid must be [time, rows, columns], each 1 or more")
        _check_normalisation(self.scale, self.mean, self.std)


@dataclass(frozen=True)
class DecoderSpec:
    """What the decoder is told around the video tokens, and how long it may answer (`max_tokens`).

    `answers` are the words that a text can begin with, by what they say, where a system always answers the same
    question first: a text's confidence is the share of its own beginning among them, of logits divided by
    `temperature`.
    """

    prefix: str
    suffix: str
    max_tokens: int
    width: int
    answers: dict[str, str] = field(default_factory=dict)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1 and self.width >= 1, "max_tokens and width must be 1 or more")
        _require(len(self.answers) != 1 and all(self.answers.values()), "answers must be two or more, none empty")
        _require(math.isfinite(self.temperature) and self.temperature > 0, "temperature must be above 0")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SvrtError(otherwise)


def _check_normalisation(scale: float, mean: list[float], std: list[float]) -> None:
    _require(len(mean) == len(std) == 3, "mean and std must have three numbers each")
    _require(all(map(math.isfinite, (scale, *mean, *std))), "scale, mean and std must be finite")
    _require(scale > 0 and min(std) > 0, "scale and std must be above 0")


def _is_wavelet(name: str) -> bool:
    if name == "haar":
        return True
    import pywt

    return name in pywt.wavelist(kind="discrete")


@dataclass(frozen=True)
class Manifest:
    """The content of `bundle.json`. `provenance` is by role in the recipe, the tables behind it by file name."""

    schema: int
    name: str
    svrt: str
    sampler: SamplerSpec
    encoder: EncoderSpec
    decoder: DecoderSpec
    files: dict[str, FileRecord]
    provenance: dict[str, Source]
    parity: dict[str, Parity]
    engines: dict[str, EngineRecord] = field(default_factory=dict)
    int8: dict[str, Int8Record] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. `sha256` is that of `bundle.json`, which names every other file's hash."""

    path: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def load(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Read a bundle, and check the size and hash of every file unless `verify` is False.

        Raises `BundleError` naming the file that is missing, altered, or of another schema.
        """
        bundle = cls.read_manifest(Path(path))
        bundle.check_sizes()
        if verify:
            bundle.check_hashes()
        return bundle

    @classmethod
    def read_manifest(cls, path: Path) -> Bundle:
        """Read `bundle.json` alone, no file beside it. Raises `BundleError` where it is none of this schema."""
        file = path / MANIFEST
        try:
            text = file.read_bytes()
            values = json.loads(text)
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{path}: not a bundle (no {MANIFEST}); make one with `svrt export --out`") from None
        except OSError as exc:
            raise BundleError(f"{file}: cannot be read: {exc.strerror}") from exc
        except (ValueError, RecursionError) as exc:
            raise BundleError(f"{file}: not JSON ({exc}); export the bundle again") from exc
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != SCHEMA:
            raise BundleError(f"{file}: schema {schema!r}, this svrt reads {SCHEMA}; export the bundle again")
        try:
            manifest = from_json(Manifest, values, "")
        except SvrtError as exc:
            raise BundleError(f"{file}: {exc}; export the bundle again") from None
        for name in (VGG16, ENCODER, DECODER):
            if name not in manifest.files:
                raise BundleError(f"{file}: lists no {name}; export the bundle again")
        for name in manifest.files:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise BundleError(f"{file}: lists {name!r}, which is outside the bundle")
        return cls(path, manifest, hashlib.sha256(text).hexdigest())

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.path / name

    def check_sizes(self) -> None:
        """Raise `BundleError` for the first file that is missing or has another size than the manifest says."""
        for name, record in self.manifest.files.items():
            file = self.file(name)
            try:
                size = file.stat().st_size
            except OSError:
                raise BundleError(f"{file}: missing from the bundle; export it again") from None
            if size != record.bytes:
                raise BundleError(f"{file}: {size} bytes, the manifest says {record.bytes}; export the bundle again")

    def check_hashes(self) -> None:
        """Raise `BundleError` for the first file whose sha256 differs from the manifest's."""
        records = self.manifest.files
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda name: sha256_of(self.file(name)), records)
            for (name, record), digest in zip(records.items(), found, strict=True):
                if digest != record.sha256:
                    raise BundleError(f"{self.file(name)}: sha256 is not the manifest's; export the bundle again")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read 1 MiB at a time; raises `BundleError` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    except OSError as exc:
        raise BundleError(f"{path}: cannot be read: {exc.strerror}") from exc
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json`; the same manifest always gives the same bytes."""
    text = json.dumps(asdict(manifest), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well.

    It is `.NAME.partial/bundle` beside `out`. The folder above it is the writer's own: what lies there, and in the
    bundle so far, outlives Ctrl-C, a kill and a power cut, so that the next writer can go on from it; it is removed
    when the block ends well, or with an error. A lock makes a second writer wait. Everything is on disk before the
    rename. An older bundle at `out` is replaced; anything else there is refused.

    Raises `OutputError` where the place cannot be written or holds something that is not a bundle.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100  resolve() would follow a link, which is to be refused
    try:
        _refuse_to_replace(out)
        partial, lock = _lock_partial(out)
    except OSError as exc:
        raise OutputError(f"{out}: cannot write there: {exc.strerror}") from exc
    try:
        yield partial / _WHOLE
        _sync(partial / _WHOLE)
        _move_into_place(partial / _WHOLE, out)
        shutil.rmtree(partial, ignore_errors=True)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(exc, OSError):
            raise OutputError(f"{out}: cannot write there: {exc.strerror or exc}") from exc
        raise
    finally:
        os.close(lock)


_WHOLE = "bundle"


def partial_folder(out: Path) -> Path:
    """Where a bundle to be at `out` is prepared."""
    return out.with_name(f".{out.name}.partial")


def check_place(out: Path) -> None:
    """Raise `OutputError` where `atomic_folder` could not begin at `out`."""
    out = Path(os.path.abspath(out))  # noqa: PTH100  as there
    partial = partial_folder(out)
    try:
        _refuse_to_replace(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        if not partial.exists():
            partial.mkdir()
            partial.rmdir()
    except OSError as exc:
        raise OutputError(f"{out}: cannot write there: {exc.strerror}") from exc


def _refuse_to_replace(out: Path) -> None:
    """Raise `OutputError` where the rename at the end would fail, or would remove anything but a bundle."""
    if out.is_symlink():
        raise OutputError(f"{out}: is a symbolic link; give the folder itself")
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: exists and is not a folder; choose another place")
    if out.is_mount():
        raise OutputError(f"{out}: is a mount point and cannot be renamed over; choose a folder inside it")
    held = {path.relative_to(out).as_posix() for path in out.rglob("*") if not (path.is_dir() and any(path.iterdir()))}
    if not held:
        return
    try:
        known = {MANIFEST, *Bundle.read_manifest(out).manifest.files}
    except BundleError as exc:
        if MANIFEST in held:
            raise OutputError(f"{out}: a bundle that cannot be read lies there ({exc}); remove it first") from exc
        known = set()
    strange = sorted(held - known)
    if strange:
        raise OutputError(f"{out}: holds {strange[0]!r}, which is no part of a bundle; choose an empty or new folder")


def _lock_partial(out: Path) -> tuple[Path, int]:
    """Make and lock the folder beside `out`. The lock follows the inode, so check that it is still in place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = partial_folder(out), _set_aside(out)
    while True:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(lock), partial.stat()):
                break
        except FileNotFoundError:
            pass
        os.close(lock)
    try:
        if any(partial.iterdir()) and not (partial / _WHOLE).is_dir():
            raise OutputError(f"{partial}: is in the way, and no unfinished export; move it elsewhere")
        if old.is_dir():  # a power cut between the two renames
            _refuse_to_replace(old)
            shutil.rmtree(old) if out.exists() else old.rename(out)
        (partial / _WHOLE).mkdir(exist_ok=True)
    except BaseException:
        with suppress(OSError):  # not empty: somebody's
            partial.rmdir()
        os.close(lock)
        raise
    return partial, lock


def _set_aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def _move_into_place(whole: Path, out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        old = _set_aside(out)
        out.rename(old)
        try:
            whole.rename(out)
        except OSError:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        whole.rename(out)
    _sync_one(out.parent)


def _sync(folder: Path) -> None:
    """Bring a folder's files to the disk: after a power cut a rename must not outlive what it renamed."""
    for path in sorted(folder.rglob("*")):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
