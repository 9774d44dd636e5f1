"""A small LLaMA of the kind that is exported, with every feature of LLaMA 3.2: material for tests of the decoder.

Random weights, a LLaMA-3 style tokenizer trained on a few lines, grouped-query attention, tied embeddings, llama3
`rope_scaling` within a few hundred positions, and PEFT adapters on all seven linear modules.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from svrt.runtime.decoder import model_parameters
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEXT = """The guard drives left, stops at 15 feet and pulls up for a jump shot; it's short and off the front rim.
A defensive rebound starts the break: two passes, one dribble, and a layup at 2:47. They'll call a timeout, won't they?
MISS 16' Pullup Jump Shot. DEFENSIVE REBOUND (Off:0 Def:3). Corner three: swish! 24 seconds on the clock, 101 to 99.
The centre sets a screen at the elbow, rolls to the rim, catches the lob and dunks. Crowd: "Ooooh!" — naïve café ☕.
"""
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{% endfor %}"


def save_tokenizer(folder: Path, *, split: str = "llama3") -> None:
    """`tokenizer.json` and `tokenizer_config.json`, pre-tokenizing as LLaMA 3, SmolLM2 or GPT-2 do."""
    steps = {
        "llama3": [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        "smollm": [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
        "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    }[split]
    tokenizer = Tokenizer(models.BPE(ignore_merges=split == "llama3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT] * 2, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    tokenizer.add_tokens([AddedToken("[ball]", normalized=False)])
    if split == "llama3":
        bos = SPECIALS[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SPECIALS[0], eos_token=SPECIALS[1])
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def make_llama(folder: Path, *, shard: str = "5GB", dtype: torch.dtype = torch.float32, **changes: Any) -> None:
    """Save a LLaMA of three layers, width 256, four heads of 64 over two key/value heads, and its tokenizer."""
    settings: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 480,
        "eos_token_id": [481, 484],
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    }
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1.0 + 0.3 * torch.randn_like(weight))
            elif "embed" in name or "lm_head" in name:
                weight.copy_(torch.randn_like(weight) * 0.1)
            else:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
    model.save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(folder)


def make_adapter(base: Path, folder: Path, **changes: Any) -> PeftModel:
    """Train nothing, but save a LoRA whose both factors are random; returns the model with it, float32, for eval."""
    settings: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": TARGETS, "init_lora_weights": False}
    torch.manual_seed(11)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{**settings, **changes}))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5 * 0.3)
    adapted.save_pretrained(folder)
    return adapted.eval()


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a value of None removes the key."""
    value = json.loads(file.read_text())
    value.update(changes)
    file.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` [n, k] with the same row of `b`."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def llama_logits(gguf: Path, tokens: Sequence[int], stretches: Sequence[int] = ()) -> np.ndarray:
    """Logits of llama.cpp at every position, float32 [n, vocabulary], decoded in stretches of the given lengths."""
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), model_parameters(llama_cpp))
    assert model, f"llama.cpp does not load {gguf}"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = len(tokens)
    settings.n_threads = settings.n_threads_batch = 1  # waiting threads spin, which a busy machine pays dearly
    context = llama_cpp.llama_init_from_model(model, settings)
    width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    found, start = [], 0
    for length in stretches or [len(tokens)]:
        batch = llama_cpp.llama_batch_init(length, 0, 1)
        batch.n_tokens = length
        for i in range(length):
            batch.token[i], batch.pos[i], batch.logits[i] = int(tokens[start + i]), start + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert llama_cpp.llama_decode(context, batch) == 0
        found.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (length, width)).copy())
        llama_cpp.llama_batch_free(batch)
        start += length
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.concatenate(found)


def llama_tokens(gguf: Path, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
    """How llama.cpp tokenizes each text, special tokens parsed."""
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), settings)
    assert model, f"llama.cpp does not load the vocabulary of {gguf}"
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    found = []
    for text in texts:
        raw = text.encode()
        buffer = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), buffer, len(buffer), add_special, True)
        found.append(list(buffer[:count]))
    llama_cpp.llama_model_free(model)
    return found


def llama_ends(gguf: Path) -> set[int]:
    """The tokens at which llama.cpp ends a generation."""
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), settings)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    ends = {token for token in range(size) if llama_cpp.llama_vocab_is_eog(vocabulary, token)}
    llama_cpp.llama_model_free(model)
    return ends


_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
