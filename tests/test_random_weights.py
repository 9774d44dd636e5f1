"""Claims about random checkpoints: each is, tensor by tensor and token by token, what its own library would save."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from small_llama import CHAT_TEMPLATE, cosines, llama_ends, llama_logits, llama_tokens
from svrt.errors import OutputError
from svrt.exporter.decoder import write_merged_gguf
from svrt.exporter.random_weights import (
    LLAMA_3_2_3B,
    VJEPA2_VITL,
    Layout,
    adapter_layout,
    llama_layout,
    projector_layout,
    vgg16_layout,
    vjepa2_layout,
)
from svrt.exporter.tokenizer import read_tokenizer
from svrt.models import vgg16
from svrt.models.checkpoint import Checkpoint
from svrt.models.llama import Adapter, LlamaShape
from svrt.models.projector import Projector
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, VJEPA2Config, VJEPA2Model

SMALL_LLAMA = {
    **LLAMA_3_2_3B,
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
}
SMALL_VJEPA2 = {
    **VJEPA2_VITL,
    "crop_size": 64,
    "hidden_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pred_hidden_size": 48,
    "pred_num_attention_heads": 4,
    "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 2,
}
SHAPE = LlamaShape.from_config(SMALL_LLAMA, Path("config.json"))
FULL_SHAPE = LlamaShape.from_config(LLAMA_3_2_3B, Path("config.json"))
STRINGS = [
    "the ball hits the rim",
    " two  three\n\n4567 don't WON'T",
    "naïve café ☕🏀 東京 \u200d",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nzzzz<|eot_id|>",
    "abcdefghijklmnopqrstuvwxyz",
    "<|reserved_special_token_247|><|finetune_right_pad_id|>",
    "",
]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAYOUTS = {
    "vgg16": vgg16_layout(hidden=8),
    "vjepa2": vjepa2_layout(SMALL_VJEPA2),
    "projector": projector_layout(96, 128, hidden=64),
    "llama": llama_layout(SMALL_LLAMA),
    "adapter": adapter_layout(SHAPE),
}


def shapes_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for shard in layout.shards.values() for tensor in shard}


def file_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def full_llama() -> LlamaForCausalLM:
    """The 3B without storage."""
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**copy.deepcopy(dict(LLAMA_3_2_3B))))  # which writes into rope_scaling


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama_layout(SMALL_LLAMA, shard_bytes=400_000).write(folder, 0)
    return folder


def test_vit_l_has_the_tensors_of_transformers() -> None:
    with torch.device("meta"):
        model = VJEPA2Model(VJEPA2Config(**VJEPA2_VITL))
    assert shapes_of(vjepa2_layout()) == file_shapes(model)
    defaults = VJEPA2Config().to_dict()  # which are those of ViT-L
    given = {key: value for key, value in VJEPA2_VITL.items() if key not in ("architectures", "torch_dtype")}
    assert given == {key: defaults[key] for key in given}


def test_the_3b_has_the_tensors_of_transformers(full_llama: LlamaForCausalLM) -> None:
    tied = {"lm_head.weight"}
    expected = {name: shape for name, shape in file_shapes(full_llama).items() if name not in tied}
    assert shapes_of(llama_layout()) == expected
    assert llama_layout().dtype == "BF16"
    assert sum(np.prod(shape) for shape in expected.values()) == 3_212_749_824  # the published count of parameters


def test_the_3b_is_cut_where_hugging_face_cuts_it(full_llama: LlamaForCausalLM) -> None:
    weights = full_llama.to(torch.bfloat16).state_dict()
    del weights["lm_head.weight"]  # tied, so not saved
    split = split_torch_state_dict_into_shards(weights, max_shard_size="5GB")
    layout = llama_layout()
    index = json.loads(layout.files["model.safetensors.index.json"])
    assert index["weight_map"] == split.tensor_to_filename
    assert index["metadata"]["total_size"] == split.metadata["total_size"] == 6_425_499_648
    assert list(layout.shards) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def test_the_vgg16_has_the_tensors_of_timm(tmp_path: Path) -> None:
    modules: list[torch.nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):  # configuration D
        modules += [torch.nn.Conv2d(channels, width, 3), torch.nn.ReLU()] if width else [torch.nn.MaxPool2d(2)]
        channels = width or channels
    with torch.device("meta"):
        top = {
            "pre_logits": torch.nn.ModuleDict(
                {"fc1": torch.nn.Conv2d(512, 4096, 7), "fc2": torch.nn.Conv2d(4096, 4096, 1)}
            ),
            "head": torch.nn.ModuleDict({"fc": torch.nn.Linear(4096, 1000)}),
        }
    expected = file_shapes(torch.nn.ModuleDict({"features": torch.nn.Sequential(*modules), **top}))
    assert shapes_of(vgg16_layout()) == expected
    assert sum(np.prod(shape) for shape in expected.values()) == 138_357_544  # torchvision's count of parameters
    vgg16_layout(hidden=8).write(tmp_path, 0)
    vgg16.write(tmp_path / "vgg16.onnx", Checkpoint(tmp_path), 32)  # refuses what does not fit
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "vgg16"


def test_vgg16_keeps_the_scale_of_its_activations(tmp_path: Path) -> None:
    vgg16_layout(hidden=8).write(tmp_path, 3)
    weights = load_file(tmp_path / "model.safetensors")
    value = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for block in vgg16.BLOCKS:
        for index, *_ in block:
            weight, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
            value = torch.relu(torch.nn.functional.conv2d(value, weight, bias, padding=1))
            assert 0.3 < value.square().mean().sqrt() < 5 and value.max() < 100
        value = torch.max_pool2d(value, 2)


def test_the_adapter_has_the_tensors_and_the_configuration_of_peft(full_llama: LlamaForCausalLM) -> None:
    settings: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    config = LoraConfig(**settings, inference_mode=True)
    model = get_peft_model(full_llama, config)
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    model.unload()
    layout = adapter_layout(FULL_SHAPE)
    assert shapes_of(layout) == expected and len(expected) == 28 * 7 * 2
    given = json.loads(layout.files["adapter_config.json"])
    known = config.to_dict()
    assert set(given["target_modules"]) == set(TARGETS)
    same = {key for key in given if key != "target_modules"}
    assert {key: given[key] for key in same} == {key: known[key] for key in same}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_files_open_and_hold_what_was_announced(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    calls: list[tuple[int, int]] = []
    layout.write(tmp_path / "out", 0, lambda done, total: calls.append((done, total)))
    files = contents(tmp_path / "out")
    assert set(files) == {*layout.files, *layout.shards}
    total = sum(map(len, files.values()))
    assert layout.total_bytes == total and calls[0] == (0, total) and calls[-1] == (total, total)
    assert calls == sorted(calls)
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[layout.dtype]
    for file, tensors in layout.shards.items():
        with safe_open(tmp_path / "out" / file, framework="pt") as handle:
            assert handle.metadata() == {"format": "pt"}
            for tensor in tensors:
                values = handle.get_tensor(tensor.name)
                assert (tuple(values.shape), values.dtype) == (tensor.shape, dtype)
                # six deviations off the mean of that many draws would be a wrong mean; 0.4 % is what bfloat16 rounds
                error = 6 * tensor.deviation / tensor.elements**0.5 + 0.004 * abs(tensor.mean)
                assert abs(values.double().mean() - tensor.mean) < error, tensor.name
                if tensor.elements > 50:
                    assert values.double().std() == pytest.approx(tensor.deviation, rel=5 / tensor.elements**0.5)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "vgg16"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        layout.write(tmp_path / out, seed)
    a, b, c = (contents(tmp_path / out) for out in "abc")
    assert a == b
    assert {file for file in a if a[file] != c[file]} == set(layout.shards)


def test_a_tensor_does_not_depend_on_the_others_or_on_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projector_layout(1300, 64, hidden=1000).write(tmp_path / "a", 0)  # fc1: two blocks
    monkeypatch.setattr("svrt.exporter.random_weights.usable_processors", lambda: 7)
    projector_layout(1300, 96, hidden=1000).write(tmp_path / "b", 0)
    a, b = (load_file(tmp_path / out / "model.safetensors") for out in "ab")
    assert torch.equal(a["fc1.weight"], b["fc1.weight"])
    halves = a["fc1.weight"].flatten()[: 1 << 20], a["fc1.weight"].flatten()[1 << 20 :]
    assert not torch.equal(halves[0][:100], halves[1][:100])
    assert not torch.equal(a["fc1.bias"][:64], a["fc2.bias"])


def test_transformers_loads_the_encoder_and_its_output_is_neither_flat_nor_huge(tmp_path: Path) -> None:
    LAYOUTS["vjepa2"].write(tmp_path, 0)
    model, report = VJEPA2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    pixels = torch.randn(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hidden = model.eval()(pixels, skip_predictor=True).last_hidden_state[0]
    assert 0.5 < hidden.square().mean().sqrt() < 2 and hidden.abs().max() < 100
    assert (hidden - hidden.mean(0)).square().mean().sqrt() > 0.3  # tokens differ


def test_the_projector_speaks_at_the_size_of_the_decoders_embeddings(tmp_path: Path, llama: Path) -> None:
    projector_layout(96, 128).write(tmp_path, 0)
    projector = Projector.read(Checkpoint(tmp_path), 96)
    tokens = torch.randn(200, 96, generator=torch.Generator().manual_seed(0))
    linear, relu = torch.nn.functional.linear, torch.relu
    value = relu(linear(tokens, *map(torch.from_numpy, (projector.fc1_weight, projector.fc1_bias))))
    value = linear(value, *map(torch.from_numpy, (projector.fc2_weight, projector.fc2_bias)))
    assert 0.3 < value.std() < 3  # before the norm, which would hide a wrong scale
    value = torch.nn.functional.layer_norm(
        value, (128,), *map(torch.from_numpy, (projector.norm_weight, projector.norm_bias)), 1e-5
    )
    embeddings = Checkpoint(llama).float32("model.embed_tokens.weight")
    assert float(value.std()) == pytest.approx(float(embeddings.std()), rel=0.1)


def test_transformers_and_llama_cpp_agree_on_the_llama_with_its_adapter(tmp_path: Path, llama: Path) -> None:
    assert len(list(llama.glob("model-*.safetensors"))) > 2
    LAYOUTS["adapter"].write(tmp_path / "lora", 0)
    Adapter(tmp_path / "lora").check(SHAPE.linear_shapes())
    base, report = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    tokens = torch.arange(3, 1700, 29)[None]
    with torch.inference_mode():
        plain = base.eval()(tokens).logits[0].numpy()
        adapted = PeftModel.from_pretrained(base, tmp_path / "lora").eval()(tokens).logits[0].numpy()
    write_merged_gguf(llama, tmp_path / "lora", tmp_path / "merged.gguf")
    found = llama_logits(tmp_path / "merged.gguf", tokens[0].tolist())
    assert cosines(found, adapted).min() > 0.9999
    assert cosines(plain, adapted).mean() < 0.99  # so the adapter matters
    assert adapted.std() > 0.1  # and a token is preferred to others


def test_llama_cpp_tokenizes_as_transformers_does(tmp_path: Path, llama: Path) -> None:
    write_merged_gguf(llama, None, tmp_path / "out.gguf")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for add_special in (False, True):
        expected = [tokenizer.encode(text, add_special_tokens=add_special) for text in STRINGS]
        assert llama_tokens(tmp_path / "out.gguf", STRINGS, add_special=add_special) == expected
    assert expected[0][0] == tokenizer.bos_token_id == 2048 - 256
    assert len(expected[4]) < 26  # merges take place
    assert tokenizer.decode(expected[2], skip_special_tokens=True) == STRINGS[2]
    assert llama_ends(tmp_path / "out.gguf") == {1793, 1800, 1801}


def test_the_chat_template_is_the_one_that_llama_3_was_taught(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    assert tokenizer.chat_template != CHAT_TEMPLATE
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": " Hi "}], tokenize=False, add_generation_prompt=True
    )
    assert said == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_the_full_tokenizer_has_the_public_ids_and_valid_merges(tmp_path: Path) -> None:
    files = llama_layout().files
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(files[name])
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))  # refuses a merge of unknown tokens
    public = {
        "!": 0,
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|reserved_special_token_0|>": 128002,
        "<|reserved_special_token_1|>": 128003,
        "<|finetune_right_pad_id|>": 128004,
        "<|reserved_special_token_2|>": 128005,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eom_id|>": 128008,
        "<|eot_id|>": 128009,
        "<|python_tag|>": 128010,
        "<|reserved_special_token_3|>": 128011,
        "<|reserved_special_token_247|>": 128255,
    }
    assert {text: tokenizer.token_to_id(text) for text in public} == public
    assert tokenizer.get_vocab_size(with_added_tokens=False) == 128000
    rules = json.loads(files["tokenizer.json"])["model"]
    ids, merges = rules["vocab"], [merge.split(" ") for merge in rules["merges"]]
    assert len(merges) == 127_744 and len({a + b for a, b in merges}) == 127_744
    assert all(max(ids[a], ids[b]) < ids[a + b] == 256 + rank for rank, (a, b) in enumerate(merges))
    assert set(list(ids)[:256]) == set(pre_tokenizers.ByteLevel.alphabet())
    assert len(files["tokenizer.json"]) < 8e6
    config = json.loads(files["config.json"])
    assert (config["bos_token_id"], config["eos_token_id"]) == (128000, [128001, 128008, 128009])
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [128001, 128008, 128009]
    Layout({}, {"model.safetensors": []}, "F32").write(tmp_path, 0)
    read = read_tokenizer(Checkpoint(tmp_path), config, 128256)
    assert (read.pre, read.bos, read.eos, read.add_bos) == ("llama-bpe", 128000, 128009, True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"out: cannot be written: .+") as caught:
        projector_layout(8, 8).write(tmp_path / "out", 0)
    assert "\n" not in str(caught.value)


@pytest.mark.full
def test_the_3b_is_written_in_little_memory() -> None:
    program = (
        "import sys; from pathlib import Path; from svrt.exporter.random_weights import llama_layout; "
        "llama_layout().write(Path(sys.argv[1]), 0); "
        # Not ru_maxrss: that of a child begins with what its parent held.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    with tempfile.TemporaryDirectory() as name:  # pytest would keep its 6.4 GB
        out = Path(name)
        command = [sys.executable, "-c", program, name]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
        assert peak < 0.5e9, f"{peak / 1e6:.0f} MB"
        assert sum(path.stat().st_size for path in out.iterdir()) == llama_layout().total_bytes
        checkpoint = Checkpoint(out)
        assert LlamaShape.from_config(checkpoint.json("config.json"), out) == FULL_SHAPE
        assert {name: checkpoint.shape(name) for name in checkpoint.names} == FULL_SHAPE.tensor_shapes()
        last = checkpoint.float32("model.norm.weight")
        assert float(last.mean()) == pytest.approx(1, abs=0.02) and float(last.std()) == pytest.approx(0.1, rel=0.1)
