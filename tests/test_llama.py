"""Claims about LLaMA's names, rotary order and rope factors, and about LoRA read from PEFT's files."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from small_llama import TARGETS, edit_json, make_adapter, make_llama
from svrt.errors import CheckpointError
from svrt.models.checkpoint import Checkpoint
from svrt.models.llama import (
    Adapter,
    LlamaShape,
    RopeScaling,
    from_ggml_rows,
    gguf_name,
    hugging_face_name,
    to_ggml_rows,
)
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

WHERE = Path("config.json")
LLAMA_3_2_3B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_llama(folder)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    make_adapter(base, tmp_path / "adapter")
    return tmp_path / "adapter"


def shape_of(base: Path) -> LlamaShape:
    return LlamaShape.from_config(Checkpoint(base).json("config.json"), base / "config.json")


def test_every_tensor_of_a_transformers_llama_has_a_gguf_name_and_back(base: Path) -> None:
    names = Checkpoint(base).names
    translated = [gguf_name(name) for name in names]
    assert len(set(translated)) == len(names) and None not in translated
    assert [hugging_face_name(name) for name in translated if name] == names
    assert "blk.2.attn_output.weight" in translated and "token_embd.weight" in translated


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.x.mlp.up_proj.weight", "weight"]
)
def test_other_names_are_not_translated(name: str) -> None:
    assert gguf_name(name) is None
    assert hugging_face_name(name) is None


def test_tensor_shapes_are_those_transformers_writes(base: Path) -> None:
    checkpoint = Checkpoint(base)
    assert shape_of(base).tensor_shapes() == {name: checkpoint.shape(name) for name in checkpoint.names}
    untied = LlamaShape.from_config({**LLAMA_3_2_3B, "tie_word_embeddings": False}, WHERE).tensor_shapes()
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**deepcopy({**LLAMA_3_2_3B, "tie_word_embeddings": False})))
    assert untied == {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def test_reordered_rows_under_ggml_rotation_are_transformers_rotation() -> None:
    heads, d, position = 3, 8, 11
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((heads * d, 5)), rng.standard_normal(5)
    angle = position * 10000.0 ** (-np.arange(0, d, 2) / d)
    table = torch.tensor(np.concatenate([angle, angle]))[None, None]
    query = torch.tensor((weight @ x).reshape(1, heads, 1, d))
    expected, _ = apply_rotary_pos_emb(query, query, table.cos(), table.sin())
    pairs = (to_ggml_rows(weight, heads) @ x).reshape(heads, d // 2, 2)  # GGML rotates neighbours
    rotated = np.stack(
        [
            pairs[..., 0] * np.cos(angle) - pairs[..., 1] * np.sin(angle),
            pairs[..., 0] * np.sin(angle) + pairs[..., 1] * np.cos(angle),
        ],
        axis=-1,
    ).reshape(heads * d)
    np.testing.assert_allclose(from_ggml_rows(rotated, heads), expected.numpy().reshape(-1), atol=1e-12)


def test_reordering_is_undone_exactly() -> None:
    weight = np.arange(4 * 16 * 3).reshape(64, 3)
    assert not np.array_equal(to_ggml_rows(weight, 4), weight)
    np.testing.assert_array_equal(from_ggml_rows(to_ggml_rows(weight, 4), 4), weight)


@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "original"), [(128, 500000.0, 32.0, 8192), (64, 1e4, 8.0, 128)]
)
def test_rope_factors_are_those_of_transformers(head_dim: int, theta: float, factor: float, original: int) -> None:
    config = LlamaConfig(
        **{
            **LLAMA_3_2_3B,
            "head_dim": head_dim,
            "rope_theta": theta,
            "rope_scaling": {
                **LLAMA_3_2_3B["rope_scaling"],
                "factor": factor,
                "original_max_position_embeddings": original,
            },
        }
    )
    config.standardize_rope_params()
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    factors = RopeScaling(factor, 1.0, 4.0, original).factors(head_dim, theta)
    assert factors.dtype == np.float32 and factors.min() == 1.0 and factors.max() == factor
    assert ((factors > 1.0) & (factors < factor)).any()  # the smooth stretch between is exercised
    np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=2e-6)


def test_a_configuration_is_read_in_the_old_and_the_new_spelling() -> None:
    old = LlamaShape.from_config(LLAMA_3_2_3B, WHERE)
    new = {key: value for key, value in LLAMA_3_2_3B.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {**LLAMA_3_2_3B["rope_scaling"], "rope_theta": 500000.0}
    assert LlamaShape.from_config(new, WHERE) == old
    assert old.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192) and old.rope_theta == 500000.0
    assert sum(int(np.prod(shape)) for shape in old.tensor_shapes().values()) == 3_212_749_824  # LLaMA-3.2-3B


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "unsupported architecture Mistral"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "unsupported architecture LlamaForSequence"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of type 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "needs a positive low_freq_factor"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a positive whole number"),
        ({"num_key_value_heads": 7}, "24 heads, 7 key/value heads"),
    ],
)
def test_a_configuration_that_is_not_llamas_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config.json: .*{message}"):
        LlamaShape.from_config({**LLAMA_3_2_3B, **changes}, WHERE)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 32},
        {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 5}},
        {"rank_pattern": {r"layers\.[02]\.self_attn\..*": 2, "mlp.down_proj": 16}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": r".*\.layers\.1\..*_proj", "exclude_modules": ["o_proj"]},
    ],
    ids=["alpha over r", "rslora", "patterns", "all-linear", "some layers", "regular expression"],
)
def test_base_plus_delta_is_what_peft_merges(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapted = make_adapter(base, tmp_path, **settings)
    if settings.get("target_modules") == "all-linear":  # what a hand-written configuration says; peft saves the names
        edit_json(tmp_path / "adapter_config.json", target_modules="all-linear")
    merged = adapted.merge_and_unload().state_dict()
    adapter, checkpoint, shapes = Adapter(tmp_path), Checkpoint(base), shape_of(base).linear_shapes()
    adapter.check(shapes)
    changed = 0
    for module in shapes:
        weight, delta = checkpoint.float32(f"model.{module}.weight"), adapter.delta(module)
        changed += delta is not None
        sum_ = weight if delta is None else weight + delta
        np.testing.assert_allclose(sum_, merged[f"model.{module}.weight"].numpy(), rtol=0, atol=1e-6)
        assert delta is None or np.abs(delta).max() > 1e-2
    assert changed == len(adapter.modules) > 0


def refuses(adapter: Path, base: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        Adapter(adapter).check(shape_of(base).linear_shapes())
    assert str(adapter) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "DoRA is not supported"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"lora_bias": True}, "a bias in lora_B is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save .* is not supported"),
        ({"trainable_token_indices": [1]}, "trained token embeddings is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "'pissa' initialisation changes the base"),
        ({"r": 4}, "has rank 8/8, its configuration says 4"),
        ({"lora_alpha": None}, "lora_alpha must be a positive number"),
        ({"rank_pattern": {"q_proj(": 4}}, "is not a regular expression"),
    ],
)
def test_a_configuration_that_is_no_plain_lora_is_refused(
    adapter: Path, base: Path, changes: dict[str, Any], message: str
) -> None:
    Adapter(adapter).check(shape_of(base).linear_shapes())  # sound before the change
    edit_json(adapter / "adapter_config.json", **changes)
    refuses(adapter, base, message)


@pytest.mark.parametrize("kind", ["dora", "bias", "ia3", "embedding", "saved head"])
def test_adapters_peft_itself_saves_in_other_forms_are_refused(base: Path, tmp_path: Path, kind: str) -> None:
    settings = {
        "dora": LoraConfig(target_modules=TARGETS, use_dora=True),
        "bias": LoraConfig(target_modules=TARGETS, bias="lora_only"),
        "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "embedding": LoraConfig(target_modules=[*TARGETS, "embed_tokens"]),
        "saved head": LoraConfig(target_modules=TARGETS, modules_to_save=["lm_head"]),
    }[kind]
    get_peft_model(LlamaForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path)
    message = "belongs to no linear module" if kind == "embedding" else "not supported"
    refuses(tmp_path, base, message)


def test_factors_without_their_partner_are_refused(adapter: Path, base: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, adapter / "adapter_model.safetensors")
    refuses(adapter, base, r"layers\.1\.mlp\.up_proj has no lora_B")


def test_a_module_that_the_configuration_names_and_the_file_lacks_is_refused(adapter: Path, base: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.2.self_attn.k_proj" not in name}
    save_file(kept, adapter / "adapter_model.safetensors")
    refuses(adapter, base, r"layers\.2\.self_attn\.k_proj is in target_modules but has no tensors")


def test_a_lora_for_another_base_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    wide, deep = tmp_path / "wide", tmp_path / "deep"
    make_llama(wide, intermediate_size=640)
    make_adapter(wide, tmp_path / "wide-lora")
    refuses(tmp_path / "wide-lora", base, r"layers\.0\.mlp\.\w+ is \[.*640.*\] but the base has .*another base")
    make_llama(deep, num_hidden_layers=4)
    make_adapter(deep, tmp_path / "deep-lora")
    refuses(tmp_path / "deep-lora", base, r"the base has no layers\.3\..*another base")


def test_tensors_of_unknown_modules_and_pickles_are_refused(adapter: Path, base: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    factor = next(iter(tensors.values()))
    save_file(
        tensors | {"base_model.model.model.vision.proj.lora_A.weight": factor}, adapter / "adapter_model.safetensors"
    )
    refuses(adapter, base, "'base_model.model.model.vision.proj.lora_A.weight' belongs to no linear module")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refuses(adapter, base, "found only pickles")


def test_an_adapter_beside_a_whole_model_is_found(base: Path, adapter: Path, tmp_path: Path) -> None:
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"model.embed_tokens.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    assert Adapter(tmp_path).modules == Adapter(adapter).modules
