"""The LLaMA decoder: its shape, the names of its tensors, its rotary order and the LoRA that is merged into it.

Three facts tie a Hugging Face checkpoint to the GGUF that llama.cpp runs:

* every tensor has another name (`gguf_name`);
* `transformers` rotates the first half of a head against the second, GGML rotates neighbouring rows, so the rows of
  the query and key projections are reordered (`to_ggml_rows`);
* LLaMA 3 stretches the slow rotary frequencies; GGUF carries the stretch as the tensor `rope_freqs.weight`
  (`RopeScaling.factors`).

Sources: `transformers` `modeling_llama.py` and `modeling_rope_utils.py` (tensor names, rotation, `llama3` scaling);
LoRA, arXiv 2106.09685, equation 3; rank-stabilised LoRA, arXiv 2312.03732; `peft` `LoraConfig` (file layout).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .checkpoint import Checkpoint

# Linear modules of one layer, as Hugging Face and as GGUF name them: exactly those a LoRA may target here.
LINEAR_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORM_NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ROPE_FACTORS = "rope_freqs.weight"

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_ADAPTER_KEY = re.compile(r"base_model\.model\.(?:model\.)?(layers\.\d+\..+)\.lora_(A|B)\.weight")

# PEFT settings that change what an adapter computes in ways a plain low-rank sum cannot hold.
_UNSUPPORTED_SETTINGS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "lora_bias": "a bias in lora_B",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "modules_to_save": "modules_to_save (fully trained modules)",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "target_parameters",
    "fan_in_fan_out": "fan_in_fan_out (transposed Conv1D weights, which LLaMA does not have)",
}
# Initialisations under which `peft` leaves the base as it was; the others (PiSSA, OLoRA, LoftQ …) also change the base.
_PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")


def gguf_name(name: str) -> str | None:
    """GGUF name of a Hugging Face LLaMA tensor (`….weight`), or None for a name LLaMA does not have."""
    module, dot, kind = name.rpartition(".")
    if not dot or kind != "weight":
        return None
    if module in TOP_NAMES:
        return f"{TOP_NAMES[module]}.weight"
    layer = _LAYER.fullmatch(module)
    stem = {**LINEAR_NAMES, **NORM_NAMES}.get(layer[2]) if layer else None
    return f"blk.{layer[1]}.{stem}.weight" if layer and stem else None


def hugging_face_name(name: str) -> str | None:
    """Hugging Face name of a GGUF LLaMA tensor: the inverse of `gguf_name`. None for a name LLaMA does not have."""
    tops = {f"{gguf}.weight": hf for hf, gguf in TOP_NAMES.items()}
    if name in tops:
        return f"{tops[name]}.weight"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    stems = {gguf: hf for hf, gguf in {**LINEAR_NAMES, **NORM_NAMES}.items()}
    return f"model.layers.{block[1]}.{stems[block[2]]}.weight" if block and block[2] in stems else None


def to_ggml_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Query or key projection [heads·d, …] from half-split to GGML's interleaved rotary order.

    Within each head of width d, row i of the first half and row i of the second become rows 2i and 2i+1.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    rows: np.ndarray = halves.swapaxes(1, 2).reshape(weight.shape)
    return rows


def from_ggml_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `to_ggml_rows`."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    rows: np.ndarray = pairs.swapaxes(1, 2).reshape(weight.shape)
    return rows


@dataclass(frozen=True)
class RopeScaling:
    """The `llama3` stretch of slow rotary frequencies (`transformers` `_compute_llama3_parameters`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def factors(self, head_dim: int, theta: float) -> np.ndarray:
        """What each rotary frequency is divided by: float32 [head_dim / 2], from 1 (fast) to `factor` (slow).

        A frequency that turns more than `high_freq_factor` times within the original context stays, one that turns
        fewer than `low_freq_factor` times is divided by `factor`, and those between are interpolated in frequency.
        """
        frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        turns = self.original_context * frequencies / (2 * math.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return (1.0 / (kept + (1.0 - kept) / self.factor)).astype(np.float32)


@dataclass(frozen=True)
class LlamaShape:
    """What a LLaMA decoder's configuration fixes. Widths are in elements, contexts in positions."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    rms_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: Path) -> LlamaShape:
        """Read a Hugging Face `config.json`; `where` names it in errors.

        Raises `CheckpointError` for another architecture, a setting llama.cpp's LLaMA does not have, or a missing key.
        """
        try:
            return cls._from_config(config, where)
        except (TypeError, ValueError, AttributeError, KeyError) as exc:
            raise CheckpointError(f"{where}: a value has the wrong type: {exc}") from exc

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], where: Path) -> LlamaShape:
        _refuse_other_architectures(config, where)
        rope, theta = _rope(config, where)
        heads, width = _positive(config, "num_attention_heads", where), _positive(config, "hidden_size", where)
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or width // heads
        if heads % kv_heads or head_dim % 2:
            raise CheckpointError(f"{where}: {heads} heads, {kv_heads} key/value heads of width {head_dim} do not fit")
        return cls(
            layers=_positive(config, "num_hidden_layers", where),
            width=width,
            feed_forward=_positive(config, "intermediate_size", where),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=_positive(config, "vocab_size", where),
            context=_positive(config, "max_position_embeddings", where),
            rms_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=rope,
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """[out, in] of every linear module of the layers, by Hugging Face module name without `model.`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        of_name = {
            "self_attn.q_proj": (q, self.width),
            "self_attn.k_proj": (kv, self.width),
            "self_attn.v_proj": (kv, self.width),
            "self_attn.o_proj": (self.width, q),
            "mlp.gate_proj": (self.feed_forward, self.width),
            "mlp.up_proj": (self.feed_forward, self.width),
            "mlp.down_proj": (self.width, self.feed_forward),
        }
        return {f"layers.{i}.{name}": shape for i in range(self.layers) for name, shape in of_name.items()}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the checkpoint by Hugging Face name, in the order they are written to a GGUF."""
        linear = self.linear_shapes()
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for i in range(self.layers):
            shapes |= {f"model.layers.{i}.{name}.weight": (self.width,) for name in NORM_NAMES}
            shapes |= {f"model.layers.{i}.{name}.weight": linear[f"layers.{i}.{name}"] for name in LINEAR_NAMES}
        shapes["model.norm.weight"] = (self.width,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.width)
        return shapes

    def rotary_heads(self, module: str) -> int | None:
        """Number of heads whose rows are reordered in `module`: for query and key projections, else None."""
        return {"q_proj": self.heads, "k_proj": self.kv_heads}.get(module.rpartition(".")[2])


def _refuse_other_architectures(config: Mapping[str, Any], where: Path) -> None:
    named = config.get("architectures") or [config.get("model_type")]
    if config.get("model_type") != "llama" or named[0] not in ("LlamaForCausalLM", "llama"):
        raise CheckpointError(f"{where}: unsupported architecture {named[0]}; the decoder must be a LlamaForCausalLM")
    fixed = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleaved": False}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{where}: {key} = {config[key]!r} is not supported; LLaMA has {value!r}")


def _rope(config: Mapping[str, Any], where: Path) -> tuple[RopeScaling | None, float]:
    """Scaling and base of the rotary frequencies, as `rope_scaling` + `rope_theta` or as `rope_parameters` (v5)."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return None, theta
    if kind != "llama3":
        raise CheckpointError(f"{where}: rope_scaling of type {kind!r} is not supported; expected 'llama3' or none")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    values = {key: given.get(key) for key in keys}
    for key, value in values.items():
        if not isinstance(value, (int, float)) or value <= 0:
            raise CheckpointError(f"{where}: rope_scaling needs a positive {key}, found {value!r}")
    factor, low, high, original = (float(given[key]) for key in keys)
    if high <= low:
        raise CheckpointError(
            f"{where}: rope_scaling needs high_freq_factor above low_freq_factor, found {high}, {low}"
        )
    return RopeScaling(factor, low, high, int(original)), theta


def _positive(config: Mapping[str, Any], key: str, where: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"{where}: {key} must be a positive whole number, found {value!r}")
    return value


@dataclass(frozen=True)
class _Pair:
    """Keys of the two factors of one module, and the scale of their product."""

    a: str
    b: str
    scale: float


class Adapter:
    """A LoRA as PEFT saves it: a folder with `adapter_config.json` and `adapter_model.safetensors`.

    Weights are read when `delta` asks for them. Module names are those of `LlamaShape.linear_shapes`.

    Raises `CheckpointError` for anything that is not a plain low-rank sum on LLaMA's seven linear modules, such as
    DoRA, another PEFT type, biases or fully trained modules, and for factors without their partner.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        saved = self.folder / "adapter_model.safetensors"  # beside a whole model it is this that is the adapter
        self._checkpoint = Checkpoint(saved if saved.is_file() else self.folder)
        self._where = self._checkpoint.folder / "adapter_config.json"
        self._config = self._checkpoint.json("adapter_config.json")
        self._refuse_unsupported()
        self._pairs = self._pair_up()

    @property
    def modules(self) -> list[str]:
        """Names of the adapted modules, such as `layers.3.mlp.up_proj`."""
        return list(self._pairs)

    def _refuse_unsupported(self) -> None:
        config = self._config
        if config.get("peft_type") != "LORA":
            raise CheckpointError(
                f"{self._where}: peft_type {config.get('peft_type')!r} is not supported; expected LORA"
            )
        for key, meaning in _UNSUPPORTED_SETTINGS.items():
            if config.get(key):
                raise CheckpointError(f"{self._where}: {meaning} is not supported; merge the adapter with peft first")
        if config.get("bias", "none") != "none":
            raise CheckpointError(f"{self._where}: bias {config['bias']!r} is not supported; train with bias 'none'")
        start = config.get("init_lora_weights")
        if start not in _PLAIN_INITIALISATIONS:
            raise CheckpointError(f"{self._where}: {start!r} initialisation changes the base; convert it to plain LoRA")

    def _pair_up(self) -> dict[str, _Pair]:
        found: dict[str, dict[str, str]] = {}
        for key in self._checkpoint.names:
            match = _ADAPTER_KEY.fullmatch(key)
            if not match or match[1].split(".", 2)[2] not in LINEAR_NAMES:
                raise CheckpointError(f"{self.folder}: tensor {key!r} belongs to no linear module of a LLaMA layer")
            found.setdefault(match[1], {})[match[2]] = key
        if not found:
            raise CheckpointError(f"{self.folder}: the adapter holds no tensors")
        for module, keys in found.items():
            for missing in {"A", "B"} - set(keys):
                raise CheckpointError(f"{self.folder}: {module} has no lora_{missing}; the adapter file is incomplete")
        return {
            m: _Pair(keys["A"], keys["B"], self._scale(m, keys)) for m, keys in sorted(found.items(), key=_by_layer)
        }

    def _scale(self, module: str, keys: Mapping[str, str]) -> float:
        """alpha / r, or alpha / √r where rank-stabilised, with the rank and alpha that patterns give the module."""
        rank = self._setting("r", "rank_pattern", module)
        alpha = self._setting("lora_alpha", "alpha_pattern", module)
        held = (self._checkpoint.shape(keys["A"])[0], self._checkpoint.shape(keys["B"])[-1])
        if held != (rank, rank):
            raise CheckpointError(
                f"{self.folder}: {module} has rank {held[0]}/{held[1]}, its configuration says {rank}"
            )
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def _setting(self, key: str, pattern_key: str, module: str) -> float:
        """A number for `module`: of the first pattern that matches the end of its name, else the common one."""
        value = self._config.get(key)
        for pattern, special in (self._config.get(pattern_key) or {}).items():
            if _matches(rf"(.*\.)?({pattern})", f"model.{module}", self._where):
                value = special
                break
        if not isinstance(value, (int, float)) or value <= 0:
            raise CheckpointError(f"{self._where}: {key} must be a positive number, found {value!r}")
        return value

    def check(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Hold the adapter against the base it is to be merged into.

        `shapes` are [out, in] by module (`LlamaShape.linear_shapes`). Raises `CheckpointError` where the adapter was
        trained for another base, or where its file lacks modules that its configuration names.
        """
        for module, pair in self._pairs.items():
            if module not in shapes:
                raise CheckpointError(
                    f"{self.folder}: the base has no {module}; this LoRA was trained for another base"
                )
            rows, columns = self._checkpoint.shape(pair.b)[0], self._checkpoint.shape(pair.a)[-1]
            if (rows, columns) != shapes[module]:
                expected = list(shapes[module])
                raise CheckpointError(
                    f"{self.folder}: {module} is [{rows}, {columns}] but the base has {expected}; "
                    "this LoRA was trained for another base"
                )
        for module in shapes:
            if module not in self._pairs and self._targets(module):
                raise CheckpointError(
                    f"{self.folder}: {module} is in target_modules but has no tensors; file incomplete"
                )

    def _targets(self, module: str) -> bool:
        """Whether `target_modules` names `module`, by the rules of `peft` `check_target_module_exists`."""
        config, name = self._config, f"model.{module}"
        if self._listed(config.get("exclude_modules"), name):
            return False
        targets = config.get("target_modules")
        if targets == "all-linear":
            return True
        layers = config.get("layers_to_transform")
        if layers not in (None, []) and not isinstance(targets, str):
            chosen = [layers] if isinstance(layers, int) else layers
            if int(module.split(".")[1]) not in chosen and name not in (targets or ()):
                return False
        return self._listed(targets, name)

    def _listed(self, targets: str | Iterable[str] | None, name: str) -> bool:
        """Whether `name` matches a regular expression, or equals or ends with an entry of a list."""
        if isinstance(targets, str):
            return _matches(targets, name, self._where)
        return any(name == target or name.endswith(f".{target}") for target in targets or ())

    def factors(self, module: str) -> tuple[np.ndarray, np.ndarray, float] | None:
        """A [rank, in], B [out, rank], float32, and the scale of B @ A; None where the adapter adds nothing."""
        pair = self._pairs.get(module)
        if pair is None:
            return None
        return self._checkpoint.float32(pair.a), self._checkpoint.float32(pair.b), pair.scale

    def delta(self, module: str) -> np.ndarray | None:
        """What the adapter adds to `module`: scale · B @ A, float32 [out, in]; None where it adds nothing."""
        factors = self.factors(module)
        if factors is None:
            return None
        a, b, scale = factors
        with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are told where they are merged
            product: np.ndarray = b @ a
            product *= np.float32(scale)
        return product


def _by_layer(item: tuple[str, Any]) -> tuple[int, str]:
    _, index, name = item[0].split(".", 2)
    return int(index), name


def _matches(pattern: str, name: str, where: Path) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as exc:
        raise CheckpointError(f"{where}: {pattern!r} is not a regular expression: {exc}") from exc
