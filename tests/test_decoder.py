"""Claims about the decoder at run time: prompt, video tokens, greedy text, what it refuses and what it survives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from small_llama import llama_logits, llama_tokens, make_llama
from svrt.errors import DecoderError
from svrt.exporter.decoder import write_merged_gguf
from svrt.runtime import decoder as decoding
from svrt.runtime.decoder import Decoder, _highest
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

PREFIX, SUFFIX = "<|start_header_id|>user<|end_header_id|>\n\nThe guard", " shoots.<|eot_id|>The"
CLIP_TOKENS = 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_llama(folder)
    return folder


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "small.gguf"
    write_merged_gguf(base, None, out, name="small")
    return out


@pytest.fixture(scope="module")
def embedding(model: Path) -> np.ndarray:
    """The model's own token embedding, float32 [vocabulary, width]."""
    table = next(tensor for tensor in gguf.GGUFReader(model).tensors if tensor.name == "token_embd.weight")
    return np.array(table.data, np.float32)


def new(model: Path, **changes: Any) -> Decoder:
    settings: dict[str, Any] = {"prefix": PREFIX, "suffix": SUFFIX, "max_tokens": 48, "video_tokens": CLIP_TOKENS}
    return Decoder(model, **{**settings, "threads": 1, **changes})


@pytest.fixture
def decoder(model: Path) -> Iterator[Decoder]:
    with new(model) as made:
        yield made


@pytest.fixture
def clip(embedding: np.ndarray) -> np.ndarray:
    """Video tokens that are no token's embedding, float32 [40, width]."""
    rows = np.random.default_rng(0).standard_normal((CLIP_TOKENS, embedding.shape[1]))
    return (rows * embedding.std()).astype(np.float32)


