"""What each quantization costs a decoder: its next-token distributions against the float32 reference's.

    python -m svrt.exporter.quality --recipe pocket
    python -m svrt.exporter.quality --decoder PATH [--adapter PATH] [--quant f16 q4_k_m] [--tokens 128] [--json]

The LoRA is merged into a float16 GGUF in a temporary folder (`TMPDIR` moves it), that file is quantized, and llama.cpp
reads the same text from each as the reference does. A table, or JSON, goes to stdout, progress to stderr.

Measures: Kullback-Leibler divergence, reference to quantized, as llama.cpp's `llama-perplexity --kl-divergence` has it
(but at every position, not at those of the second half alone), and how often both put the same token first.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..errors import DecoderError, RecipeError, SvrtError
from ..models.gguf_reader import GgufReader
from ..runtime.decoder import model_parameters, silence
from ..runtime.processors import usable_processors
from .decoder import write_merged_gguf
from .quantize import QUANTIZATIONS, quantize
from .recipe import read_recipe
from .reference_llama import ReferenceLlama

# Tokens that llama.cpp reads at once; it also holds their logits: 33 MB with LLaMA 3's vocabulary.
_BATCH = 64

# Of our own words, so that no test set is consulted: descriptions of the kind a sports-video model gives.
PASSAGE = """\
The clip begins with a guard in white at the top of the key. She dribbles twice to her left, stops behind a screen at \
the elbow and rises for a jump shot from about eighteen feet. The ball leaves her hand early, climbs over the \
outstretched arm of the defender, touches the back of the rim, bounces once on the front of it and drops through the \
net. Two team-mates were free in the right corner, but she never looked at them. The score is now 47 to 44 with a \
little more than three minutes left in the third quarter.
A missed free throw starts the next sequence. The rebound is tipped by two players under the basket and falls to a \
forward in blue, who turns, sees the open floor and passes long to the left wing. The winger needs three dribbles to \
reach the paint, slows down to let the last defender slide past, and lays the ball gently against the glass. It rolls \
around the rim and out. The trailing centre catches it with both hands and dunks before anyone else has jumped.
In the second clip we are on a football pitch in heavy rain. The midfielder receives the ball with his back to the \
goal, lets it run across his body and plays it first time into the space behind the full back. The winger gets there a \
step before the goalkeeper, but his cross is blocked at the near post and goes out for a corner. Nobody appeals. The \
corner is short, the return pass is poor, and the counter-attack that follows ends with a foul on the halfway line and \
a yellow card.
The tennis rally lasts fourteen strokes. After a wide serve from the advantage court the server stays behind the \
baseline and changes direction only once, with a backhand down the line that lands a hand's width inside. Her opponent \
slides, reaches it with one hand and floats a slice back to the middle. The next forehand is struck flat and hard to \
the open corner: it raises a little chalk, and the umpire calls the score, forty to thirty.
On the short track the skater in third place waits until the final bend. He moves up on the outside, finds no room, \
drops behind again and passes on the inside as the leader drifts wide. They cross the line together; the photograph \
gives him the race by two hundredths of a second. A volleyball clip follows. The setter takes a difficult first pass \
on the run, jumps, and pushes the ball backwards to the right side, where the block is late. The spike hits the hands \
of the defender and flies into the stands.
Camera four hangs above the hoop and sees nothing but the rim, the net and the board. A shot arrives from the right, \
high and soft. It strikes the board above the square, comes down on the near side of the rim, wobbles, and falls off \
to the left: a miss. The second attempt arrives from straight ahead and touches nothing but the net. The third is too \
long; it hits the back of the rim and bounces high out of the picture, and when it comes back it drops through the \
basket, to the surprise of the shooter, who has already turned away.
What happened in the last clip? The goalkeeper came out to punch the ball, missed it, and collided with her own \
defender; the ball fell to the striker, who had the whole goal in front of her and hit the post. Which team made the \
mistake? The team in green. How many players touched the ball? Four, if one counts the goalkeeper. Why was there no \
second shot? The referee had stopped the play because a player was lying on the ground, and the match was continued \
with a dropped ball after a pause of almost two minutes.
"""


@dataclass(frozen=True)
class Quality:
    """One row of the table. Divergences are in nats over the positions of the text; `top_1` is a share of them."""

    quantization: str
    bytes: int
    bits_per_weight: float  # of all tensors, norms included; metadata is not counted
    mean_kl: float
    p99_kl: float
    top_1: float


def divergences(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(reference ‖ found) of each row of logits [n, vocabulary]: float64 [n], nats."""
    return np.array([_divergence(r, f) for r, f in zip(reference, found, strict=True)])


