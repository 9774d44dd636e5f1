"""A system in exactly SV3.3B's layouts, small enough to export in seconds: random checkpoints on disk and a recipe."""

from __future__ import annotations

from pathlib import Path

from svrt.exporter import random_weights
from svrt.models.llama import LlamaShape

VJEPA2 = {
    **random_weights.VJEPA2_VITL,
    "crop_size": 64,
    "hidden_size": 96,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pred_hidden_size": 48,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
LLAMA = {
    **random_weights.LLAMA_3_2_3B,
    "head_dim": 32,
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
RECIPE = """
name = "small"
[sampler]
source = "sampler"
size = 32
precision = "fp16"
[encoder]
source = "encoder"
token_grid = [4, 2, 2]
precision = "fp16"
[projector]
source = "projector"
[decoder]
source = "decoder"
adapter = "adapter"
quantization = "q8_0"
max_tokens = 8
prefix = "<|start_header_id|>user<|end_header_id|>\\n\\n"
suffix = "\\nWhat happens?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\n"
"""


def write_system(folder: Path, seed: int = 1) -> Path:
    """Write sampler, encoder, projector, decoder (three shards) and adapter to `folder`; returns the recipe's path."""
    shape = LlamaShape.from_config(LLAMA, Path("config.json"))
    layouts = {
        "sampler": random_weights.vgg16_layout(hidden=8),
        "encoder": random_weights.vjepa2_layout(VJEPA2),
        "projector": random_weights.projector_layout(VJEPA2["hidden_size"], LLAMA["hidden_size"]),
        "decoder": random_weights.llama_layout(LLAMA, shard_bytes=1_500_000),
        "adapter": random_weights.adapter_layout(shape),
    }
    for role, layout in layouts.items():
        layout.write(folder / role, seed)
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE)
    return recipe
