"""A byte-level BPE tokenizer, from Hugging Face's `tokenizer.json` to the metadata llama.cpp tokenizes with.

llama.cpp does not run the regular expressions of a `tokenizer.json`: it knows each pre-tokenizer by a name. A
tokenizer is therefore recognised exactly or refused, because a near match would silently tokenize otherwise.

Sources: the `tokenizers` serialisation format; GGUF specification, section "Tokenizer".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from ..errors import CheckpointError
from ..models.checkpoint import Checkpoint

# The split of LLaMA 3, as its tokenizer.json spells it.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>")
_END_OF_MESSAGE = "<|eom_id|>"


@dataclass(frozen=True)
class Tokenizer:
    """What GGUF says of a byte-level BPE tokenizer. Ids are None where the model has no such token."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int | None
    eos: int
    eot: int | None
    eom: int | None
    pad: int | None
    unknown: int | None
    add_bos: bool
    chat_template: str | None

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add the tokenizer's metadata to `writer`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for token, add in (
            (self.bos, writer.add_bos_token_id),
            (self.eos, writer.add_eos_token_id),
            (self.eot, writer.add_eot_token_id),
            (self.eom, writer.add_eom_token_id),
            (self.unknown, writer.add_unk_token_id),
            (self.pad, writer.add_pad_token_id),
        ):
            if token is not None:
                add(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_space_prefix(False)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_tokenizer(checkpoint: Checkpoint, config: Mapping[str, Any], size: int) -> Tokenizer:
    """The tokenizer beside a Hugging Face checkpoint, padded to the `size` rows of the model's embedding.

    Raises `CheckpointError` for a file that is missing, a tokenizer llama.cpp has no name for, or ids beyond `size`.
    """
    if not (checkpoint.folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{checkpoint.folder}: no tokenizer.json; svrt reads byte-level BPE tokenizers from it")
    where = checkpoint.folder / "tokenizer.json"
    rules = checkpoint.json("tokenizer.json")
    settings = checkpoint.json("tokenizer_config.json")
    optional = checkpoint.folder / "generation_config.json"
    generation = checkpoint.json(optional.name) if optional.is_file() else {}
    tokens, types = _tokens(rules, size, where)
    ids = {token: i for i, token in enumerate(tokens)}
    bos = _token_id(settings, config, "bos", ids, where)
    eos, eot, eom = _end_tokens(settings, config, generation, ids, where)
    return Tokenizer(
        pre=_pre_type(rules, where),
        tokens=tokens,
        types=types,
        merges=_merges(rules, where),
        bos=bos,
        eos=eos,
        eot=eot,
        eom=eom,
        pad=_token_id(settings, config, "pad", ids, where),
        unknown=_token_id(settings, config, "unk", ids, where),
        add_bos=_adds_bos(rules, settings, tokens, bos, where),
        chat_template=_chat_template(checkpoint.folder, settings),
    )


def _tokens(rules: Mapping[str, Any], size: int, where: Path) -> tuple[list[str], list[int]]:
    """Text and GGUF type of every id; ids nobody uses become `[PADn]`, so that each embedding row has a token."""
    model = rules.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{where}: model type {model.get('type')!r} is not supported; expected BPE with a vocab")
    by_id = {i: (text, gguf.TokenType.NORMAL) for text, i in model["vocab"].items()}
    for token in rules.get("added_tokens") or []:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise CheckpointError(
                f"{where}: added token {token['content']!r} strips or matches whole words: unsupported"
            )
        kind = gguf.TokenType.CONTROL if token.get("special") else gguf.TokenType.USER_DEFINED
        by_id[token["id"]] = (token["content"], kind)
    if not by_id or max(by_id) >= size:
        raise CheckpointError(f"{where}: token id {max(by_id, default=-1)} does not fit the embedding's {size} rows")
    rows = [by_id.get(i, (f"[PAD{i}]", gguf.TokenType.UNUSED)) for i in range(size)]
    return [text for text, _ in rows], [int(kind) for _, kind in rows]


def _merges(rules: Mapping[str, Any], where: Path) -> list[str]:
    """Merges as "a b", from that form or from pairs ["a", "b"]."""
    merges = rules["model"].get("merges") or []
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or any(" " in part for part in pair):
            raise CheckpointError(f"{where}: merge {pair!r} is not a pair of byte-level tokens")
    return [" ".join(pair) for pair in pairs]


def _pre_type(rules: Mapping[str, Any], where: Path) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises `CheckpointError` where it has none that splits identically."""
    model = rules["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise CheckpointError(f"{where}: BPE setting {key} = {model[key]!r} is not supported")
    if rules.get("normalizer"):
        raise CheckpointError(
            f"{where}: normalizer {rules['normalizer'].get('type')!r} is not supported; expected none"
        )
    steps = rules.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    found = " + ".join(_step(part) for part in parts)
    known = {
        f"Split({LLAMA3_SPLIT}) + ByteLevel": ("llama-bpe", True),
        "Digits + ByteLevel(regex)": ("smollm", False),
        "ByteLevel(regex)": ("gpt-2", False),
    }
    if found not in known:
        raise CheckpointError(f"{where}: unknown pre_tokenizer {found}; expected that of LLaMA 3, SmolLM2 or GPT-2")
    pre, ignores_merges = known[found]
    if bool(model.get("ignore_merges")) != ignores_merges:
        raise CheckpointError(
            f"{where}: llama.cpp's {pre} tokenizer has ignore_merges = {ignores_merges}, this one not"
        )
    return pre


def _step(part: Mapping[str, Any]) -> str:
    """One pre-tokenizer step in words, with exactly the settings that change how it splits."""
    kind = str(part.get("type"))
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return f"Split({(part.get('pattern') or {}).get('Regex')})"
    if kind == "Digits" and part.get("individual_digits"):
        return "Digits"
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return "ByteLevel(regex)" if part.get("use_regex", True) else "ByteLevel"
    return f"{kind} {dict(part)}"


def _content(value: Any) -> str | None:
    """Text of a special token, which is a string or an object with `content`."""
    return value.get("content") if isinstance(value, Mapping) else value


def _token_id(
    settings: Mapping[str, Any], config: Mapping[str, Any], kind: str, ids: Mapping[str, int], where: Path
) -> int | None:
    """Id of the `kind` token: by its text in tokenizer_config.json, else by its id in config.json."""
    text = _content(settings.get(f"{kind}_token"))
    if text is not None:
        if text not in ids:
            raise CheckpointError(
                f"{where}: the {kind} token {text!r} of tokenizer_config.json is not in the vocabulary"
            )
        return ids[text]
    number = config.get(f"{kind}_token_id")
    return number if isinstance(number, int) and 0 <= number < len(ids) else None


def _end_tokens(
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    ids: Mapping[str, int],
    where: Path,
) -> tuple[int, int | None, int | None]:
    """The tokens that end a generation: end of sequence, of turn and of message, as GGUF can name them."""
    listed: list[int] = []
    for file in (generation, config):
        value = file.get("eos_token_id")
        listed += value if isinstance(value, list) else [value] if isinstance(value, int) else []
    eos = _token_id(settings, {}, "eos", ids, where)
    if eos is None and not listed:
        raise CheckpointError(f"{where}: no eos token in tokenizer_config.json, generation_config.json or config.json")
    eos = listed[0] if eos is None else eos
    others = list(dict.fromkeys(i for i in listed if i != eos))
    turns = [ids[text] for text in _END_OF_TURN if text in ids and ids[text] != eos]
    message = ids.get(_END_OF_MESSAGE)
    eot = next(iter([i for i in turns if i in others] + [i for i in others if i != message] + turns), None)
    rest = [i for i in others if i != eot]
    if len(rest) > 1 or any(not 0 <= i < len(ids) for i in [eos, *others]):
        raise CheckpointError(
            f"{where}: end tokens {[eos, *others]} cannot be written; GGUF has room for three known ones"
        )
    return eos, eot, next(iter(rest), None)


def _adds_bos(
    rules: Mapping[str, Any], settings: Mapping[str, Any], tokens: list[str], bos: int | None, where: Path
) -> bool:
    """Whether text is to begin with the bos token: as the post-processor's template says, else the configuration."""
    processor = rules.get("post_processor") or {}
    steps = processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]
    template = next((step for step in steps if step.get("type") == "TemplateProcessing"), None)
    if template is None:
        return bool(settings.get("add_bos_token")) and bos is not None
    specials = [piece["SpecialToken"]["id"] for piece in template["single"] if "SpecialToken" in piece]
    if not specials:
        return False
    if bos is None or specials != [tokens[bos]] or "SpecialToken" not in template["single"][0]:
        raise CheckpointError(f"{where}: the post_processor adds {specials}; only a leading bos token is supported")
    return True


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The Jinja chat template: beside the tokenizer, in its configuration, or the one named `default` there."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    given = settings.get("chat_template")
    if isinstance(given, list):
        return next((entry.get("template") for entry in given if entry.get("name") == "default"), None)
    return given
