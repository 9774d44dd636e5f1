"""The decoder against a bare `llama_decode` loop on the same GGUF: `python -m svrt.benchmarks.decoder`.

Generation, token for token; time to the first token with the prefix kept and without; and both by number of threads.
The ways alternate within one run, so that a noisy machine disturbs them alike. The bare loop is what a user would write
with llama-cpp-python's bindings: no check, no text, no kept prefix.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import DECODER, Bundle
from ..cache import open_bundle
from ..runtime.decoder import Decoder, is_repacked, model_parameters, silence
from ..runtime.processors import usable_processors

ROUNDS = 15
SEEDS = 8  # clips of noise that are tried for a long text
LONG_PREFIX = (
    "You watch sports and say what happens, in one sentence, as a commentator would: who, what, how it ended. "
)


@dataclass(frozen=True)
class Setting:
    """A GGUF and the prompt around the video tokens float32 [n, width]."""

    gguf: Path
    prefix: str
    suffix: str
    video_tokens: int
    max_tokens: int
    repacked: bool

    @classmethod
    def of(cls, bundle: Bundle, max_tokens: int) -> Setting:
        """A bundle's decoder, with room for `max_tokens` of text."""
        spec, precision = bundle.manifest.decoder, bundle.manifest.files[DECODER].precision
        tokens = int(np.prod(bundle.manifest.encoder.token_grid))
        return cls(bundle.file(DECODER), spec.prefix, spec.suffix, tokens, max_tokens, is_repacked(precision))

    def decoder(self, threads: int | None = None, prefill_threads: int | None = None) -> Decoder:
        """Ours."""
        return Decoder(
            self.gguf,
            prefix=self.prefix,
            suffix=self.suffix,
            video_tokens=self.video_tokens,
            max_tokens=self.max_tokens,
            repacked=self.repacked,
            threads=threads,
            prefill_threads=prefill_threads,
        )


class BareLoop:
    """The plainest loop over llama.cpp: memory cleared, the whole prompt decoded, then the highest logit each time."""

    def __init__(self, setting: Setting, prompt: tuple[list[int], list[int]], threads: int) -> None:
        import llama_cpp

        self._lib = lib = llama_cpp
        silence(lib)
        self._prefix, self._suffix = prompt
        model = model_parameters(lib)
        model.n_gpu_layers = -1 if lib.llama_supports_gpu_offload() else 0
        if setting.repacked and not lib.llama_supports_gpu_offload():
            model.load_mode = lib.LLAMA_LOAD_MODE_NONE
        self._model = lib.llama_model_load_from_file(str(setting.gguf).encode(), model)
        context = lib.llama_context_default_params()
        context.n_ctx = len(self._prefix) + len(self._suffix) + setting.video_tokens + setting.max_tokens
        context.n_batch = context.n_ubatch = max(512, setting.video_tokens)
        context.n_threads = context.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, context)
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self._size = lib.llama_vocab_n_tokens(self._vocabulary)

    def _decode(self, tokens: list[int]) -> None:
        ids = (self._lib.llama_token * len(tokens))(*tokens)
        assert self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(ids, len(tokens))) == 0

    def _decode_clip(self, clip: np.ndarray) -> None:
        lib = self._lib
        batch = lib.llama_batch_get_one(None, len(clip))
        batch.embd = clip.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert lib.llama_decode(self._context, batch) == 0

    def _highest(self) -> int:
        logits = self._lib.llama_get_logits_ith(self._context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._size,))))

    def prefill(self, clip: np.ndarray) -> int:
        """Decode the whole prompt; the first token."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        if self._prefix:
            self._decode(self._prefix)
        self._decode_clip(clip)
        if self._suffix:
            self._decode(self._suffix)
        return self._highest()

    def generate(self, token: int, limit: int) -> list[int]:
        """The text's tokens, the first given, as `Decoder.generate` counts them."""
        found: list[int] = []
        while not self._lib.llama_vocab_is_eog(self._vocabulary, token):
            found.append(token)
            if len(found) == limit:
                break
            self._decode([token])
            token = self._highest()
        return found

    def close(self) -> None:
        """Free context and model."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)


@dataclass(frozen=True)
class Against:
    """Medians over rounds; `ratio` is the median of the rounds' ratios, ours over the bare loop."""

    tokens: int  # of the text, the same for both
    prompt_tokens: tuple[int, int, int]  # prefix, video, suffix
    ours_per_s: float
    bare_per_s: float
    speed_ratio: float
    ours_first_ms: float
    bare_first_ms: float
    first_ratio: float


