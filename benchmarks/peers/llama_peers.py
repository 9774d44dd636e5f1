"""The decoder as llama-cpp-python's high-level API runs it, and as a bare loop over `llama_decode` does.

The high-level API takes no embeddings: it gets text of as many tokens, another each run, as it too keeps what two
prompts have in common. Its text is another, and says nothing about agreement.
"""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import numpy as np

from ...bundle import DECODER
from ...runtime.processors import usable_processors
from ..decoder import BareLoop, Setting
from .contestants import DECODE, PREFILL, STEP, Contestant, Outputs, Task
from .prepare import Prompt, inputs, load_bundle


def load(task: Task) -> Contestant:
    """The way that the task's peer names."""
    assert task.stage == DECODE
    made: Contestant = _Bare(task) if "bare" in task.peer else _HighLevel(task)
    return made


class _HighLevel:
    def __init__(self, task: Task) -> None:
        import llama_cpp

        bundle, self._prompt = load_bundle(task), Prompt.read(task.prepared)
        self._length = len(inputs(task.prepared)["tokens"])
        needed = len(self._prompt.prefix) + self._length + len(self._prompt.suffix) + self._prompt.max_tokens
        processors = usable_processors()  # its own default is half of them
        self._llama: Any = llama_cpp.Llama(
            str(bundle.file(DECODER)),
            n_ctx=needed,
            n_threads=processors,
            n_threads_batch=processors,
            verbose=False,
        )
        self.precision = bundle.manifest.files[DECODER].precision
        self.note = f"a text prompt of as many tokens: it takes no embeddings; {processors} threads"
        self._clips = count()

    def run(self) -> dict[str, float]:
        rng = np.random.default_rng(next(self._clips))
        words = rng.integers(0, self._llama.n_vocab(), self._length)
        words[np.isin(words, self._prompt.ends)] = self._prompt.suffix[0] if self._prompt.suffix else 0
        times: dict[int, float] = {}  # by tokens there were: it is asked once more at the end

        def clock(ids: Any, _logits: Any) -> bool:
            times.setdefault(len(ids), time.perf_counter())
            return False

        started = time.perf_counter()
        self._llama.create_completion(
            [*self._prompt.prefix, *words.tolist(), *self._prompt.suffix],
            max_tokens=self._prompt.max_tokens,
            temperature=0.0,
            stopping_criteria=clock,
        )
        first, last = min(times.values()), max(times.values())
        found = {PREFILL: (first - started) * 1e3}
        return found | ({STEP: (last - first) * 1e3 / (len(times) - 1)} if len(times) > 1 else {})

    def outputs(self) -> Outputs:
        return Outputs()


class _Bare:
    note = "nothing kept of the prompt"

    def __init__(self, task: Task) -> None:
        bundle, prompt = load_bundle(task), Prompt.read(task.prepared)
        self._limit, self._tokens = prompt.max_tokens, inputs(task.prepared)["tokens"]
        setting = Setting.of(bundle, prompt.max_tokens)
        self._loop = BareLoop(setting, (prompt.prefix, prompt.suffix), usable_processors())
        self.precision = bundle.manifest.files[DECODER].precision

    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        token = self._loop.prefill(self._tokens)
        prefilled = time.perf_counter()
        self._ids = self._loop.generate(token, self._limit)
        ended = time.perf_counter()
        steps = len(self._ids) - (len(self._ids) == self._limit)
        found = {PREFILL: (prefilled - started) * 1e3}
        return found | ({STEP: (ended - prefilled) * 1e3 / steps} if steps else {})

    def outputs(self) -> Outputs:
        return Outputs(token_ids=self._ids)
