"""Random checkpoints in exactly the layouts SV3.3B's parts are published in, to prove and measure without weights.

File names, tensor names, shapes, dtypes, shards and JSON files are those of the published checkpoints, so that the code
which reads one reads the other. Values are normal, scaled so that activations keep their size and fit float16.

Tensors are drawn block by block while they are written: memory does not grow with the checkpoint. Each block has its
own generator, seeded by the seed, the tensor's name and the block's number, so that values depend neither on the order
of tensors nor on the number of threads. Across its versions numpy keeps a generator's numbers where it can (NEP 19).

Sources: the safetensors format (README of huggingface/safetensors); `timm/vgg16.tv_in1k`; transformers'
`modeling_vjepa2.py` and `modeling_llama.py`; the public Llama 3.2 tokenizer (special tokens, pre-tokenizer);
`peft` `LoraConfig`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from ..errors import OutputError
from ..models import vgg16
from ..models.checkpoint import INDEX_NAME, SINGLE_NAMES
from ..models.llama import LINEAR_NAMES, NORM_NAMES, LlamaShape
from ..runtime.processors import usable_processors
from .decoder import Progress
from .tokenizer import LLAMA3_SPLIT

Dtype = Literal["F32", "BF16"]

DEVIATION = 0.02  # of biases and embeddings: `initializer_range` of both transformers
# Queries and keys are drawn so much larger than what keeps a value's size. Smaller ones make attention look everywhere
# alike, and a rotary order that is wrong would not be seen.
SHARPNESS = 1.5
GAIN_DEVIATION = 0.1  # of a norm's weight around its mean
SHARD_BYTES = 5_000_000_000  # where Hugging Face cuts a checkpoint
LORA_RANK, LORA_ALPHA = 16, 32
SPECIAL_TOKENS = 256  # the last ids of a LLaMA 3 vocabulary

_BLOCK_ELEMENTS = 1 << 20  # a block and its conversion stay in the cache; values depend on this number
_DTYPES: dict[Dtype, np.dtype[Any]] = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}

# `config.json` of facebook/vjepa2-vitl-fpc64-256.
VJEPA2_VITL: Mapping[str, Any] = {
    "architectures": ["VJEPA2Model"],
    "model_type": "vjepa2",
    "attention_dropout": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "crop_size": 256,
    "drop_path_rate": 0.0,
    "frames_per_clip": 64,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "in_chans": 3,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4.0,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_pooler_layers": 3,
    "patch_size": 16,
    "pred_hidden_size": 384,
    "pred_mlp_ratio": 4.0,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_zero_init_mask_tokens": True,
    "qkv_bias": True,
    "torch_dtype": "float32",
    "tubelet_size": 2,
}

# `config.json` of meta-llama/Llama-3.2-3B-Instruct, but for the ids of tokens, which follow from `vocab_size`.
LLAMA_3_2_3B: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}

# Our own words for the layout that LLaMA 3 models were taught.
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclass(frozen=True)
class Tensor:
    """One tensor to be drawn, normal around `mean`."""

    name: str
    shape: tuple[int, ...]
    deviation: float = DEVIATION
    mean: float = 0.0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What a checkpoint's folder holds: its JSON files, and the tensors of each safetensors file, all of `dtype`."""

    files: Mapping[str, bytes]
    shards: Mapping[str, list[Tensor]]
    dtype: Dtype

    @property
    def elements(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.elements for tensors in self.shards.values() for tensor in tensors)

    @property
    def total_bytes(self) -> int:
        """Exactly what `write` will write."""
        headers = sum(len(_header(tensors, self.dtype)) for tensors in self.shards.values())
        return sum(map(len, self.files.values())) + headers + self.elements * _DTYPES[self.dtype].itemsize

    def write(self, out: Path, seed: int, progress: Progress | None = None) -> None:
        """Write every file to the folder `out`, which is made where it is missing. `progress` gets bytes.

        Raises `OutputError` where it cannot be written; what was written until then stays.
        """
        report = progress or (lambda done, total: None)
        done, total = 0, self.total_bytes
        report(done, total)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, pieces in self._contents(seed):
                with (out / name).open("wb") as file:
                    for piece in pieces:
                        done += file.write(piece)
                        report(done, total)
        except OSError as exc:
            raise OutputError(f"{out}: cannot be written: {exc.strerror or exc}") from exc

    def _contents(self, seed: int) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
        """Name and pieces of each file."""
        for name, content in self.files.items():
            yield name, [content]
        for name, tensors in self.shards.items():
            yield name, chain([_header(tensors, self.dtype)], _drawn(tensors, self.dtype, seed))


