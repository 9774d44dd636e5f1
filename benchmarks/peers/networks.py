"""The networks as one writes them with PyTorch and transformers: what the stock exports are made of, too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM, VJEPA2Model

from ...bundle import EncoderSpec
from ...models import vgg16
from ...models.projector import NORM_EPSILON
from ...runtime.processors import usable_processors
from .weights import DECODER_FOLDER, ENCODER_FOLDER, PROJECTOR_FILE, ROPE_FILE, VGG_FILE


def use_all_processors() -> None:
    """PyTorch takes the cores that it thinks there are; it gets those that it may use, unless it was told."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_processors())


class Vgg16(nn.Module):
    """torchvision's `vgg16().features` and the mean over the map: [N, 3, S, S] to [N, 512]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in vgg16.BLOCKS:
            for _, channels, filters in block:
                layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.features(images)).mean(dim=(2, 3))


class VideoEncoder(nn.Module):
    """`VJEPA2Model`, the mean over blocks of tokens, the projector: [1, T, 3, S, S] to [1, tokens, width]."""

    def __init__(self, vjepa2: VJEPA2Model, projector: nn.Module, spec: EncoderSpec) -> None:
        super().__init__()
        self.vjepa2, self.projector, self.grid = vjepa2, projector, tuple(spec.token_grid)
        config = cast(Any, vjepa2.config)
        side = spec.size // config.patch_size
        self.have = (spec.frames // config.tubelet_size, side, side)

    def forward(self, pixel_values_videos: Tensor) -> Tensor:
        hidden = self.vjepa2(pixel_values_videos=pixel_values_videos, skip_predictor=True).last_hidden_state
        (depth, rows, columns), (t, r, c) = self.have, self.grid
        blocks = hidden.reshape(1, t, depth // t, r, rows // r, c, columns // c, hidden.shape[-1])
        return cast(Tensor, self.projector(blocks.mean(dim=(2, 4, 6)).reshape(1, t * r * c, hidden.shape[-1])))


def load_vgg16(folder: Path, dtype: torch.dtype) -> Vgg16:
    """From what `weights.write_vision` wrote; so the next two."""
    network = Vgg16()
    network.load_state_dict(load_file(folder / VGG_FILE))
    return network.to(dtype).eval()


def load_encoder(folder: Path, spec: EncoderSpec, dtype: torch.dtype) -> VideoEncoder:
    vjepa2 = VJEPA2Model.from_pretrained(folder / ENCODER_FOLDER, dtype=dtype)
    return VideoEncoder(vjepa2, _projector(folder), spec).to(dtype).eval()


def load_decoder(folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """From what `weights.write_decoder` wrote, a GGUF's own rotary factors put in."""
    model = LlamaForCausalLM.from_pretrained(folder / DECODER_FOLDER, dtype=dtype)
    model.train(False)
    if (folder / DECODER_FOLDER / ROPE_FILE).exists():
        factors = torch.tensor(np.load(folder / DECODER_FOLDER / ROPE_FILE))
        rotary = cast(Any, model.model.rotary_emb)
        rotary.inv_freq = rotary.inv_freq / factors
        rotary.original_inv_freq = rotary.inv_freq
    return model


def _projector(folder: Path) -> nn.Module:
    tensors = load_file(folder / PROJECTOR_FILE)
    (hidden, width_in), width_out = tensors["fc1.weight"].shape, tensors["fc2.weight"].shape[0]
    parts: list[nn.Module] = [nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out)]
    names = {"fc1": "0", "fc2": "2"}
    if "norm.weight" in tensors:
        parts.append(nn.LayerNorm(width_out, eps=NORM_EPSILON))
        names["norm"] = "3"
    network = nn.Sequential(*parts)
    network.load_state_dict({f"{names[n.partition('.')[0]]}.{n.partition('.')[2]}": t for n, t in tensors.items()})
    return network


def compiled(network: nn.Module) -> Callable[..., Any]:
    """The network through `torch.compile`."""
    return torch.compile(network)
