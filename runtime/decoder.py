"""The decoder: video tokens in, a sentence out, through llama.cpp's own interface.

The prompt is three stretches of one sequence: a fixed prefix of text, the clip's video tokens as embeddings, and a
fixed suffix of text. The prefix is decoded once and stays in the key/value cache; each clip begins behind it.

Source: llama.cpp `include/llama.h` as bound by llama-cpp-python, whose version is pinned because struct layouts move.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import DecoderError
from .mapped_pages import give_back
from .processors import usable_processors

_LOG_ERROR = 4  # ggml.h, GGML_LOG_LEVEL_ERROR
_DEVICE_GPUS = (1, 2)  # ggml-backend.h, GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU
_PIECE_BYTES = 256  # room for one token's text; longer pieces are asked for again
_SEQUENCE = 0
_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)  # kept: C calls it

# How often a thread of llama.cpp looks whether the others are done before it sleeps. GNU OpenMP looks 300,000 times,
# which holds a core that another program may need, most of all the very threads that are waited for: on two cores
# shared with six busy processes SmolLM2 starts in 2 to 4 s and prefills 90 tokens/s, with this number in 0.3 s and
# 260 tokens/s. Alone on the machine it costs 4 %. OpenMP itself uses 1,000 when it knows that threads outnumber cores.
_SPINS = "1000"
_SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_GIVEN_BACK_EACH = 0.05  # of a file that is arranged anew: as much of it lies in memory twice


@dataclass(frozen=True)
class Generation:
    """One generated text, and what it took. Times are wall-clock milliseconds.

    `confidence` is the probability of what the text begins with among the decoder's `answers`; None without them, or
    where the text begins otherwise.
    """

    text: str
    confidence: float | None
    prompt_tokens: int  # prefix and suffix
    video_tokens: int
    generated_tokens: int  # of `text`; the token that ends it is not counted
    prefill_ms: float  # video tokens and suffix; the prefix is already there
    generate_ms: float


class _Log:
    """What llama.cpp reports as errors since `clear`; the rest of what it says is dropped."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def __call__(self, level: int, text: bytes, _: Any) -> None:
        if level == _LOG_ERROR:
            self._errors.append(text.decode(errors="replace").strip())

    def clear(self) -> None:
        self._errors.clear()

    def cause(self) -> str:
        """The first error, without the name of the function it comes from: later ones only tell how far it rose."""
        first = next((line for line in self._errors if line), "llama.cpp gives no reason")
        return first.partition(": ")[2].removeprefix("error loading model: ") or first


class _ReadOnce:
    """What llama.cpp calls while it arranges a mapped file's weights anew: what was read of the file is given back."""

    def __init__(self, gguf: Path) -> None:
        self._gguf, self._next = gguf, 0.0
        self.stopped: BaseException | None = None

    def __call__(self, progress: float, _: Any) -> bool:
        """Whether to go on, at `progress` from 0 to 1; at 1 the file may be mapped no more."""
        try:
            if self._next <= progress < 1:
                give_back(self._gguf)
                self._next = progress + _GIVEN_BACK_EACH
        except BaseException as exc:  # Ctrl-C, which ctypes would drop
            self.stopped = exc
        return self.stopped is None


_log = _Log()
_log_callback: Any = None  # llama.cpp keeps the pointer for the life of the process
_alone: ModuleType | None = None
_loading = threading.Lock()


def _library() -> ModuleType:
    """llama.cpp's bindings, silenced. Raises `DecoderError` where they are not installed or do not load."""
    with _loading:  # the environment and `sys.modules` are changed for a while
        return _load_library()


def _load_library() -> ModuleType:
    global _log_callback
    chosen = any(name in os.environ for name in _SPIN_VARIABLES)
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = _SPINS  # read once, while OpenMP is loaded
    try:
        library = _bindings()
    except (ImportError, OSError, RuntimeError) as exc:
        raise DecoderError(f"llama-cpp-python does not load: {exc}; run: pip install llama-cpp-python==0.3.36") from exc
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]
    if _log_callback is None:
        _log_callback = library.llama_log_callback(_log)
        library.llama_backend_init()
    library.llama_log_set(_log_callback, ctypes.c_void_p(0))
    return library


