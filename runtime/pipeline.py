"""The chain: clip, candidates, keyframes, video tokens, text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import DECODER, ENCODER, VGG16, Bundle
from ..errors import BundleError, ClipError, DecoderError, EngineError
from ..kernels.preprocess import Normalisation, normalise
from .decoder import Decoder, is_repacked
from .engines import AUTO, Engine, EngineStore, check_backend, load
from .sampler import VGG_BATCH, Candidates, Sampler, cached_batch
from .video import read_candidates

OF_ONE_CLIP = (ClipError, EngineError, DecoderError)  # errors that do not keep other clips from being described


@dataclass(frozen=True)
class Keyframe:
    """Where a keyframe lies in its clip: frame number from 0, presentation time in seconds."""

    index: int
    time_s: float


@dataclass(frozen=True)
class Timings:
    """Wall-clock milliseconds of one description.

    `decode` reads the video, `sample` reduces frames and picks keyframes, `encode` is preprocessing and the encoder,
    `prefill` puts video tokens and prompt into the decoder, `generate` writes the text. `total` is measured around all,
    without what a clip of several waits, encoded, for the text of the one before it.
    """

    decode: float
    sample: float
    encode: float
    prefill: float
    generate: float
    total: float


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of the decoder: the clip's, the prompt's around them, and those of the text."""

    video: int
    prompt: int
    generated: int


@dataclass(frozen=True)
class BundleName:
    """Which bundle spoke: its name, and the sha256 of its manifest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Description:
    """What `describe` gives. `confidence` is the probability of what the text says first, among all that it could (see
    `svrt.bundle.DecoderSpec`); None for a system that has no such answers. `thumbnails` are the keyframes for a person
    to see: uint8 BGR, longer side 320 at most.
    """

    clip: str
    text: str
    confidence: float | None
    keyframes: list[Keyframe]
    timings_ms: Timings
    tokens: TokenCounts
    bundle: BundleName
    backends: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    thumbnails: list[np.ndarray] = field(default_factory=list, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; without warnings and thumbnails, which are for a person."""
        values = asdict(self)
        del values["warnings"], values["thumbnails"]
        values["confidence"] = None if self.confidence is None else round(self.confidence, 4)
        values["timings_ms"] = {stage: round(ms, 3) for stage, ms in values["timings_ms"].items()}
        for keyframe in values["keyframes"]:
            keyframe["time_s"] = round(keyframe["time_s"], 6)
        return values


@dataclass(frozen=True)
class _Encoded:
    """A clip, ready for the decoder: video tokens, what the description will say of it, milliseconds so far."""

    clip: Path | str
    tokens: np.ndarray
    keyframes: list[Keyframe]
    thumbnails: list[np.ndarray]
    warnings: list[str]
    ms: dict[str, float]


class _GivenUpError(Exception):
    """A clip that is read ahead is not wanted any more."""


class _Leashed:
    """An engine whose next inference does not begin once `stop` is set: reading ahead must end soon after Ctrl-C."""

    def __init__(self, engine: Engine, stop: threading.Event) -> None:
        self._engine, self._stop = engine, stop
        self.name, self.precision, self.device = engine.name, engine.precision, engine.device

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._stop.is_set():
            raise _GivenUpError
        return self._engine(inputs)


class _Stopwatch:
    """Milliseconds per stage, added up over the stretches that belong to it."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - started) * 1e3


def engine_store(
    bundle: Bundle,
    cache: Path | None,
    say: Callable[[str], None] = lambda _: None,
    quiet: Callable[[], object] = lambda: None,
) -> EngineStore | None:
    """Where engines of a bundle's graphs are found and kept; see `EngineStore`. None without a folder for them."""
    if cache is None:
        return None
    manifest = bundle.manifest
    return EngineStore(
        cache,
        VGG_BATCH,
        cpu_batch=cached_batch(manifest.sampler.size),
        bundle=bundle.path,
        records=manifest.engines,
        digests={name: record.sha256 for name, record in manifest.files.items()},
        say=say,
        quiet=quiet,
    )