def _divergence(reference: np.ndarray, found: np.ndarray) -> float:
    p, q = _log_softmax(reference), _log_softmax(found)
    return float(np.sum(np.exp(p) * (p - q)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def llama_cpp_logits(file: Path, tokens: list[int]) -> np.ndarray:
    """llama.cpp's logits behind every token, on the CPU: float32 [n, vocabulary].

    Raises `DecoderError` where it cannot load the file.
    """
    import llama_cpp

    llama_cpp.llama_backend_init()
    silence(llama_cpp)
    parameters = model_parameters(llama_cpp)
    parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(file), parameters)
    if not model:
        raise DecoderError(f"{file}: llama.cpp cannot load it")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = len(tokens), _BATCH, _BATCH
    settings.n_threads = settings.n_threads_batch = usable_processors()
    context = llama_cpp.llama_init_from_model(model, settings)
    try:
        if not context:
            raise DecoderError(f"{file}: no room for a context of {len(tokens)} tokens")
        parts = range(0, len(tokens), _BATCH)
        return np.concatenate([_read(llama_cpp, context, tokens[start : start + _BATCH], file) for start in parts])
    finally:
        if context:
            llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def _read(lib: ModuleType, context: Any, tokens: list[int], file: Path) -> np.ndarray:
    """Logits behind each of the next tokens of `context`: float32 [n, vocabulary]."""
    ids, wanted = (lib.llama_token * len(tokens))(*tokens), (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
    batch = lib.llama_batch_get_one(ids, len(tokens))  # it points to both, and owns neither
    batch.logits = wanted
    status = lib.llama_decode(context, batch)
    if status:
        raise DecoderError(f"{file}: llama.cpp failed to decode (status {status})")
    width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(lib.llama_get_model(context)))
    return np.array(np.ctypeslib.as_array(lib.llama_get_logits(context), (len(tokens), width)), np.float32)


def tokenize(file: Path, text: str) -> list[int]:
    """Token ids of `text`, special tokens parsed, with the bos token first where the model has one."""
    import llama_cpp

    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    try:
        tokens: list[int] = model.tokenize(text.encode(), add_bos=True, special=True)
        # A prompt that spells bos out must not get a second one.
        return tokens[1:] if tokens[:2] == [model.token_bos()] * 2 else tokens
    finally:
        model.close()


def bits_per_weight(file: Path) -> float:
    """Bits of all tensors over their elements."""
    tensors = GgufReader(file).tensors
    return 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)


def measure(
    source: Path, adapter: Path | None, prompt: str, quantizations: list[str], limit: int
) -> tuple[list[Quality], int]:
    """The rows of the table, and the number of positions they are means of, at most `limit`.

    The text is `prompt` and `PASSAGE` behind it. Raises `SvrtError` where the decoder cannot be read, merged or run.
    """
    with tempfile.TemporaryDirectory(prefix="svrt-quality-") as folder:
        f16 = Path(folder) / "f16.gguf"
        write_merged_gguf(source, adapter, f16, progress=lambda done, total: _show("merge", done, total))
        tokens = tokenize(f16, prompt + PASSAGE)[:limit]
        llama = ReferenceLlama(source, adapter)
        (expected,) = llama.logits([llama.embed(tokens)], progress=lambda done, total: _show("reference", done, total))
        rows = []
        for quantization in quantizations:
            _show(quantization, 0, 1)
            file = f16 if quantization == "f16" else Path(folder) / "quantized.gguf"
            if file != f16:
                quantize(f16, file, quantization)
            rows.append(_row(quantization, file, tokens, expected))
            _show(quantization, 1, 1)
    return rows, len(tokens)


