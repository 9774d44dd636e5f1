"""BERTScore by the package bert-score, where that and its model are on this machine; nothing is downloaded.

Zhang et al., BERTScore: Evaluating Text Generation with BERT, ICLR 2020. As the package computes English by default:
RoBERTa-large, layer 17, no idf weights, not rescaled. bert-score runs on PyTorch, which svrt never asks for: where it
is wanted, `pip install bert-score` and `hf download roberta-large`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .term import AbsentTermError

MODEL = "roberta-large"
LAYER = 17
_MAX_TOKENS = 512
_BATCH = 8
_FILES = (("config.json",), ("model.safetensors", "pytorch_model.bin"), ("tokenizer.json", "vocab.json"))


def cached_model() -> Path:
    """RoBERTa-large's folder in Hugging Face's cache (`HF_HOME`). Raises `AbsentTermError` where it is not whole."""
    from huggingface_hub import try_to_load_from_cache

    found: list[str] = []
    for names in _FILES:
        paths = [path for path in (try_to_load_from_cache(MODEL, name) for name in names) if isinstance(path, str)]
        found += paths[:1]
    if len(found) < len(_FILES):
        raise AbsentTermError(f"{MODEL} is not in the Hugging Face cache; run: hf download {MODEL}")
    return Path(found[0]).parent


def bert_f1(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """BERTScore F1 of each text against its reference: float64 [n]; 1 for the same text, about 0.8 for unrelated ones.

    Raises `AbsentTermError` where the package or its model is not on this machine, or does not run.
    """
    if find_spec("bert_score") is None or find_spec("huggingface_hub") is None:
        raise AbsentTermError(
            f"the package bert-score is not installed; run: pip install bert-score, hf download {MODEL}"
        )
    folder = cached_model()
    try:
        return _by_package(folder, texts, references)
    except Exception as exc:  # of two large packages, in versions nobody chose together
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise AbsentTermError(f"bert-score fails with {folder}: {reason}") from exc


def _by_package(folder: Path, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """By path, not by name: a name would be looked up on the hub."""
    from bert_score import BERTScorer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty text, which scores 0
        scorer = BERTScorer(model_type=str(folder), num_layers=LAYER, batch_size=_BATCH, device="cpu")
        # Without a limit in the tokenizer's file transformers says 1e30, which transformers 5 then cannot pass on.
        scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, _MAX_TOKENS)
        _, _, f1 = scorer.score(list(texts), list(references))
    return np.asarray(f1.numpy(), np.float64)