def _bindings() -> ModuleType:
    """`llama_cpp.llama_cpp` without its package, which would first import chat templates, jinja2 and a disk cache:
    four fifths of the time, for nothing that is used here."""
    global _alone
    if "llama_cpp" in sys.modules:
        return import_module("llama_cpp.llama_cpp")
    if _alone is None:
        spec = find_spec("llama_cpp")
        if spec is None:
            raise ImportError("No module named 'llama_cpp'")
        sys.modules["llama_cpp"] = module_from_spec(spec)  # a package by its path; its code is not run
        try:
            _alone = import_module("llama_cpp.llama_cpp")
        finally:  # whoever imports it later gets the whole
            for name in list(sys.modules):  # a list: other threads import meanwhile
                if name.partition(".")[0] == "llama_cpp":
                    del sys.modules[name]
    return _alone


def is_repacked(quantization: str) -> bool:
    """Whether llama.cpp repacks weights of this quantization when it runs them on a processor: those of 4 bits."""
    return quantization.startswith("q4")


def has_amx(lib: Any) -> bool:
    """Whether llama.cpp, by its bindings `lib`, was built with AMX, which it must not use beside others who do.

    It configures a thread's tiles once, for good. The next product is an illegal instruction where OpenVINO has used
    AMX in that thread since, and the first one is where GCC 12 has dropped most of the configuration as never read
    (ggml-org/llama.cpp, pull request 26954).
    """
    return b"AMX_INT8 = 1" in lib.llama_print_system_info()


def silence(lib: Any) -> None:
    """Have llama.cpp, by its bindings `lib`, say nothing of what it does: by default it fills stderr."""
    lib.llama_log_set(_SILENT, ctypes.c_void_p(0))


def model_parameters(lib: Any) -> Any:
    """llama.cpp's parameters of a model, by its bindings `lib`: its own but for what must not go through AMX."""
    parameters = lib.llama_model_default_params()
    parameters.use_extra_bufts = not has_amx(lib)  # rearranged weights alone go through it
    return parameters


