"""Mask-denoising: masks hide what V-JEPA's hide, the teacher trails the encoder, the loss teaches the others."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from svrt.models.pocket import denoise
from svrt.models.pocket.dataset import GRID
from svrt.models.pocket.denoise import ASPECTS, LEAST, MASKS, MOMENTUM, Denoiser, Predictor, hidden_cells, masks
from svrt.models.pocket.network import TOKENS, WIDTH, Encoder, encoder_config, moving_tokens
from torch import Tensor

CELLS = GRID**2
DRAWS = 300


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Two clips of a smooth random texture that slides: uint8 [2, 16, 192, 192, 3]."""
    rng, clips = np.random.default_rng(0), []
    for across, down in ((4, 1), (-2, 3)):
        texture = cv2.resize(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), (192, 192))
        clips.append(np.stack([np.roll(texture, (down * n, across * n), axis=(0, 1)) for n in range(16)]))
    return torch.from_numpy(np.stack(clips))


@pytest.fixture(scope="module")
def kept(frames: Tensor) -> Tensor:
    return moving_tokens(frames, 192, seeded(0))


def denoiser() -> tuple[Encoder, Denoiser]:
    torch.manual_seed(0)
    encoder = Encoder()
    return encoder, Denoiser(encoder)


@pytest.mark.parametrize("scale", [scale for _, scale in MASKS])
def test_a_block_is_one_rectangle_of_its_share_and_aspect(scale: float) -> None:
    generator, shares, aspects = seeded(1), [], []
    for _ in range(DRAWS):
        cells = hidden_cells(1, scale, generator)
        rows, columns = cells.any(dim=1).nonzero().flatten(), cells.any(dim=0).nonzero().flatten()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(cells.sum()) == height * width, "no gaps"
        shares.append(height * width / CELLS)
        aspects.append(height / width)
    assert np.mean(shares) == pytest.approx(scale, rel=0.05)
    assert ASPECTS[0] - 0.2 < min(aspects) < 1 < max(aspects) < ASPECTS[1] + 0.2, "to a cell"


@pytest.mark.parametrize(("blocks", "scale"), MASKS)
def test_a_mask_covers_what_its_number_of_independent_blocks_covers(blocks: int, scale: float) -> None:
    single = torch.stack([hidden_cells(1, scale, seeded(seed)) for seed in range(4 * DRAWS)]).float().mean(dim=0)
    expected = float((1 - (1 - single) ** blocks).mean())
    covered = np.mean([float(hidden_cells(blocks, scale, seeded(seed)).float().mean()) for seed in range(DRAWS)])
    assert covered == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("blocks", "scale"), MASKS)
def test_what_is_hidden_is_hidden_in_every_tubelet(blocks: int, scale: float) -> None:
    for seed in range(10):
        seen, asked = masks(torch.arange(TOKENS)[None], blocks, scale, seeded(seed))
        hidden = torch.zeros(TOKENS, dtype=torch.bool)
        hidden[asked[0]] = True
        through = hidden.view(-1, CELLS)
        assert (through == through[0]).all()
        assert torch.equal(seen[0], (~hidden).nonzero().flatten())


@pytest.mark.parametrize(("blocks", "scale"), MASKS)
def test_seen_and_asked_are_apart_in_order_and_among_those_kept(blocks: int, scale: float, kept: Tensor) -> None:
    for seed in range(20):
        seen, asked = masks(kept, blocks, scale, seeded(seed))
        for clip in range(len(kept)):
            one, other, all_kept = (set(tokens[clip].tolist()) for tokens in (seen, asked, kept))
            assert not one & other
            assert one | other <= all_kept
        for tokens in (seen, asked):
            assert (tokens.diff(dim=1) > 0).all()
            assert tokens.shape[1] >= LEAST