@pytest.fixture
def other_clip(clip: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(clip[::-1])


def test_embeddings_of_tokens_give_the_logits_of_the_tokens(
    model: Path, decoder: Decoder, embedding: np.ndarray
) -> None:
    clip = np.random.default_rng(1).integers(0, 480, CLIP_TOKENS)
    prefix, suffix = llama_tokens(model, [PREFIX])[0], llama_tokens(model, [SUFFIX])[0]
    prefix.insert(0, 480)  # the model's metadata asks for <|begin_of_text|>
    tokens = [*prefix, *clip, *suffix]
    expected = llama_logits(model, tokens, [len(prefix), len(clip), len(suffix)])[-1]
    np.testing.assert_allclose(decoder.prefill(embedding[clip]), expected, atol=1e-3)  # of a range of about ±5


def test_text_and_counts_are_those_of_greedy_decoding_by_transformers(
    base: Path, model: Path, decoder: Decoder, embedding: np.ndarray
) -> None:
    clip = np.random.default_rng(2).integers(0, 480, CLIP_TOKENS)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    prefix, suffix = tokenizer.encode(PREFIX).ids, tokenizer.encode(SUFFIX, add_special_tokens=False).ids
    oracle = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    prompt = torch.tensor([[*prefix, *clip, *suffix]])
    with torch.inference_mode():
        tokens = oracle.generate(input_ids=prompt, max_new_tokens=48, do_sample=False, eos_token_id=[481, 484])
    new_tokens = tokens[0, prompt.shape[1] :].tolist()
    assert len(new_tokens) == 48 and len(set(new_tokens)) > 10
    generation = decoder.generate(embedding[clip])
    assert generation.text == tokenizer.decode(new_tokens, skip_special_tokens=True)
    assert generation.generated_tokens == 48
    assert generation.prompt_tokens == len(prefix) + len(suffix)
    assert generation.video_tokens == CLIP_TOKENS
    assert generation.prefill_ms > 0 and generation.generate_ms > 0


def test_a_kept_prefix_gives_the_logits_of_a_fresh_context(
    model: Path, decoder: Decoder, clip: np.ndarray, other_clip: np.ndarray
) -> None:
    first, text = decoder.prefill(other_clip), decoder.generate(other_clip).text
    decoder.generate(clip)  # leaves a longer sequence in the cache
    with new(model) as fresh:
        np.testing.assert_array_equal(decoder.prefill(other_clip), fresh.prefill(other_clip))
        assert fresh.generate(other_clip).text == text
        assert not np.array_equal(first, fresh.prefill(clip))  # clips matter


@pytest.mark.parametrize(("says", "rearranged"), [(b"AVX512 = 1 | AMX_INT8 = 1 | ", False), (b"AVX512 = 1 | ", True)])
def test_weights_are_not_rearranged_where_llama_cpp_would_use_amx(
    model: Path, monkeypatch: pytest.MonkeyPatch, says: bytes, rearranged: bool
) -> None:
    seen, load = [], llama_cpp.llama_cpp.llama_model_load_from_file
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_print_system_info", lambda: says)
    monkeypatch.setattr(
        llama_cpp.llama_cpp,
        "llama_model_load_from_file",
        lambda path, parameters: seen.append(parameters.use_extra_bufts) or load(path, parameters),
    )
    new(model).close()
    assert seen == [rearranged]


def test_the_prefix_is_decoded_once(decoder: Decoder, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = llama_cpp.llama_cpp.llama_decode
    monkeypatch.setattr(
        llama_cpp.llama_cpp,
        "llama_decode",
        lambda context, batch: decoded.append(batch.n_tokens) or decode(context, batch),
    )
    generation = decoder.generate(clip, max_tokens=1)
    assert sum(decoded) < generation.prompt_tokens + CLIP_TOKENS
    assert decoded[0] == CLIP_TOKENS


def test_only_the_prompts_last_token_and_those_of_the_text_have_logits(
    model: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are a product with the whole vocabulary; of a prefix that is kept nobody reads them."""
    wanted: list[list[int]] = []
    decode = llama_cpp.llama_cpp.llama_decode
    monkeypatch.setattr(
        llama_cpp.llama_cpp,
        "llama_decode",
        lambda context, batch: wanted.append(list(batch.logits[: batch.n_tokens])) or decode(context, batch),
    )
    with new(model) as decoder:
        assert len(wanted) == 1 and not any(wanted[0])
        generated = decoder.generate(clip, max_tokens=4).generated_tokens
    _, video, suffix, *text = wanted
    assert len(video) == CLIP_TOKENS and not any(video)  # in one go
    assert suffix == [0] * (len(suffix) - 1) + [1]
    assert text == [[1]] * (generated - 1)


def test_text_does_not_depend_on_threads_for_prefill(model: Path, decoder: Decoder, clip: np.ndarray) -> None:
    with new(model, threads=1, prefill_threads=2) as mixed, new(model, threads=2, prefill_threads=1) as other:
        assert mixed.generate(clip).text == other.generate(clip).text == decoder.generate(clip).text


@pytest.mark.parametrize("n_batch", [1, 7, 39])
def test_small_batches_give_the_same_text(model: Path, decoder: Decoder, clip: np.ndarray, n_batch: int) -> None:
    with new(model, n_batch=n_batch) as chunked:
        assert chunked.generate(clip).text == decoder.generate(clip).text
        np.testing.assert_allclose(chunked.prefill(clip), decoder.prefill(clip), atol=0.02)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_does_not_change_the_text(
    model: Path, decoder: Decoder, clip: np.ndarray, threads: int
) -> None:
    with new(model, threads=threads) as threaded:
        assert threaded.generate(clip).text == decoder.generate(clip).text


def test_a_strided_clip_is_read_as_its_values(decoder: Decoder, clip: np.ndarray) -> None:
    strided = np.asfortranarray(clip)
    assert not strided.flags.c_contiguous
    assert decoder.generate(strided).text == decoder.generate(clip).text


def test_of_equal_logits_the_lowest_id_wins() -> None:
    assert _highest(np.array([1.0, 3.0, 2.0, 3.0], np.float32)) == 1


def test_streamed_pieces_are_whole_characters_and_join_to_the_text(smollm2: Path) -> None:
    """A byte-level tokenizer spreads one emoji over several tokens; a screen must never see half of it."""
    table = next(tensor for tensor in gguf.GGUFReader(smollm2).tensors if tensor.name == "token_embd.weight")
    asked = llama_tokens(smollm2, ["Repeat exactly, nothing else: 🏀 ☕ 東京 🏀 ☕ 東京 🏀 ☕ 東京"])[0]
    clip = gguf.dequantize(table.data[asked], table.tensor_type)
    pieces: list[str] = []
    with Decoder(
        smollm2,
        prefix="<|im_start|>user\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n🏀 ☕ 東京 🏀 ☕",
        max_tokens=24,
        video_tokens=len(clip),
        threads=1,
    ) as decoder:
        generation = decoder.generate(clip, on_text=pieces.append)
    assert "".join(pieces) == generation.text and all(pieces)
    assert "東" in generation.text and "�" not in generation.text
    assert len(pieces) < generation.generated_tokens  # some tokens only completed a character


def test_the_end_of_turn_stops_and_is_not_text(smollm2: Path) -> None:
    table = next(tensor for tensor in gguf.GGUFReader(smollm2).tensors if tensor.name == "token_embd.weight")
    asked = llama_tokens(smollm2, ["What is the capital of France? Answer in one word."])[0]
    with Decoder(
        smollm2,
        prefix="<|im_start|>user\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        max_tokens=96,
        video_tokens=len(asked),
        threads=1,
    ) as decoder:
        generation = decoder.generate(gguf.dequantize(table.data[asked], table.tensor_type))
        limited = decoder.generate(gguf.dequantize(table.data[asked], table.tensor_type), max_tokens=2)
    assert "Paris" in generation.text and "<|" not in generation.text
    assert 2 < generation.generated_tokens < 96
    assert limited.generated_tokens == 2 and generation.text.startswith(limited.text)


def test_bos_comes_only_where_the_metadata_asks_for_it_and_once(model: Path, smollm2: Path) -> None:
    def prompt(path: Path, prefix: str) -> int:
        with Decoder(path, prefix=prefix, suffix="", max_tokens=1, video_tokens=1, threads=1) as decoder:
            return decoder.generate(np.zeros((1, decoder.width), np.float32) + 0.1).prompt_tokens

    plain = len(llama_tokens(model, ["shot"])[0])
    assert prompt(model, "shot") == prompt(model, "<|begin_of_text|>shot") == plain + 1
    assert prompt(model, "") == 1
    assert prompt(smollm2, "") == 0
    assert prompt(smollm2, "shot") == len(llama_tokens(smollm2, ["shot"])[0])


def test_a_context_filled_to_the_last_position_works(model: Path, clip: np.ndarray) -> None:
    with new(model) as probe:
        prompt = probe.generate(clip, max_tokens=1).prompt_tokens
    # llama.cpp rounds contexts up to multiples of 256 and the last token is never decoded: 257 leave no slack.
    room = 258 - prompt - CLIP_TOKENS
    with new(model, max_tokens=room) as exact:
        assert exact.generate(clip).generated_tokens == room


def test_an_empty_suffix_takes_the_logits_of_the_last_video_token(model: Path, embedding: np.ndarray) -> None:
    with new(model, prefix="", suffix="") as decoder:
        found = decoder.prefill(embedding[5:15])
    np.testing.assert_allclose(found, llama_logits(model, [480, *range(5, 15)], [1, 10])[-1], atol=1e-3)


REFUSED: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "too narrow": (lambda clip: clip[:, :-1].copy(), r"shape \[40, 255\]; small\.gguf takes \[n, 256\]"),
    "one-dimensional": (lambda clip: clip[0], r"shape \[256\]"),
    "float64": (lambda clip: clip.astype(np.float64), "float64; expected a float32 array"),
    "float16": (lambda clip: clip.astype(np.float16), "float16; expected a float32 array"),
    "a list": (lambda clip: clip.tolist(), "list; expected a float32 array"),
    "nan": (lambda clip: np.where(np.arange(256) == 9, np.float32("nan"), clip), "values that are not finite"),
    "infinite": (lambda clip: np.where(np.arange(256) == 9, np.float32("inf"), clip), "values that are not finite"),
    "none": (lambda clip: clip[:0], "0 video tokens; the decoder was made for 1 to 40"),
    "too many": (lambda clip: np.concatenate([clip, clip[:1]]), "41 video tokens; the decoder was made for 1 to 40"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_video_tokens_that_would_abort_llama_cpp_are_refused(decoder: Decoder, clip: np.ndarray, kind: str) -> None:
    spoil, message = REFUSED[kind]
    text = decoder.generate(clip).text
    with pytest.raises(DecoderError, match=message):
        decoder.generate(spoil(clip))
    assert decoder.generate(clip).text == text


def test_limits_outside_the_decoders_are_refused(model: Path, decoder: Decoder, clip: np.ndarray) -> None:
    for limit in (0, -1, 49):
        with pytest.raises(DecoderError, match=f"max_tokens {limit} is outside 1 to 48"):
            decoder.generate(clip, max_tokens=limit)
    for changes in ({"threads": 0}, {"prefill_threads": 0}, {"max_tokens": 0}, {"n_batch": 0}, {"video_tokens": 0}):
        with pytest.raises(DecoderError, match="must be at least 1"):
            new(model, **changes)
    with pytest.raises(DecoderError, match=r"small\.gguf: .* need \d+ positions; the model has 4096"):
        new(model, video_tokens=4096)


def test_logits_that_are_not_finite_are_an_error_and_not_a_text(model: Path, clip: np.ndarray, tmp_path: Path) -> None:
    damaged = Path(shutil.copy(model, tmp_path / "damaged.gguf"))
    norm = next(tensor for tensor in gguf.GGUFReader(damaged, "r+").tensors if tensor.name == "output_norm.weight")
    norm.data[7] = np.nan
    with new(damaged) as decoder, pytest.raises(DecoderError, match="logits are not finite"):
        decoder.generate(clip)


def test_files_llama_cpp_cannot_load_are_told_in_its_words(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.gguf").write_bytes(whole[:1000])
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_text("this is a sentence, not a model")
    for name, message in {
        "half.gguf": r"cannot load it: tensor '.*' data is not within the file bounds",
        "header.gguf": "cannot load it: failed to read key-value pairs",
        "empty.gguf": "cannot load it: failed to read magic",
        "text.gguf": "cannot load it: invalid magic characters: 'this'",
        "absent.gguf": "no such GGUF file",
        ".": "no such GGUF file",
    }.items():
        with pytest.raises(DecoderError, match=f"^{tmp_path / name}: .*{message}") as caught:
            new(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_a_failed_decode_leaves_the_decoder_usable(
    decoder: Decoder, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    expected, decode = decoder.generate(clip), llama_cpp.llama_cpp.llama_decode
    sizes: list[int] = []

    def failing(context: Any, batch: Any) -> int:
        sizes.append(batch.n_tokens)
        status: int = 1 if len(sizes) == fails_at else decode(context, batch)
        return status

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_decode", failing)
    with pytest.raises(DecoderError, match=r"small\.gguf: llama\.cpp failed to decode \(status 1\)"):
        decoder.generate(clip)
    sizes[:] = [0] * fails_at
    assert expected.text.startswith(decoder.generate(clip, max_tokens=1).text)
    assert sum(sizes) == expected.prompt_tokens + CLIP_TOKENS  # nothing of the failed sequence was kept
    assert decoder.generate(clip).text == expected.text


def test_ctrl_c_leaves_the_decoder_usable(decoder: Decoder, clip: np.ndarray) -> None:
    text = decoder.generate(clip).text

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            decoder.generate(clip, on_text=interrupt)
    assert decoder.generate(clip).text == text


def test_a_closed_decoder_says_so(model: Path, clip: np.ndarray) -> None:
    with new(model) as decoder:
        decoder.generate(clip, max_tokens=1)
    decoder.close()
    with pytest.raises(DecoderError, match="the decoder is closed"):
        decoder.generate(clip)


def test_a_decoder_describes_itself(decoder: Decoder) -> None:
    assert decoder.width == 256
    assert decoder.name == "small F16"
    assert decoder.backend.startswith("llama.cpp ")


def test_llama_cpp_is_silent(model: Path, clip: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    with new(model) as decoder:
        decoder.generate(clip)
    with pytest.raises(DecoderError):
        new(model.parent / "absent.gguf")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def run(program: str, model: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program with a decoder in a process of its own."""
    header = """if True:
        import os, sys
        from pathlib import Path
        import numpy as np
        from svrt.runtime.decoder import Decoder
        with Decoder(Path(sys.argv[1]), prefix="a", suffix="b", video_tokens=2, threads=1) as decoder:
            decoder.generate(np.ones((2, decoder.width), np.float32), max_tokens=2)
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", header + program, model],
        capture_output=True,
        text=True,
        check=True,
        env={**inherited, **environment},
    )


def test_waiting_threads_give_way_to_other_programs_and_the_environment_is_left_alone(model: Path) -> None:
    program = """
        print('GOMP_SPINCOUNT' in os.environ)
    """
    shown = run(program, model, OMP_DISPLAY_ENV="VERBOSE")
    assert shown.stdout == "False\n"
    if "OPENMP DISPLAY ENVIRONMENT BEGIN" in shown.stderr:  # llama.cpp was built with GNU OpenMP
        assert "GOMP_SPINCOUNT = '1000'" in shown.stderr
        chosen = run(program, model, OMP_DISPLAY_ENV="VERBOSE", GOMP_SPINCOUNT="77")
        assert chosen.stdout == "True\n" and "GOMP_SPINCOUNT = '77'" in chosen.stderr


def test_opening_and_closing_gives_memory_back(model: Path, clip: np.ndarray) -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    def use() -> None:
        with new(model, max_tokens=1000) as decoder:
            decoder.generate(clip, max_tokens=2)

    for _ in range(3):
        use()
    before = resident_mb()
    for _ in range(20):
        use()
    assert resident_mb() - before < 10


def test_the_runtime_imports_nothing_of_the_exporter(model: Path) -> None:
    program = """
        heavy = {"torch", "transformers", "onnx", "gguf", "sklearn", "peft", "safetensors"}
        print(sorted((heavy | {"svrt.exporter", "svrt.models"}) & set(sys.modules)))
    """
    found = run(program, model)
    assert found.stdout.strip() == "[]" and found.stderr == ""


def test_only_the_bindings_are_imported_and_the_package_stays_importable(model: Path) -> None:
    program = """
        before = sorted(name for name in sys.modules if name.partition(".")[0] in ("llama_cpp", "jinja2", "diskcache"))
        import llama_cpp
        print(before, llama_cpp.Llama.__name__, llama_cpp.llama_cpp.llama_decode is not None)
        with Decoder(Path(sys.argv[1]), prefix="a", suffix="b", video_tokens=2, threads=1) as decoder:
            decoder.generate(np.ones((2, decoder.width), np.float32), max_tokens=2)
    """
    found = run(program, model)
    assert found.stdout.strip() == "[] Llama True" and found.stderr == ""


def test_confidence_is_the_softmax_over_the_answers_alone(model: Path, embedding: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    clips = [embedding[rng.integers(0, 400, CLIP_TOKENS)] for _ in range(12)]
    with new(model) as plain:
        logits = [plain.prefill(clip).astype(np.float64) for clip in clips]
        assert plain.generate(clips[0], max_tokens=1).confidence is None
        begins = [int(np.argmax(row)) for row in logits]
        words = [plain._piece(token).decode(errors="replace") for token in dict.fromkeys(begins)]
    words = [word for word, ids in zip(words, llama_tokens(model, words), strict=True) if ids and ids[0] in begins][:3]
    tokens = [ids[0] for ids in llama_tokens(model, words)]
    assert len(tokens) >= 2
    with new(model, answers=words, temperature=1.7) as decoder:
        for clip, row, token in zip(clips, logits, begins, strict=True):
            found = decoder.generate(clip, max_tokens=4).confidence  # the text goes on: only its first token counts
            shares = np.exp(row[tokens] / 1.7) / np.exp(row[tokens] / 1.7).sum()
            assert found == (pytest.approx(shares.max(), rel=1e-6) if token in tokens else None)


def test_answers_that_cannot_be_told_apart_are_refused(model: Path) -> None:
    with pytest.raises(DecoderError, match="The guard, The centre begin with the same token"):
        new(model, answers=["The guard", "The centre"])


def test_two_threads_that_load_the_library_do_so_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each puts a variable into the environment, and a package into `sys.modules`, and takes it away again."""
    bindings, inside, most = decoding._bindings, [], []

    def watched() -> Any:
        inside.append(1)
        time.sleep(0.05)
        most.append(len(inside))
        inside.pop()
        return bindings()

    monkeypatch.setattr(decoding, "_bindings", watched)
    for name in decoding._SPIN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with ThreadPoolExecutor(2) as pool:
        assert len({id(made.result()) for made in [pool.submit(decoding._library) for _ in range(2)]}) == 1
    assert most == [1, 1]
