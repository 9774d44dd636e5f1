"""Features that are kept: what is read back is what was computed, and only for the encoder and clips it came from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from svrt.models.pocket.dataset import STORED_SIZE, StoredClip
from svrt.models.pocket.features import Features, variants
from svrt.models.pocket.network import VIDEO_TOKENS, WIDTH, Encoder
from svrt.models.pocket.shot import Shot

SHOT = Shot("miss", "left", ("rim",), "right")


def stored(name: str, seed: int, shot: Shot | None) -> StoredClip:
    rng = np.random.default_rng(seed)
    pictures = [cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (STORED_SIZE,) * 2) for _ in range(16)]
    jpegs = tuple(cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures)
    return StoredClip(name, jpegs, shot, "front" if shot else None)


CLIPS = (stored("a.mp4", 1, SHOT), stored("b.mp4", 2, None))


def seeing(seed: int) -> Any:
    """A trainer as far as features need one: an encoder of two layers, to be quick."""
    torch.manual_seed(seed)
    encoder = Encoder()
    encoder.model.encoder.layer = encoder.model.encoder.layer[:2]
    return SimpleNamespace(
        describer=SimpleNamespace(encoder=encoder),
        device=torch.device("cpu"),
        mixed_precision=lambda: torch.autocast("cpu", torch.bfloat16),
    )


@pytest.fixture(scope="module")
def trainer() -> Any:
    return seeing(0)


@pytest.fixture(scope="module")
def kept(trainer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Features, Path]:
    cache = tmp_path_factory.mktemp("features")
    return variants(trainer, CLIPS, 2, cache), cache


def test_each_clip_has_its_views_with_what_they_show(kept: tuple[Features, Path]) -> None:
    features, _ = kept
    assert features.pooled.shape == (4, VIDEO_TOKENS, WIDTH)
    assert features.pooled.dtype == torch.float16
    assert features.names == ("a.mp4", "a.mp4", "b.mp4", "b.mp4")
    assert features.shots[2:] == (None, None)
    assert set(features.shots[:2]) <= {SHOT, SHOT.mirrored()}
    assert len({row.numpy().tobytes() for row in features.pooled}) == 4


def test_mirrored_views_show_the_mirrored_shot(trainer: Any, tmp_path: Path) -> None:
    for _ in range(2):  # computed, then read back
        views = variants(trainer, CLIPS, 6, tmp_path)
        assert views.names == tuple(clip.name for clip in CLIPS for _ in range(6))
        assert set(views.shots) == {SHOT, SHOT.mirrored(), None}
        (kept,) = tmp_path.iterdir()
        written = kept.stat().st_mtime_ns
    variants(trainer, CLIPS, 6, tmp_path)
    assert kept.stat().st_mtime_ns == written


def test_a_second_call_reads_the_file_and_asks_no_encoder(
    trainer: Any, kept: tuple[Features, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, cache = kept

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(trainer.describer.encoder, "forward", refuse)
    again = variants(trainer, CLIPS, 2, cache)
    assert torch.equal(again.pooled, features.pooled)
    assert (again.shots, again.names) == (features.shots, features.names)
    with pytest.raises(AssertionError, match="ran again"):
        variants(trainer, CLIPS, 1, cache)


def test_a_view_is_the_same_in_any_company(trainer: Any, kept: tuple[Features, Path], tmp_path: Path) -> None:
    features, _ = kept
    alone = variants(trainer, CLIPS[1:], 1, tmp_path)
    torch.testing.assert_close(alone.pooled[0], features.pooled[2], atol=0.05, rtol=0.05)
    assert float((alone.pooled[0] - features.pooled[3]).abs().max()) > 0.2, "that would have failed another view"


def test_another_encoder_and_other_clips_have_a_file_of_their_own(trainer: Any, tmp_path: Path) -> None:
    first = variants(trainer, CLIPS[:1], 1, tmp_path)
    other = variants(seeing(1), CLIPS[:1], 1, tmp_path)
    assert not torch.equal(first.pooled, other.pooled)
    variants(trainer, CLIPS[1:], 1, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_of_keeps_the_views_of_the_named_clips_alone(kept: tuple[Features, Path]) -> None:
    features, _ = kept
    only = features.of(["b.mp4", "unheard-of.mp4"])
    assert only.names == ("b.mp4", "b.mp4")
    assert only.shots == (None, None)
    assert torch.equal(only.pooled, features.pooled[2:])