class Decoder:
    """A LLaMA-type GGUF, ready to continue a prompt that contains one clip.

    `prefix` and `suffix` surround the video tokens; special tokens in them are parsed, and a bos token is put first
    where the model's metadata asks for one. `video_tokens` is the most a clip may have and, with `max_tokens`, sizes
    the cache. `repacked` says that llama.cpp arranges the weights anew for a processor (`is_repacked`): what it has
    read of the mapped file is then given back as it goes, or both copies would lie in memory. `answers` are the words a
    text can begin with, whose first tokens must differ, and `temperature` what their logits are divided by: see
    `Generation`. `threads` generate, `prefill_threads` prefill, as those multiply matrices where generation waits for
    memory; both default to the processors this process may use. `n_batch` bounds the tokens computed at once.

    Every layer runs on the GPU where llama.cpp was built with one. Decoding is greedy, so the same video tokens give
    the same text. One object serves one thread at a time.

    Raises `DecoderError` for a file llama.cpp cannot load, for a prompt longer than the model was trained for, and for
    answers that begin with the same token.
    """

    name: str  # the model's own name and quantization, such as "Llama 3.2 3B Instruct Q8_0"
    backend: str  # such as "llama.cpp CPU"
    width: int  # elements of one video token

    def __init__(
        self,
        gguf: Path,
        *,
        prefix: str,
        suffix: str,
        max_tokens: int = 96,
        video_tokens: int,
        repacked: bool = False,
        answers: Sequence[str] = (),
        temperature: float = 1.0,
        threads: int | None = None,
        prefill_threads: int | None = None,
        n_batch: int = 512,
    ) -> None:
        generating, prefilling = (usable_processors() if n is None else n for n in (threads, prefill_threads))
        if min(max_tokens, video_tokens, n_batch, generating, prefilling) < 1:
            raise DecoderError("max_tokens, video_tokens, threads and n_batch must be at least 1")
        self._lib = _library()
        self._path = gguf
        self._max_tokens, self._video_tokens = max_tokens, video_tokens
        self._model = self._load_model(repacked)
        self._free_model = weakref.finalize(self, self._lib.llama_model_free, self._model)
        try:
            self._vocabulary = self._lib.llama_model_get_vocab(self._model)
            self._n_vocabulary: int = self._lib.llama_vocab_n_tokens(self._vocabulary)
            self.width = self._lib.llama_model_n_embd_inp(self._model)
            self.name, self.backend = self._describe_model(), self._describe_backend()
            self._prefix, self._suffix = self._tokenize(prefix, first=True), self._tokenize(suffix, first=False)
            self._answers, self._temperature = self._first_tokens(answers), temperature
            # A batch larger than the longest stretch would only cost memory.
            longest = max(len(self._prefix), len(self._suffix), video_tokens)
            self._batch = _Batch(self._lib, min(n_batch, longest))
            self._context = self._create_context(generating, prefilling)
            self._free_context = weakref.finalize(self, self._lib.llama_free, self._context)
            self._memory = self._lib.llama_get_memory(self._context)
            self._length = 0  # positions in the cache
            self._prefix_is_kept = False
            self._rewind()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and its cache. Closing twice is harmless."""
        for handle in ("_free_context", "_free_model"):  # the context refers to the model
            finalizer = getattr(self, handle, None)
            if finalizer is not None:
                finalizer()

    @property
    def prompt(self) -> tuple[list[int], list[int]]:
        """Token ids before and behind the video tokens."""
        return list(self._prefix), list(self._suffix)

    def prefill(self, video_tokens: np.ndarray) -> np.ndarray:
        """Decode the prompt with one clip in it; see `generate` for the argument and the errors.

        Returns the logits of the next token, float32 [vocabulary].
        """
        logits: np.ndarray = self._prefill(video_tokens).copy()
        return logits

    def _prefill(self, video_tokens: np.ndarray) -> np.ndarray:
        """As `prefill`; but the logits are a view that the next decode overwrites."""
        clip = self._checked(video_tokens)
        self._rewind()
        self._decode_embeddings(clip, last=not self._suffix)
        self._decode_tokens(self._suffix, last=True)
        return self._logits()

    def generate(
        self,
        video_tokens: np.ndarray,
        *,
        max_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Describe one clip.

        `video_tokens` is float32 [n, width] with 1 ≤ n ≤ the decoder's `video_tokens`. `max_tokens` may lower the
        decoder's limit for this clip. `on_text` gets the text piece by piece, whole characters only; its pieces
        joined are the text returned.

        Raises `DecoderError` for video tokens of another type, shape or with values that are not finite, and where
        llama.cpp fails; the decoder stays usable after either, and after Ctrl-C.
        """
        limit = self._max_tokens if max_tokens is None else max_tokens
        if not 1 <= limit <= self._max_tokens:
            raise DecoderError(f"max_tokens {limit} is outside 1 to {self._max_tokens}, which the decoder was made for")
        started = time.perf_counter()
        logits = self._prefill(video_tokens)
        token = _highest(logits)
        confidence = _share(logits, token, self._answers, self._temperature)
        prefilled = time.perf_counter()
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str] = []

        def emit(text: str) -> None:
            if text:
                pieces.append(text)
                if on_text is not None:
                    on_text(text)

        generated = 0
        while not self._lib.llama_vocab_is_eog(self._vocabulary, token):
            emit(utf8.decode(self._piece(token)))
            generated += 1
            if generated == limit:
                break
            self._decode(self._batch.of_next(token, self._length), 1)
            token = _highest(self._logits())
        emit(utf8.decode(b"", final=True))
        return Generation(
            text="".join(pieces),
            confidence=confidence,
            prompt_tokens=len(self._prefix) + len(self._suffix),
            video_tokens=len(video_tokens),
            generated_tokens=generated,
            prefill_ms=(prefilled - started) * 1e3,
            generate_ms=(time.perf_counter() - prefilled) * 1e3,
        )

    def _load_model(self, repacked: bool) -> Any:
        if not self._path.is_file():
            raise DecoderError(f"{self._path}: no such GGUF file")
        lib = self._lib
        parameters = model_parameters(lib)
        on_gpu = bool(lib.llama_supports_gpu_offload())
        parameters.n_gpu_layers = -1 if on_gpu else 0  # negative: every layer
        read_once = _ReadOnce(self._path)
        if repacked and parameters.use_extra_bufts and not on_gpu:
            parameters.load_mode = lib.LLAMA_LOAD_MODE_MMAP
            parameters.progress_callback = lib.llama_progress_callback(read_once)
        _log.clear()
        model = lib.llama_model_load_from_file(os.fsencode(self._path), parameters)
        if read_once.stopped is not None:  # before 1, so there is no model
            raise read_once.stopped
        if not model:
            raise DecoderError(f"{self._path}: llama.cpp cannot load it: {_log.cause()}")
        return model

    def _create_context(self, threads: int, prefill_threads: int) -> Any:
        lib = self._lib
        needed = len(self._prefix) + self._video_tokens + len(self._suffix) + self._max_tokens
        trained = lib.llama_model_n_ctx_train(self._model)
        if needed > trained:
            raise DecoderError(f"{self._path}: prompt, clip and text need {needed} positions; the model has {trained}")
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = needed
        parameters.n_batch = parameters.n_ubatch = self._batch.capacity
        # Only the last token's logits are read; room for a batch of 512 would be 260 MB with LLaMA 3's vocabulary.
        parameters.n_outputs_max = 1
        parameters.n_threads, parameters.n_threads_batch = threads, prefill_threads
        _log.clear()
        context = lib.llama_init_from_model(self._model, parameters)
        if not context:
            raise DecoderError(f"{self._path}: no room for a context of {needed} tokens: {_log.cause()}")
        return context

    def _describe_model(self) -> str:
        # llama_model_desc is not used: it guesses the size from the number of layers.
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        found = self._lib.llama_model_meta_val_str(self._model, b"general.name", buffer, len(buffer)) > 0
        name = buffer.value.decode(errors="replace") if found else self._path.stem
        quantization = self._lib.llama_ftype_name(self._lib.llama_model_ftype(self._model))
        return f"{name} {quantization.decode()}"

    def _describe_backend(self) -> str:
        """`llama.cpp` and the device that holds the layers: the first GPU, if llama.cpp was built with one, or CPU."""
        if self._lib.llama_supports_gpu_offload():
            ggml = self._lib._lib
            ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
            ggml.ggml_backend_dev_get.argtypes, ggml.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
            ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
            ggml.ggml_backend_dev_name.argtypes = ggml.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
            ggml.ggml_backend_dev_name.restype = ggml.ggml_backend_dev_description.restype = ctypes.c_char_p
            for i in range(ggml.ggml_backend_dev_count()):
                device = ggml.ggml_backend_dev_get(i)
                if ggml.ggml_backend_dev_type(device) in _DEVICE_GPUS:
                    name, kind = ggml.ggml_backend_dev_name(device), ggml.ggml_backend_dev_description(device)
                    return f"llama.cpp {name.decode()} ({kind.decode()})"
        return "llama.cpp CPU"

    def _tokenize(self, text: str, *, first: bool) -> list[int]:
        """Token ids of `text`; special tokens are parsed, and bos leads the first stretch where the model adds one."""
        lib, encoded = self._lib, text.encode()
        room = len(encoded) + 1
        buffer = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocabulary, encoded, len(encoded), buffer, room, False, True)
        if count < 0:
            raise DecoderError(f"{self._path}: the prompt cannot be tokenized: {text[:40]!r}")
        tokens = list(buffer[:count])
        bos = lib.llama_vocab_bos(self._vocabulary)
        # A template that already spells bos out must not get a second one.
        if first and lib.llama_vocab_get_add_bos(self._vocabulary) and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def _first_tokens(self, answers: Sequence[str]) -> list[int]:
        tokens = [self._tokenize(answer, first=False)[0] for answer in answers]
        if len(set(tokens)) < len(tokens):
            raise DecoderError(f"{self._path}: the answers {', '.join(answers)} begin with the same token")
        return tokens

    def _piece(self, token: int) -> bytes:
        """Bytes of one token's text; a character may be spread over several tokens. Control tokens have none."""
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._lib.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def _checked(self, video_tokens: np.ndarray) -> np.ndarray:
        """The clip as llama.cpp may read it: what is wrong here would abort the process or be read past its end."""
        if self._free_model is None or not self._free_model.alive:
            raise DecoderError(f"{self._path}: the decoder is closed")
        if not isinstance(video_tokens, np.ndarray) or video_tokens.dtype != np.float32:
            kind = getattr(video_tokens, "dtype", type(video_tokens).__name__)
            raise DecoderError(f"video tokens are {kind}; expected a float32 array")
        if video_tokens.ndim != 2 or video_tokens.shape[1] != self.width:
            raise DecoderError(
                f"video tokens have shape {list(video_tokens.shape)}; {self._path.name} takes [n, {self.width}]"
            )
        if not 1 <= len(video_tokens) <= self._video_tokens:
            raise DecoderError(f"{len(video_tokens)} video tokens; the decoder was made for 1 to {self._video_tokens}")
        if not np.isfinite(video_tokens).all():
            raise DecoderError("video tokens hold values that are not finite; the encoder's output is damaged")
        return np.ascontiguousarray(video_tokens)

    def _rewind(self) -> None:
        """Leave the prefix, and nothing else, in the cache."""
        kept = len(self._prefix)
        if self._prefix_is_kept and self._lib.llama_memory_seq_rm(self._memory, _SEQUENCE, kept, -1):
            self._length = kept
            return
        self._forget()
        self._decode_tokens(self._prefix, last=False)  # what follows it is a clip, whose beginning nobody guesses
        self._prefix_is_kept = True

    def _forget(self) -> None:
        self._prefix_is_kept = False
        self._lib.llama_memory_clear(self._memory, True)
        self._length = 0

    def _decode_tokens(self, tokens: Sequence[int], *, last: bool) -> None:
        ids = np.asarray(tokens, np.int32)
        for start in range(0, len(ids), self._batch.capacity):
            chunk = ids[start : start + self._batch.capacity]
            ends = last and start + len(chunk) == len(ids)
            self._decode(self._batch.of_tokens(chunk, self._length, last=ends), len(chunk))

    def _decode_embeddings(self, clip: np.ndarray, *, last: bool) -> None:
        for start in range(0, len(clip), self._batch.capacity):
            chunk = clip[start : start + self._batch.capacity]
            ends = last and start + len(chunk) == len(clip)
            self._decode(self._batch.of_embeddings(chunk, self._length, last=ends), len(chunk))

    def _decode(self, batch: Any, count: int) -> None:
        _log.clear()
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            self._forget()  # what a failed decode leaves in the cache is undefined
            raise DecoderError(f"{self._path}: llama.cpp failed to decode (status {status}): {_log.cause()}")
        self._length += count

    def _logits(self) -> np.ndarray:
        """Logits of the last decoded token, float32 [vocabulary]: a view that the next decode overwrites."""
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        if not pointer:
            self._forget()
            raise DecoderError(f"{self._path}: llama.cpp gave no logits: {_log.cause()}")
        return np.ctypeslib.as_array(pointer, (self._n_vocabulary,))