def test_a_mask_is_drawn_again_until_it_leaves_enough_on_either_side(
    kept: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing, half = torch.zeros(GRID, GRID, dtype=torch.bool), torch.zeros(GRID, GRID, dtype=torch.bool)
    half[: GRID // 2] = True
    drawn = iter([nothing, ~nothing, half])
    monkeypatch.setattr(denoise, "hidden_cells", lambda *_: next(drawn))
    seen, asked = masks(kept[:1], 1, 0.5, seeded(0))
    assert next(drawn, None) is None
    above = kept[0] % CELLS < CELLS // 2
    assert torch.equal(asked[0], kept[0][above])
    assert torch.equal(seen[0], kept[0][~above])


def test_each_clip_of_a_batch_has_a_mask_of_its_own() -> None:
    seen, _ = masks(torch.arange(TOKENS).expand(2, -1), *MASKS[0], seeded(2))
    assert not torch.equal(seen[0], seen[1])


def test_tokens_cut_to_the_least_are_cut_from_all_of_a_clips_time() -> None:
    early, late = 0, 0
    for seed in range(20):
        seen, _ = masks(torch.arange(TOKENS).expand(4, -1), *MASKS[0], seeded(seed))
        early, late = early + int((seen < TOKENS // 2).sum()), late + int((seen >= TOKENS // 2).sum())
    assert early == pytest.approx(late, rel=0.03)


def test_the_teacher_begins_as_the_encoder_and_moves_by_a_hundredth_of_the_way() -> None:
    encoder, denoising = denoiser()
    before = [parameter.clone() for parameter in denoising.teacher.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += torch.randn(parameter.shape, generator=seeded(parameter.numel()))
    denoising.follow(encoder)
    for old, now, led in zip(before, encoder.parameters(), denoising.teacher.parameters(), strict=True):
        torch.testing.assert_close(led, MOMENTUM * old + (1 - MOMENTUM) * now)


def test_the_loss_is_that_of_each_hidden_tokens_own_features(frames: Tensor, kept: Tensor) -> None:
    encoder, denoising = denoiser()
    with torch.no_grad():
        loss = float(denoising.loss(encoder, frames, kept, seeded(4)))
        generator, expected = seeded(4), []
        for blocks, scale in MASKS:
            seen, asked = masks(kept, blocks, scale, generator)
            errors = []
            for clip in range(len(frames)):
                taught = denoising.teacher(frames[[clip]], kept[[clip]])[0].numpy()
                centred = taught - taught.mean(axis=1, keepdims=True)
                normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
                row = {token: at for at, token in enumerate(kept[clip].tolist())}
                context = encoder(frames[[clip]], seen[[clip]])
                answers = denoising.predictor(context, seen[[clip]], asked[[clip]])[0].numpy()
                wanted = np.stack([normal[row[token]] for token in asked[clip].tolist()])
                errors.append(np.abs(answers - wanted).mean())
            expected.append(np.mean(errors))
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_few_steps_lower_the_loss_and_give_the_teacher_no_gradient(frames: Tensor, kept: Tensor) -> None:
    encoder, denoising = denoiser()
    learning = [*encoder.parameters(), *denoising.predictor.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    losses = []
    for _ in range(5):
        loss = denoising.loss(encoder, frames, kept, seeded(5))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in denoising.teacher.parameters())
    missing = [name for name, p in encoder.named_parameters() if p.grad is None and "predictor" not in name]
    assert missing == [], "V-JEPA 2's own predictor is the only part that is not used"
    assert all(parameter.grad is not None for parameter in denoising.predictor.parameters())


def test_an_answer_depends_on_the_place_asked_for_and_on_what_is_seen() -> None:
    torch.manual_seed(0)
    predictor = Predictor(encoder_config()).eval()
    seen, context = torch.arange(40)[None], torch.randn(1, 40, WIDTH)
    asked = torch.tensor([[50, 51, 62, 50 + CELLS, 50]])
    with torch.no_grad():
        answers, others = (predictor(c, seen, asked)[0] for c in (context, torch.randn(1, 40, WIDTH)))
    same, *differences = (float((answers[0] - answer).abs().max()) for answer in answers[[4, 1, 2, 3]])
    assert same < 1e-5, "the same token asked for twice"
    assert min(differences) > 1e-3, "a column, a row, a tubelet away"
    assert float((answers - others).abs().max()) > 1e-2