class Pipeline:
    """A bundle's engines, loaded and ready. One object serves one thread at a time.

    The bundle's hashes must have been checked (`Bundle.load` and `svrt.seal.load` do): llama.cpp may abort the process
    on a damaged file.
    `backend` runs VGG-16 and the encoder; `max_tokens` replaces the recipe's limit on the text. `engine_cache` is the
    folder that TensorRT engines built here and the outcomes of trials are kept in; without one `auto` is ONNX Runtime.
    `say` is told, a line each, of what takes long, such as building them.

    Raises `EngineError` or `DecoderError` where a file cannot be loaded here.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = AUTO,
        max_tokens: int | None = None,
        *,
        engine_cache: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        check_backend(backend)
        self.bundle = bundle
        manifest = bundle.manifest
        if manifest.encoder.frames != manifest.sampler.keyframes:
            raise BundleError(f"{bundle.path}: the encoder reads another number of frames than the sampler picks")
        with ThreadPoolExecutor(max_workers=1) as pool:  # the graphs one after the other: loading one needs it thrice
            decoder = pool.submit(self._load_decoder, max_tokens)
            store = engine_store(bundle, engine_cache, say, decoder.exception)
            vgg16 = self._load(VGG16, backend, store)
            encoder = self._load(ENCODER, backend, store)
            self.decoder = decoder.result()
        self._stop = threading.Event()  # set while a clip that is read ahead is given up
        self._given_up: ThreadPoolExecutor | None = None  # whose thread still works on it
        self._encoding = threading.Lock()
        self.encoder = _Leashed(encoder, self._stop)
        self.sampler = Sampler(manifest.sampler, _Leashed(vgg16, self._stop))
        self.backends = {
            "sampler": self._ran(vgg16, VGG16),
            "encoder": self._ran(self.encoder, ENCODER),
            "decoder": self.decoder.backend,
        }
        spec = manifest.encoder
        self._norm = Normalisation("rgb", spec.scale, spec.mean, spec.std)

    def _load(self, name: str, backend: str, store: EngineStore | None) -> Engine:
        return load(self.bundle.file(name), backend, self.bundle.manifest.files[name].precision, store)

    def _ran(self, engine: Engine, name: str) -> str:
        """Backend and device, and the precision where it is not the file's."""
        same = engine.precision == self.bundle.manifest.files[name].precision
        return f"{engine.name} {engine.device}" + ("" if same else f" {engine.precision}")

    def _load_decoder(self, max_tokens: int | None) -> Decoder:
        manifest = self.bundle.manifest
        return Decoder(
            self.bundle.file(DECODER),
            prefix=manifest.decoder.prefix,
            suffix=manifest.decoder.suffix,
            max_tokens=manifest.decoder.max_tokens if max_tokens is None else max_tokens,
            video_tokens=int(np.prod(manifest.encoder.token_grid)),
            repacked=is_repacked(manifest.files[DECODER].precision),
            answers=list(manifest.decoder.answers.values()),
            temperature=manifest.decoder.temperature,
        )

    def describe(self, clip: Path | str, on_text: Callable[[str], None] | None = None) -> Description:
        """Describe one clip; `on_text` receives the text piece by piece as it is generated.

        Raises `ClipError` where the clip cannot be read. The same clip gives the same keyframes and text.
        """
        self._await_given_up()
        return self._put_in_words(self._encode_clip(clip), on_text)

    def describe_all(
        self, clips: Iterable[Path | str], on_text: Callable[[Path | str, str], None] | None = None
    ) -> Generator[Description | ClipError | EngineError | DecoderError, None, None]:
        """For each clip, in order, what `describe` gives, or the error that it would raise.

        While the text of one clip is generated, the next is read, sampled and encoded in a thread: one clip ahead,
        never more, of which video tokens and thumbnails are kept. `on_text` receives a clip and a piece of its text.
        Close the iterator where it is left early: what is read ahead is then given up.
        """
        ahead_of = iter(clips)
        with self._reader() as reader:
            clip = next(ahead_of, None)
            encoded = None if clip is None else self._try_encode(clip)  # in this thread: there is no text to wait for
            while encoded is not None:
                clip = next(ahead_of, None)
                following = None if clip is None else reader.submit(self._try_encode, clip)
                yield encoded if isinstance(encoded, OF_ONE_CLIP) else self._try_to_put_in_words(encoded, on_text)
                encoded = None if following is None else following.result()

    @contextmanager
    def _reader(self) -> Iterator[ThreadPoolExecutor]:
        """One thread that reads ahead; what it still does when the block ends is given up."""
        self._await_given_up()
        reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="svrt-reader")
        try:
            yield reader
        finally:
            self._stop.set()
            self._given_up = reader
            self._await_given_up()

    def _await_given_up(self) -> None:
        """Wait until nothing that was given up is worked on. A second Ctrl-C leaves that to who describes next."""
        if self._given_up is not None:
            self._given_up.shutdown()
            self._given_up = None
            self._stop.clear()

    def _try_encode(self, clip: Path | str) -> _Encoded | ClipError | EngineError | DecoderError:
        try:
            return self._encode_clip(clip)
        except OF_ONE_CLIP as exc:
            return exc

    def _try_to_put_in_words(
        self, encoded: _Encoded, on_text: Callable[[Path | str, str], None] | None
    ) -> Description | ClipError | EngineError | DecoderError:
        try:
            return self._put_in_words(encoded, None if on_text is None else partial(on_text, encoded.clip))
        except OF_ONE_CLIP as exc:
            return exc

    def _encode_clip(self, clip: Path | str) -> _Encoded:
        """Everything of a clip but its text. A clip that is described while another is read ahead waits for that."""
        watch = _Stopwatch()
        with self._encoding, watch.stage("total"):
            candidates, warnings = self._read(clip, watch)
            with watch.stage("sample"):
                picks = self.sampler.pick(candidates)
            with watch.stage("encode"):
                tokens = self.encode(np.stack([candidates.view(pick) for pick in picks]))
        return _Encoded(
            clip=clip,
            tokens=tokens,
            keyframes=[Keyframe(candidates.indices[pick], candidates.times_s[pick]) for pick in picks],
            thumbnails=[candidates.thumbnail(pick) for pick in picks],
            warnings=warnings,
            ms=watch.ms,
        )

    def _put_in_words(self, encoded: _Encoded, on_text: Callable[[str], None] | None) -> Description:
        watch = _Stopwatch()
        with watch.stage("total"):
            generation = self.decoder.generate(encoded.tokens, on_text=on_text)
        ms = {**encoded.ms, "total": encoded.ms["total"] + watch.ms["total"]}
        return Description(
            clip=str(encoded.clip),
            text=generation.text.strip(),
            confidence=generation.confidence,
            keyframes=encoded.keyframes,
            timings_ms=Timings(**ms, prefill=generation.prefill_ms, generate=generation.generate_ms),
            tokens=TokenCounts(generation.video_tokens, generation.prompt_tokens, generation.generated_tokens),
            bundle=BundleName(self.bundle.manifest.name, self.bundle.sha256),
            backends=dict(self.backends),
            warnings=encoded.warnings,
            thumbnails=encoded.thumbnails,
        )

    def _read(self, clip: Path | str, watch: _Stopwatch) -> tuple[Candidates, list[str]]:
        """Candidates of the clip. Reducing frames counts as `sample`, though it happens while the video is read."""
        manifest = self.bundle.manifest
        with watch.stage("decode"):
            candidates, warnings = read_candidates(
                clip,
                manifest.sampler.candidates,
                lambda: Candidates(manifest.sampler, manifest.encoder),
                self._go_on,
            )
        watch.ms["sample"] = candidates.reduce_s * 1e3
        watch.ms["decode"] -= watch.ms["sample"]
        return candidates, warnings

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise _GivenUpError

    def encode(self, views: np.ndarray) -> np.ndarray:
        """Video tokens float32 [tokens, width] of keyframes uint8 BGR [frames, size, size, 3]."""
        pixels = normalise(views, self._norm)[None]
        tokens: np.ndarray = self.encoder({"pixel_values_videos": pixels})["video_tokens"][0]
        return tokens

    def close(self) -> None:
        """Free the decoder's memory; the engines' goes with the object."""
        self.decoder.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
