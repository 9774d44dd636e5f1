"""Claims about `svrt inspect`: everything the manifest says is there, for people and for programs."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from svrt.bundle import (
    DECODER,
    ENCODER,
    MANIFEST,
    SCHEMA,
    VGG16,
    DecoderSpec,
    EncoderSpec,
    EngineRecord,
    FileRecord,
    Manifest,
    Parity,
    SamplerSpec,
    Source,
    TensorSpec,
    sha256_of,
    write_manifest,
)
from svrt.errors import BundleError
from svrt.inspection import inspect, show

ENGINE = "engines/encoder-1a2b3c4d5e6f.engine"
SIZES = {VGG16: 3_400_000, ENCODER: 1_200, f"{ENCODER}.data": 7_654_321, DECODER: 5_000_000, ENGINE: 2_000_000}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose files have sizes and no content: inspecting reads none of it."""
    folder = tmp_path / "court"
    files = {}
    for number, (name, size) in enumerate(SIZES.items()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as handle:
            handle.truncate(size)
        files[name] = FileRecord(size, f"{number}" * 64, "q4_k_m" if name == DECODER else "fp16")
    ends = [TensorSpec("images", ["batch", 3, 96, 96], "float32")], [TensorSpec("features", ["batch", 512], "float32")]
    files[VGG16] = FileRecord(SIZES[VGG16], "0" * 64, "fp16", *ends)
    norm = {"scale": 255.0, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    manifest = Manifest(
        schema=SCHEMA,
        name="court",
        svrt="0.1.0",
        sampler=SamplerSpec(16, 64, "haar", 2, 96, "bgr", **norm),
        encoder=EncoderSpec(16, 256, "crop", 292, [8, 4, 4], **norm),
        decoder=DecoderSpec("[bold]<|user|>\n", "\nWhat happened?", 96, 3072),
        files=files,
        provenance={
            "encoder": Source("facebook/vjepa2-vitl-fpc64-256", "0123456789abcdef0123", "a" * 64),
            "decoder": Source("weights/a-rather-long-name-of-a-folder-that-holds-the-decoder", None, "b" * 64),
        },
        parity={ENCODER: Parity(2.5e-3, 0.99998765, "numpy float32", "sample clip and noise")},
        engines={ENGINE: EngineRecord(ENCODER, "tensorrt-rtx", "1.7.1", "8.6", "RTX A4000", "c" * 64)},
    )
    write_manifest(folder, manifest)
    return folder


def printed(folder: Path) -> str:
    out = StringIO()
    show(inspect(folder), Console(file=out, width=80, highlight=False))
    return out.getvalue()


def test_the_json_is_the_whole_manifest_and_its_hash(bundle: Path) -> None:
    found = json.loads(json.dumps(inspect(bundle).to_json()))
    assert found["manifest"] == json.loads((bundle / MANIFEST).read_text())
    assert found["sha256"] == sha256_of(bundle / MANIFEST)
    assert found["total_bytes"] == sum(SIZES.values())
    assert (found["path"], found["checked"]) == (str(bundle), "sizes")


def test_a_person_sees_files_precision_parity_provenance_and_engines(bundle: Path) -> None:
    words = printed(bundle).split()
    for word in (
        *("court", "svrt", "0.1.0;", "18.1", "MB"),  # the sum of all files
        *(VGG16, "fp16", "3.4", DECODER, "q4_k_m", "5.0", "7.7"),
        *("images", "batchx3x96x96", "features", "batchx512", "float32"),
        *("2.5e-03", "0.999988"),
        *("encoder.token_grid", "sampler.keyframes", "16", "decoder.max_tokens", "96", "292"),
        *("tensorrt-rtx", "1.7.1", "8.6"),
        *("facebook/vjepa2-vitl-fpc64-256", "0123456789ab", "aaaaaaaaaaaa", "bbbbbbbbbbbb"),
        sha256_of(bundle / MANIFEST),
    ):
        assert word in words, word


def test_prompts_are_printed_as_they_are_markup_and_line_ends_too(bundle: Path) -> None:
    assert r"'[bold]<|user|>\n'" in printed(bundle)
    assert r"'\nWhat happened?'" in printed(bundle)


def test_eighty_columns_are_enough_and_nothing_is_cut(bundle: Path) -> None:
    lines = printed(bundle).splitlines()
    assert max(len(line) for line in lines if str(bundle) not in line) <= 80
    assert "…" not in printed(bundle)


def test_it_says_that_hashes_are_not_checked(bundle: Path) -> None:
    file = bundle / DECODER
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    assert "`svrt verify` also checks every hash" in printed(bundle)


def test_a_cut_off_file_is_refused_by_name(bundle: Path) -> None:
    with (bundle / f"{ENCODER}.data").open("r+b") as handle:
        handle.truncate(100)
    with pytest.raises(BundleError, match=r"encoder\.onnx\.data: 100 bytes, the manifest says 7654321"):
        inspect(bundle)


def test_a_bundle_of_another_schema_is_refused(bundle: Path) -> None:
    values = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**values, "schema": 1}))
    with pytest.raises(BundleError, match=f"schema 1, this svrt reads {SCHEMA}"):
        inspect(bundle)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        inspect(tmp_path)