class _Batch:
    """The arrays behind a `llama_batch` of one sequence, allocated once for at most `capacity` entries."""

    def __init__(self, lib: ModuleType, capacity: int) -> None:
        self.capacity = capacity
        self._lib = lib
        self._positions = np.empty(capacity, np.int32)
        self._counts = np.ones(capacity, np.int32)
        self._sequence = np.full(1, _SEQUENCE, np.int32)
        self._sequences = np.full(capacity, self._sequence.ctypes.data, np.uintp)
        self._wanted = np.zeros(capacity, np.int8)
        self._next = np.zeros(1, np.int32)
        self._of_next = self.of_tokens(self._next, 0, last=True)

    def of_next(self, token: int, position: int) -> Any:
        """One token id at a position, its logits asked for: a text needs it for each token, so it is made once."""
        self._next[0], self._positions[0], self._wanted[0] = token, position, 1
        return self._of_next

    def of_tokens(self, tokens: np.ndarray, start: int, *, last: bool) -> Any:
        """Token ids, int32 [n], from position `start`; `last` asks for the logits of the final one."""
        batch = self._fill(len(tokens), start, last)
        batch.token = tokens.ctypes.data_as(ctypes.POINTER(self._lib.llama_token))
        return batch

    def of_embeddings(self, embeddings: np.ndarray, start: int, *, last: bool) -> Any:
        """Embeddings, float32 [n, width] and C-contiguous, from position `start`; `last` as in `of_tokens`."""
        batch = self._fill(len(embeddings), start, last)
        batch.embd = embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return batch

    def _fill(self, count: int, start: int, last: bool) -> Any:
        self._positions[:count] = np.arange(start, start + count)
        self._wanted[:count] = 0
        self._wanted[count - 1] = last
        batch = self._lib.llama_batch()  # zeroed: `token` and `embd` are null
        batch.n_tokens = count
        batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(self._lib.llama_pos))
        batch.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = self._sequences.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(self._lib.llama_seq_id)))
        batch.logits = self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        return batch


def _share(logits: np.ndarray, token: int, answers: list[int], temperature: float) -> float | None:
    """Probability of `token` among `answers` alone, or None where it is none of them."""
    if token not in answers:
        return None
    scaled = (logits[answers].astype(np.float64) - logits[token]) / temperature  # of the highest: nothing overflows
    return float(1.0 / np.exp(scaled).sum())


def _highest(logits: np.ndarray) -> int:
    """The greedy choice; of equal logits the lowest id, so that a text is reproducible."""
    token = int(np.argmax(logits))
    if not np.isfinite(logits[token]):  # argmax finds a NaN first
        raise DecoderError("the decoder's logits are not finite; its weights or the video tokens are damaged")
    return token
