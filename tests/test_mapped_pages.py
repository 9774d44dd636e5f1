"""Pages of a mapped file that are given back."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from svrt.exporter.decoder import quantize
from svrt.runtime import decoder as decoders
from svrt.runtime import mapped_pages
from svrt.runtime.decoder import Decoder
from svrt.runtime.mapped_pages import give_back

MIB = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel says what is mapped on Linux alone")


def resident(file: Path) -> int:
    """Bytes of `file` that count as this process's memory; smaps of proc(5)."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            ours = line.endswith(f" {file.resolve()}")
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_pages_that_were_looked_at_count_until_they_are_given_back(tmp_path: Path) -> None:
    one, other = tmp_path / "ein Wurf für drei", tmp_path / "ein"
    content = bytes(range(256)) * (4 * MIB // 256)
    for file in (one, other):
        file.write_bytes(content)
    with one.open("rb") as a, other.open("rb") as b:
        looked_at = [mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) for handle in (a, b)]
    assert all(pages[:] == content for pages in looked_at)
    assert [resident(one), resident(other)] == [4 * MIB, 4 * MIB]
    give_back(one)
    assert [resident(one), resident(other)] == [0, 4 * MIB]
    assert looked_at[0][:] == content


def test_what_was_written_to_a_mapping_of_ones_own_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(MIB))
    with file.open("rb") as handle:
        pages = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    pages[5] = 7
    give_back(file)
    assert pages[5] == 7


def test_where_the_kernel_does_not_say_what_is_mapped_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_pages, "_MAPS", tmp_path / "maps")
    give_back(tmp_path)


@pytest.fixture(scope="module")
def four_bits(smollm2_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M, quantized as llama.cpp rearranges it for a processor."""
    out = tmp_path_factory.mktemp("four") / "q4_0.gguf"
    quantize(smollm2_f16, out, "q4_0")
    return out


def new(gguf: Path, *, repacked: bool) -> Decoder:
    return Decoder(gguf, prefix="The ball", suffix=" is", max_tokens=8, video_tokens=4, repacked=repacked)


def test_a_decoder_whose_weights_are_arranged_anew_keeps_little_of_its_file_and_says_the_same(four_bits: Path) -> None:
    with new(four_bits, repacked=False) as plain:
        clip = np.random.default_rng(0).standard_normal((4, plain.width)).astype(np.float32)
        expected, whole = plain.prefill(clip), resident(four_bits)
    with new(four_bits, repacked=True) as decoder:
        np.testing.assert_array_equal(decoder.prefill(clip), expected)
        assert whole > 0.9 * four_bits.stat().st_size
        # What is left is the embedding, which is looked up in the file: 0.4 of this small model.
        assert resident(four_bits) < 0.5 * whole
        assert decoder.generate(clip).text


def test_ctrl_c_while_weights_are_arranged_is_not_lost(four_bits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def interrupted(gguf: Path) -> None:
        calls.append(gguf)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(decoders, "give_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new(four_bits, repacked=True)
    assert calls == [four_bits] * 3
    monkeypatch.undo()
    with new(four_bits, repacked=True) as decoder:
        assert decoder.generate(np.zeros((4, decoder.width), np.float32)).generated_tokens