def _header(tensors: Iterable[Tensor], dtype: Dtype) -> bytes:
    """What a safetensors file begins with: a length of 8 bytes, then JSON padded so that the data is aligned to 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    start = 0
    for tensor in tensors:
        stop = start + tensor.elements * _DTYPES[dtype].itemsize
        entries[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _drawn(tensors: Iterable[Tensor], dtype: Dtype, seed: int) -> Iterator[memoryview]:
    """The values of `tensors` in order, one block after another; threads draw a few blocks ahead of the writer."""
    blocks = ((tensor, number) for tensor in tensors for number in range(-(-tensor.elements // _BLOCK_ELEMENTS)))
    workers = usable_processors()
    ahead: deque[Future[memoryview]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for tensor, number in blocks:
            ahead.append(pool.submit(_block, tensor, number, dtype, seed))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _block(tensor: Tensor, number: int, dtype: Dtype, seed: int) -> memoryview:
    """The bytes of block `number` of a tensor."""
    key = hashlib.sha256(f"{seed}/{tensor.name}/{number}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))
    count = min(_BLOCK_ELEMENTS, tensor.elements - number * _BLOCK_ELEMENTS)
    values = generator.standard_normal(count, dtype=np.float32)  # numpy lets other threads run meanwhile
    values *= np.float32(tensor.deviation)
    values += np.float32(tensor.mean)
    return values.astype(_DTYPES[dtype], copy=False).view(np.uint8).data


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _gain(name: str, width: int, mean: float = 1.0) -> Tensor:
    """A norm's weight."""
    return Tensor(name, (width,), GAIN_DEVIATION * mean, mean)


def _matrix(name: str, *shape: int, gain: float = 1.0) -> Tensor:
    """A weight [out, in, ...] that keeps the size of what it is multiplied with, or makes it `gain` times as large."""
    return Tensor(name, shape, gain / math.sqrt(math.prod(shape[1:])))


def _linear(stem: str, *shape: int, gain: float = 1.0) -> list[Tensor]:
    """Weight, as `_matrix`, and bias [out]."""
    return [_matrix(f"{stem}.weight", *shape, gain=gain), Tensor(f"{stem}.bias", shape[:1])]


def _he(stem: str, *shape: int) -> list[Tensor]:
    """As `_linear`, at the scale that ReLU keeps (He et al., arXiv 1502.01852)."""
    return _linear(stem, *shape, gain=math.sqrt(2))


def vgg16_layout(hidden: int = 4096) -> Layout:
    """`timm/vgg16.tv_in1k`, float32: `model.safetensors` and a `config.json`. `hidden` is the classifier's width."""
    tensors = [
        tensor
        for block in vgg16.BLOCKS
        for index, channels, filters in block
        for tensor in _he(f"features.{index}", filters, channels, 3, 3)
    ]
    tensors += _he("pre_logits.fc1", hidden, vgg16.FEATURES, 7, 7)
    tensors += _he("pre_logits.fc2", hidden, hidden, 1, 1)
    tensors += _he("head.fc", 1000, hidden)
    config = {
        "architecture": "vgg16",
        "num_classes": 1000,
        "num_features": hidden,
        "pretrained_cfg": {
            "tag": "tv_in1k",
            "input_size": [3, 224, 224],
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 1000,
            "pool_size": [7, 7],
            "first_conv": "features.0",
            "classifier": "head.fc",
        },
    }
    return Layout({"config.json": _json(config)}, {SINGLE_NAMES[0]: tensors}, "F32")