def _row(quantization: str, file: Path, tokens: list[int], expected: np.ndarray) -> Quality:
    found = llama_cpp_logits(file, tokens)
    kl = divergences(expected, found)
    return Quality(
        quantization=quantization,
        bytes=file.stat().st_size,
        bits_per_weight=round(bits_per_weight(file), 2),
        mean_kl=float(f"{kl.mean():.3g}"),
        p99_kl=float(f"{np.percentile(kl, 99):.3g}"),
        top_1=round(float(np.mean(expected.argmax(axis=1) == found.argmax(axis=1))), 4),
    )


def _show(stage: str, done: int, total: int) -> None:
    """Progress on stderr: a line that counts on a terminal, a line per finished stage elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{stage}: {100 * done // max(total, 1)} %", end="\n" if done >= total else "", file=sys.stderr)
    elif done >= total:
        print(f"{stage}: done", file=sys.stderr)


def table(rows: list[Quality]) -> Table:
    """The rows for a terminal."""
    result = Table(box=None, pad_edge=False)
    result.add_column("quantization")
    for heading in ("MB", "bits/weight", "mean KL", "99 % KL", "same first token"):
        result.add_column(heading, justify="right")
    for row in rows:
        size, agreement = f"{row.bytes / 1e6:.1f}", f"{100 * row.top_1:.1f} %"
        kl = (f"{row.mean_kl:.2g}", f"{row.p99_kl:.2g}")
        result.add_row(row.quantization, size, f"{row.bits_per_weight:.1f}", *kl, agreement)
    return result


def _sources(arguments: argparse.Namespace) -> tuple[str, Path, Path | None, str]:
    """Name, base, adapter and prompt that the arguments ask for."""
    if arguments.decoder is not None:
        return arguments.decoder.name, arguments.decoder, arguments.adapter, ""
    if arguments.adapter is not None:
        raise RecipeError("--adapter goes with --decoder; a recipe names its own")
    recipe = read_recipe(arguments.recipe)
    found = recipe.find(lambda done, total: _show("download", done, total))
    if "decoder" not in found or (recipe.decoder.adapter and "adapter" not in found):
        raise RecipeError(f"{recipe.name}: its decoder has random weights; export it and give --decoder PATH")
    adapter = found["adapter"].path if "adapter" in found else None
    return recipe.name, found["decoder"].path, adapter, recipe.decoder.prefix + recipe.decoder.suffix


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m svrt.exporter.quality", description=(__doc__ or "").splitlines()[0]
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--recipe", default="pocket", help="a built-in recipe or a TOML file (default: pocket)")
    what.add_argument("--decoder", type=Path, help="a Hugging Face folder or a GGUF file, in place of a recipe's")
    parser.add_argument("--adapter", type=Path, help="a LoRA folder for --decoder")
    parser.add_argument("--quant", nargs="+", choices=list(QUANTIZATIONS), default=list(QUANTIZATIONS), metavar="NAME")
    parser.add_argument("--tokens", type=int, default=1024, metavar="N", help="read at most N tokens of the text")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    try:
        if arguments.tokens < 1:
            raise RecipeError(f"--tokens {arguments.tokens}: at least one token is needed")
        name, source, adapter, prompt = _sources(arguments)
        rows, count = measure(source, adapter, prompt, arguments.quant, arguments.tokens)
    except SvrtError as exc:
        print(f"svrt: error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    made_by = {"svrt": version("svrt"), "llama-cpp-python": version("llama-cpp-python"), "numpy": np.__version__}
    if arguments.json:
        print(json.dumps({"decoder": name, "tokens": count, "versions": made_by, "rows": [asdict(r) for r in rows]}))
        return
    console = Console(soft_wrap=True, highlight=False)
    versions = ", ".join(f"{key} {value}" for key, value in made_by.items())
    console.print(f"{name}: {count} tokens, against numpy float32; {versions}, {platform.machine()}\n")
    console.print(table(rows))


if __name__ == "__main__":
    main()