def against_bare_loop(setting: Setting, rounds: int = ROUNDS) -> Against:
    """Hold generation and time to the first token against the bare loop, after checking that both say the same."""
    with setting.decoder() as decoder:
        prompt = decoder.prompt
        bare = BareLoop(setting, prompt, usable_processors())
        try:
            clip = _talkative(decoder, setting)
            first = bare.prefill(clip)
            tokens = len(bare.generate(first, setting.max_tokens))
            assert decoder.generate(clip).generated_tokens == tokens, "the two do not say the same"
            speeds, firsts = [], []
            for _ in range(rounds):
                said = decoder.generate(clip)
                bare_first = _ms(lambda: bare.prefill(clip))
                bare_generate = _ms(lambda: bare.generate(first, setting.max_tokens))
                speeds.append((tokens / said.generate_ms * 1e3, tokens / bare_generate * 1e3))
                firsts.append((said.prefill_ms, bare_first))
        finally:
            bare.close()
    lengths = (len(prompt[0]), len(clip), len(prompt[1]))
    return Against(tokens, lengths, *_compared(speeds), *_compared(firsts))


def _compared(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    return ours, bare, statistics.median(a / b for a, b in pairs)


def _talkative(decoder: Decoder, setting: Setting) -> np.ndarray:
    """Of some clips of noise the one with the longest text: few tokens are few samples."""
    clips = []
    for seed in range(SEEDS):
        noise = np.random.default_rng(seed).standard_normal((setting.video_tokens, decoder.width))
        clips.append((noise * 0.05).astype(np.float32))
    return max(clips, key=lambda clip: decoder.generate(clip).generated_tokens)


def by_threads(setting: Setting, rounds: int = ROUNDS) -> list[tuple[int, float, float]]:
    """For each number of threads: prompt tokens prefilled a second, and tokens generated a second, medians."""
    counts = range(1, usable_processors() + 1)
    decoders = [setting.decoder(threads=count, prefill_threads=count) for count in counts]
    try:
        clip = _talkative(decoders[0], setting)
        said: list[list[Any]] = [[] for _ in decoders]
        for _ in range(rounds):
            for decoder, found in zip(decoders, said, strict=True):
                found.append(decoder.generate(clip))
    finally:
        for decoder in decoders:
            decoder.close()
    suffix = len(decoders[0].prompt[1])
    return [
        (
            count,
            statistics.median((one.video_tokens + suffix) / one.prefill_ms * 1e3 for one in found),
            statistics.median(one.generated_tokens / max(one.generate_ms, 1e-6) * 1e3 for one in found),
        )
        for count, found in zip(counts, said, strict=True)
    ]


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def table(name: str, found: Against) -> str:
    """A comparison as Markdown."""
    prefix, video, suffix = found.prompt_tokens
    return "\n".join(
        [
            f"{name}: prefix {prefix}, video {video}, suffix {suffix}, text {found.tokens} tokens",
            "",
            "| | svrt | bare loop | ratio |",
            "| --- | --- | --- | --- |",
            f"| generation, tokens/s | {found.ours_per_s:.1f} | {found.bare_per_s:.1f} | {found.speed_ratio:.3f} |",
            f"| first token, ms, prefix kept and not | {found.ours_first_ms:.1f} | {found.bare_first_ms:.1f} "
            f"| {found.first_ratio:.3f} |",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m svrt.benchmarks.decoder", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="bundle to use; the built-in one if not given")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--prefix-repeats", type=int, default=6, help="of a sentence, in the prompt with a long prefix")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    setting = Setting.of(bundle, given.max_tokens)
    long = replace(setting, prefix=setting.prefix + LONG_PREFIX * given.prefix_repeats)
    print(table(f"{bundle.manifest.name}, its own prompt", against_bare_loop(setting, given.rounds)))
    print(table(f"{bundle.manifest.name}, instructions before the clip", against_bare_loop(long, given.rounds)))
    print("| threads | prefill, tokens/s | generation, tokens/s |\n| --- | --- | --- |")
    for count, prefill, generation in by_threads(setting, given.rounds):
        print(f"| {count} | {prefill:.1f} | {generation:.1f} |")


if __name__ == "__main__":
    main()