def vjepa2_layout(config: Mapping[str, Any] = VJEPA2_VITL) -> Layout:
    """`facebook/vjepa2-vitl-fpc64-256`, encoder and predictor, float32: `model.safetensors` and `config.json`."""
    width, narrow = config["hidden_size"], config["pred_hidden_size"]
    patch = (config["in_chans"], config["tubelet_size"], config["patch_size"], config["patch_size"])
    tensors = _linear("encoder.embeddings.patch_embeddings.proj", width, *patch)
    for index in range(config["num_hidden_layers"]):
        tensors += _vjepa2_layer(f"encoder.layer.{index}", width, int(width * config["mlp_ratio"]))
    tensors += _layer_norm("encoder.layernorm", width)
    tensors.append(Tensor("predictor.embeddings.mask_tokens", (config["pred_num_mask_tokens"], 1, 1, narrow)))
    tensors += _linear("predictor.embeddings.predictor_embeddings", narrow, width)
    for index in range(config["pred_num_hidden_layers"]):
        tensors += _vjepa2_layer(f"predictor.layer.{index}", narrow, int(narrow * config["pred_mlp_ratio"]))
    tensors += _layer_norm("predictor.layernorm", narrow) + _linear("predictor.proj", width, narrow)
    return Layout({"config.json": _json(config)}, {SINGLE_NAMES[0]: tensors}, "F32")


def _vjepa2_layer(stem: str, width: int, inner: int) -> list[Tensor]:
    """One layer: attention and MLP, each behind its norm."""
    tensors = _layer_norm(f"{stem}.norm1", width)
    for part, gain in (("query", SHARPNESS), ("key", SHARPNESS), ("value", 1.0), ("proj", 1.0)):
        tensors += _linear(f"{stem}.attention.{part}", width, width, gain=gain)
    tensors += _layer_norm(f"{stem}.norm2", width)
    return tensors + _linear(f"{stem}.mlp.fc1", inner, width) + _linear(f"{stem}.mlp.fc2", width, inner)


def _layer_norm(stem: str, width: int) -> list[Tensor]:
    return [_gain(f"{stem}.weight", width), Tensor(f"{stem}.bias", (width,))]


def projector_layout(width_in: int, width_out: int, hidden: int = 512) -> Layout:
    """The projector (`models/projector.py`), float32: `model.safetensors`.

    Its LayerNorm gives tokens the size of the decoder's embeddings.
    """
    tensors = _he("fc1", hidden, width_in) + _he("fc2", width_out, hidden)
    tensors.append(_gain("norm.weight", width_out, DEVIATION))
    tensors.append(Tensor("norm.bias", (width_out,), GAIN_DEVIATION * DEVIATION))
    return Layout({}, {SINGLE_NAMES[0]: tensors}, "F32")


def adapter_layout(shape: LlamaShape) -> Layout:
    """A PEFT LoRA of rank 16 on the seven linear modules of `shape`, float32.

    Neither factor is zero: merged, it changes weights by a sixth of their size, which is more than 4-bit quantization
    does.
    """
    tensors = []
    for module, (rows, columns) in shape.linear_shapes().items():
        stem = f"base_model.model.model.{module}"
        tensors.append(_matrix(f"{stem}.lora_A.weight", LORA_RANK, columns))
        tensors.append(Tensor(f"{stem}.lora_B.weight", (rows, LORA_RANK)))
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "corda_config": None,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": LORA_ALPHA,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": LORA_RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": [name.rpartition(".")[2] for name in LINEAR_NAMES],
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_rslora": False,
    }
    return Layout({"adapter_config.json": _json(config)}, {SINGLE_NAMES[1]: tensors}, "F32")


def llama_layout(config: Mapping[str, Any] = LLAMA_3_2_3B, shard_bytes: int = SHARD_BYTES) -> Layout:
    """`meta-llama/Llama-3.2-3B-Instruct`: bfloat16 in shards with their index, configurations and a tokenizer.

    The tokenizer has the real one's size, rules and special tokens, and merges made up from letters. `vocab_size` is
    512 or more: bytes, merges and special tokens.
    """
    size = config["vocab_size"]
    first = size - SPECIAL_TOKENS
    ids: dict[str, Any] = {"bos_token_id": first, "eos_token_id": [first + 1, first + 8, first + 9]}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    shards = _cut(_llama_tensors(LlamaShape.from_config(config, Path("config.json"))), shard_bytes)
    files = {
        "config.json": _json({**config, **ids}),
        "generation_config.json": _json({**ids, **sampling}),
        "tokenizer.json": _json(_tokenizer(size)),
        "tokenizer_config.json": _json(_tokenizer_config(size, config["max_position_embeddings"])),
    }
    if len(shards) > 1:
        files[INDEX_NAME] = _json(_index(shards))
    return Layout(files, shards, "BF16")


def _llama_tensors(shape: LlamaShape) -> list[Tensor]:
    """Every tensor in the order of the modules, by which Hugging Face cuts shards: linear ones first, then norms."""
    shapes = shape.tensor_shapes()
    modules = [f"model.layers.{i}.{name}" for i in range(shape.layers) for name in (*LINEAR_NAMES, *NORM_NAMES)]
    names = [f"{module}.weight" for module in ("model.embed_tokens", *modules, "model.norm", "lm_head")]
    kept = [name for name in names if name in shapes]  # tied: no lm_head
    return [_llama_tensor(name, shapes[name]) for name in kept]


def _llama_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 1:
        return _gain(name, *shape)
    if "layers" not in name:
        return Tensor(name, shape)
    return _matrix(name, *shape, gain=SHARPNESS if "q_proj" in name or "k_proj" in name else 1.0)


def _cut(tensors: list[Tensor], limit: int) -> dict[str, list[Tensor]]:
    """Tensors by file of at most `limit` bytes, as `huggingface_hub` `split_torch_state_dict_into_shards` cuts them."""
    shards: list[list[Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        size = tensor.elements * _DTYPES["BF16"].itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= size
    if len(shards) == 1:
        return {SINGLE_NAMES[0]: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def _index(shards: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    where = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.elements for tensors in shards.values() for tensor in tensors) * _DTYPES["BF16"].itemsize
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def _tokenizer(size: int) -> dict[str, Any]:
    """`tokenizer.json` of LLaMA 3 for a vocabulary of `size`, with the merges of `_merges`."""
    alphabet = _byte_alphabet()
    merges = list(islice(_merges(), size - len(alphabet) - SPECIAL_TOKENS))
    bos = _special_tokens()[0]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    pieces = [
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": text, "type_id": i}}]
        for i, text in enumerate("AB")
    ]
    template = {
        "type": "TemplateProcessing",
        "single": pieces[0],
        "pair": pieces[0] + pieces[1],
        "special_tokens": {bos: {"id": bos, "ids": [size - SPECIAL_TOKENS], "tokens": [bos]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **entry} for i, entry in _special_entries(size).items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {text: i for i, text in enumerate([*alphabet, *(a + b for a, b in merges)])},
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }


def _tokenizer_config(size: int, context: int) -> dict[str, Any]:
    return {
        "added_tokens_decoder": {str(i): entry for i, entry in _special_entries(size).items()},
        "bos_token": "<|begin_of_text|>",
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes, in the order of their ids (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _merges() -> Iterator[tuple[str, str]]:
    """Endless merges: a letter put behind a space, a letter or an earlier result, so no two results are alike."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    stems = ["Ġ", *letters]  # Ġ stands for the space
    while True:
        longer = []
        for stem in stems:
            for letter in letters:
                yield stem, letter
                longer.append(stem + letter)
        stems = longer


def _special_tokens() -> list[str]:
    """The 256 special tokens of LLaMA 3.2 in the order of their ids; most are reserved."""
    named = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id"}
    named |= {7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag"}
    free = (i for i in range(SPECIAL_TOKENS) if i not in named)
    reserved = {i: f"reserved_special_token_{number}" for number, i in enumerate(free)}
    return [f"<|{(named | reserved)[i]}|>" for i in range(SPECIAL_TOKENS)]


def _special_entries(size: int) -> dict[int, dict[str, Any]]:
    """Content and flags of each special token by its id."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = size - SPECIAL_TOKENS
    return {first + i: {"content": text, **plain} for i, text in enumerate(_special_tokens())}
