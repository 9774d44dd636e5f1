"""Training lowers its losses, and what it saves is what `transformers` and `peft` load."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from svrt.exporter.recipe import read_recipe
from svrt.models.pocket import renderer, train, weights
from svrt.models.pocket.captions import PartialShot, caption, parse
from svrt.models.pocket.dataset import (
    Sample,
    StoredClip,
    augmented_sample,
    clips_elsewhere,
    plain_sample,
    rendered_clips,
)
from svrt.models.pocket.evaluate import Answer, calibration_error, wilson
from svrt.models.pocket.heads import ABSENT, SIZES, WEIGHTS, Targets, attribute_classes, attribute_loss
from svrt.models.pocket.keyframes import SAMPLER
from svrt.models.pocket.loader import ahead
from svrt.models.pocket.network import (
    Describer,
    Encoder,
    encoder_config,
    load_decoder,
    moving_tokens,
    pool,
    smollm_path,
)
from svrt.models.pocket.shot import Shot
from svrt.models.pocket.train import Data, Schedule, after_phase_one, digest_of_speech, drawn_as_often
from svrt.models.pocket.trainer import Average, Batch, Trainer, save_state, speech, stacked
from transformers import VJEPA2Model

PROJECTOR_SHAPES = {
    "fc1.weight": [512, 256],
    "fc1.bias": [512],
    "fc2.weight": [576, 512],
    "fc2.bias": [576],
    "norm.weight": [576],
    "norm.bias": [576],
}
LIMIT = 56 * 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """OpenMP's threads spin at every barrier: beside other work, two of them take many times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[StoredClip]:
    return rendered_clips(50, 2, tmp_path_factory.mktemp("cache"), processes=1)


@pytest.fixture(scope="module")
def samples(clips: list[StoredClip]) -> list[Sample]:
    return [augmented_sample(clip, np.random.default_rng(k)) for k, clip in enumerate(clips)]


@pytest.fixture(scope="module")
def describer() -> Describer:
    torch.manual_seed(0)
    return weights.new_describer(smollm_path(), torch.bfloat16)


@pytest.fixture(scope="module")
def trained(describer: Describer, samples: list[Sample]) -> tuple[Trainer, list[float], list[float]]:
    """A trainer after a few steps of each phase on one batch, and the losses of each phase."""
    trainer = Trainer(describer, seed=0, phase="see")
    seeing = [sum(trainer.advance(Batch.of(samples), False, 1e-3).values()) for _ in range(5)]
    trainer.enter("speak")
    with torch.no_grad():
        pooled = pool(describer.encoder(stacked(samples)))
    shots = [sample.shot for sample in samples]
    speaking = [trainer.advance_speech(pooled, shots, 1e-3)["caption"] for _ in range(3)]
    return trainer, seeing, speaking


def test_a_few_steps_lower_the_loss_of_seeing(trained: tuple[Trainer, list[float], list[float]]) -> None:
    _, seeing, _ = trained
    assert seeing[-1] < 0.9 * seeing[0]


def test_a_few_steps_lower_the_loss_of_speaking(trained: tuple[Trainer, list[float], list[float]]) -> None:
    _, _, speaking = trained
    assert speaking[-1] < 0.9 * speaking[0]


def test_a_checkpoint_brings_a_trainer_back_to_its_step(
    trained: tuple[Trainer, list[float], list[float]], describer: Describer, tmp_path: Path
) -> None:
    trainer, _, _ = trained
    save_state(trainer, tmp_path / "checkpoint.pt")
    back = Trainer(describer, seed=0)
    back.restore(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert (back.phase, back.step, back.seconds) == (trainer.phase, trainer.step, trainer.seconds)
    assert all(torch.equal(a, b) for a, b in zip(trainer.average.means, back.average.means, strict=True))
    first, second = (list(t.optimizer.state_dict()["state"].values()) for t in (trainer, back))
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in zip(first, second, strict=True))


def test_a_checkpoint_of_speaking_holds_no_encoder(trained: tuple[Trainer, list[float], list[float]]) -> None:
    """It would come back over one that was trained further since."""
    names = {name.split(".")[0] for name in trained[0].state()["model"]}
    assert names == {"projector", "decoder"}


def test_another_encoder_other_settings_or_words_begin_to_speak_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"seed": 1, "speak_steps": 600, "batch": 8, "variants": 12}
    (tmp_path / "seen.pt").write_bytes(b"encoder")
    first = digest_of_speech(tmp_path / "seen.pt", argparse.Namespace(**settings))
    assert first == digest_of_speech(tmp_path / "seen.pt", argparse.Namespace(**settings))
    for name in settings:
        assert first != digest_of_speech(tmp_path / "seen.pt", argparse.Namespace(**{**settings, name: 3}))
    words = tmp_path / "captions.py"
    words.write_bytes(train.SPOKEN_BY[0].read_bytes().replace(b"from the top", b"from above"))
    with monkeypatch.context() as other:
        other.setattr(train, "SPOKEN_BY", (words, *train.SPOKEN_BY[1:]))
        assert first != digest_of_speech(tmp_path / "seen.pt", argparse.Namespace(**settings))
    (tmp_path / "seen.pt").write_bytes(b"encoder, trained further")
    assert first != digest_of_speech(tmp_path / "seen.pt", argparse.Namespace(**settings))


def test_saved_weights_reload_in_transformers_and_peft_with_the_same_outputs(
    trained: tuple[Trainer, list[float], list[float]], samples: list[Sample], tmp_path: Path
) -> None:
    describer = trained[0].describer
    weights.save(describer, tmp_path)
    assert weights.wrong_sums(tmp_path) == []
    loaded = weights.load_describer(tmp_path, smollm_path())
    frames = stacked(samples[:1])
    theirs = VJEPA2Model.from_pretrained(tmp_path / "encoder", attn_implementation="sdpa", dtype=torch.float32).eval()
    with torch.no_grad():
        ours = loaded.encoder(frames)
        expected = theirs(loaded.encoder.pixels(frames), skip_predictor=True).last_hidden_state
        assert torch.linalg.norm(ours - expected) <= 1e-5 * torch.linalg.norm(expected)
        adapted = PeftModel.from_pretrained(load_decoder(smollm_path()), str(tmp_path / "adapter")).eval()
        ids = torch.tensor([loaded.vocabulary.prefix])
        assert torch.equal(adapted(ids).logits, loaded.decoder(ids).logits)
    made, kept = (get_peft_model_state_dict(d.decoder, save_embedding_layers=False) for d in (describer, loaded))
    assert all(torch.equal(tensor.half(), kept[name].half()) for name, tensor in made.items())
    again = weights.new_describer(smollm_path(), torch.bfloat16)
    weights.load_into(again, tmp_path)
    held = {name: p.half() for name, p in again.named_parameters() if p.requires_grad and ".predictor." not in name}
    other = [n for n, p in describer.named_parameters() if n in held and not torch.equal(p.half(), held[n])]
    assert {name.split(".")[0] for name in held} == {"encoder", "projector", "decoder"} and other == []
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"altered")
    assert weights.wrong_sums(tmp_path) == ["encoder/model.safetensors"]


def test_the_precomputed_rotation_is_that_of_transformers(samples: list[Sample]) -> None:
    torch.manual_seed(1)
    encoder = Encoder().eval()
    theirs = VJEPA2Model(encoder_config()).eval()
    theirs.load_state_dict(encoder.model.state_dict())
    frames = stacked(samples[:1])
    with torch.no_grad():
        ours, expected = encoder(frames), theirs(encoder.pixels(frames), skip_predictor=True).last_hidden_state
        assert torch.linalg.norm(ours - expected) <= 1e-5 * torch.linalg.norm(expected)
        everything = torch.arange(1152)[None]
        assert torch.allclose(encoder(frames, everything), ours, atol=1e-5)
        assert torch.allclose(pool(ours, everything), pool(ours), atol=1e-5)


def test_pooled_tokens_are_in_the_order_time_row_column() -> None:
    grid = torch.zeros(1, 8, 12, 12, 256)
    grid[0, 5, :6, 6:] = 1.0
    pooled = pool(grid.reshape(1, 1152, 256))
    assert pooled[0, :, 0].nonzero().flatten().tolist() == [(5 * 2 + 0) * 2 + 1]
    assert pooled.max() == 1.0


def test_the_kept_tokens_are_those_that_move() -> None:
    frames = torch.zeros(1, 16, 192, 192, 3, dtype=torch.uint8)
    frames[0, 6, 32:48, 64:80] = 255
    kept = moving_tokens(frames, 64, torch.Generator().manual_seed(0))
    assert (3 * 12 + 2) * 12 + 4 in kept[0].tolist()
    assert kept[0].tolist() == sorted(set(kept[0].tolist()))


def test_a_mirrored_sample_carries_the_mirrored_truth(clips: list[StoredClip]) -> None:
    plain = plain_sample(clips[0])
    seen = {augmented_sample(clips[0], np.random.default_rng(k)).shot for k in range(12)}
    assert seen <= {plain.shot, plain.shot.mirrored()}
    assert plain.ball.shape == (8, 12, 12)
    assert plain.known
    shown = plain.path[:, 2] > 0
    assert shown.any()
    where = np.unravel_index(plain.ball.reshape(8, -1).argmax(axis=1), (12, 12))
    ring = np.unravel_index(plain.ring[0].argmax(), (12, 12))
    right_of_ring = plain.path[shown, 0] > 0.5
    assert (where[1][shown][right_of_ring] >= ring[1]).all()


def test_a_caption_is_ended_and_its_attributes_weigh_more(describer: Describer, samples: list[Sample]) -> None:
    vocabulary, sample = describer.vocabulary, samples[0]
    told = speech(sample.shot, vocabulary, np.random.default_rng(1))
    assert told.ids[-1] == vocabulary.end
    assert len(told.ids) == len(told.weights)
    assert set(told.weights) == {1.0, 4.0}
    text = caption(sample.shot).text
    assert vocabulary.text(vocabulary.ids(text)) == text


def test_a_schedule_warms_up_and_comes_down() -> None:
    schedule = Schedule((100,), rate=1.0)
    rates = [schedule.rate_at(step) for step in range(101)]
    assert rates[0] < 0.1
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.02)


def test_a_second_round_begins_anew_at_half_the_rate() -> None:
    schedule = Schedule((100, 60), rate=1.0)
    assert schedule.steps == 160
    second = [schedule.rate_at(step) for step in range(100, 161)]
    assert second[0] < 0.1
    assert max(second) == pytest.approx(0.5)
    assert second[60] == pytest.approx(0.01)


def test_tokens_are_left_out_until_a_round_ends_and_never_from_the_third_on() -> None:
    schedule = Schedule((100, 60, 20), rate=1.0)
    whole = [schedule.all_tokens_at(step) for step in range(schedule.steps)]
    assert [step for step in range(1, 180) if whole[step] != whole[step - 1]] == [92, 100, 156]
    assert not whole[0] and all(whole[160:])


def test_an_average_is_the_mean_of_steps_that_fade() -> None:
    parameter = torch.zeros(1)
    average, expected = Average([parameter]), 0.0
    for step in range(1, 2000):
        parameter.fill_(float(step % 7))
        average.follow(step)
        keep = min(0.99, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * (step % 7)
    average.settle()
    assert parameter.item() == pytest.approx(expected, rel=1e-4)


def test_footage_without_a_hoop_has_no_shot(tmp_path: Path) -> None:
    (elsewhere,) = clips_elsewhere(7, 1, tmp_path, processes=1)
    (again,) = clips_elsewhere(7, 1, tmp_path, processes=1)
    assert elsewhere == again and elsewhere.shot is None
    sample = plain_sample(elsewhere)
    assert sample.shot is None and sample.frames.shape == (16, 192, 192, 3)
    assert attribute_classes(sample) == {**dict.fromkeys(SIZES, ABSENT), "hoop": 0}
    assert parse(caption(sample.shot).text) == PartialShot(None, None, None, None, hoop=False)


def test_the_losses_of_a_clip_without_a_hoop_are_those_of_that_answer_alone(samples: list[Sample]) -> None:
    nothing = replace(samples[0], shot=None, view=None, known=False)
    logits = torch.randn(1, sum(SIZES.values()), generator=torch.Generator().manual_seed(3))
    wanted = WEIGHTS["hoop"] * torch.nn.functional.cross_entropy(
        logits[:, -2:], torch.tensor([0]), label_smoothing=0.05
    )
    assert list(SIZES)[-1] == "hoop"
    assert float(attribute_loss(logits, Targets.of([nothing]))) == pytest.approx(float(wanted), rel=1e-6)


def test_a_batch_is_the_same_whenever_it_is_asked(clips: list[StoredClip]) -> None:
    nothing = replace(clips[0], name="elsewhere", shot=None, view=None, ball=None, ring=None)
    data = Data(clips, clips, [nothing])
    first, again, other = (data.batch(key, 3) for key in ((1, 0, 5), (1, 0, 5), (1, 0, 6)))
    assert torch.equal(first.frames, again.frames) and torch.equal(first.targets.path, again.targets.path)
    assert {name: n.tolist() for name, n in first.targets.classes.items()} == {
        name: n.tolist() for name, n in again.targets.classes.items()
    }
    assert not torch.equal(first.frames, other.frames)


@pytest.mark.parametrize("processes", [0, 2])
def test_what_is_made_ahead_comes_in_order_whoever_makes_it(processes: int) -> None:
    assert list(ahead(lambda k: torch.tensor(k * k), range(3, 12), processes)) == [k * k for k in range(3, 12)]
    assert list(ahead(lambda k: k, range(5, 5), processes)) == []


def test_clips_whose_ball_touches_the_board_are_drawn_less_often() -> None:
    bank, swish = Shot("make", "left", ("backboard", "net"), "down"), Shot("make", "left", ("net",), "down")
    assert drawn_as_often([bank, swish, None]).tolist() == pytest.approx([1 / 6, 5 / 12, 5 / 12])


def test_balls_from_above_are_drawn_as_often_as_asked() -> None:
    above, left = Shot("miss", "top", ("rim",), "left"), Shot("miss", "left", ("rim",), "left")
    assert drawn_as_often([above, left, None], above=6).tolist() == pytest.approx([6 / 8, 1 / 8, 1 / 8])


def test_misses_are_drawn_more_often_than_made_shots_and_those_that_look_made_most() -> None:
    made, missed = Shot("make", "left", ("net",), "down"), Shot("miss", "left", ("rim",), "left")
    chance = drawn_as_often([made, missed, None, made, made])
    assert chance[[0, 3, 4]].tolist() == pytest.approx([0.8 * 0.45 / 3] * 3)
    assert chance[[1, 2]].tolist() == pytest.approx([0.8 * 0.55, 0.2])
    chance = drawn_as_often([made, missed, missed], [False, True, False])
    assert chance.tolist() == pytest.approx([0.45, 0.55 * 2.5 / 3.5, 0.55 / 3.5])


@pytest.mark.parametrize(
    ("x", "y", "inside", "expected"),
    [
        (0.5, 0.7, 1, True),
        (0.5, 0.45, 1, False),  # above the ring
        (0.5, 1.0, 1, False),  # far below
        (0.7, 0.7, 1, False),  # beside the net
        (0.5, 0.7, 0, False),  # out of the picture
    ],
)
def test_a_shot_seems_made_where_the_ball_is_seen_in_the_net(
    clips: list[StoredClip], x: float, y: float, inside: int, expected: bool
) -> None:
    ball = np.tile(np.array([[0.1, 0.1, 0.05, 1]], np.float32), (3, 1))
    ball[1] = (x, y, 0.05, inside)
    ring = np.tile(np.array([[0.5, 0.5, 0.3]], np.float32), (3, 1))
    assert replace(clips[0], ball=ball, ring=ring).seems_made() is expected
    assert not replace(clips[0], ball=None, ring=None).seems_made()


def test_calibration_error_is_the_gap_between_being_sure_and_being_right() -> None:
    shot = Shot("make", "left", ("net",), "down")

    def said(confidence: float | None, right: int, wrong: int) -> list[Answer]:
        texts = ["Made shot."] * right + ["Missed shot."] * wrong
        return [Answer("a", shot, text, confidence) for text in texts]

    assert calibration_error(said(0.75, 3, 1)) == pytest.approx(0.0)
    assert calibration_error(said(0.95, 1, 1)) == pytest.approx(0.45)
    assert calibration_error([*said(0.95, 1, 1), *said(0.75, 3, 3), *said(None, 0, 9)]) == pytest.approx(
        2 / 8 * 0.45 + 6 / 8 * 0.25
    )


def test_wilson_intervals_are_those_of_the_textbook() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901, 0.9433), abs=2e-4)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


def test_the_sampler_of_training_is_that_of_the_recipe() -> None:
    recipe = read_recipe("pocket").sampler
    assert {name: getattr(recipe, name) for name in asdict(SAMPLER)} == asdict(SAMPLER)


def test_the_committed_weights_have_the_shapes_that_the_exporter_reads() -> None:
    folder = weights.WEIGHTS
    assert weights.wrong_sums(folder) == []
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < LIMIT
    encoder = {n: t for n, t in Encoder().model.state_dict().items() if n.startswith("encoder.")}
    assert _shapes(folder / "encoder" / "model.safetensors") == {n: list(t.shape) for n, t in encoder.items()}
    assert _shapes(folder / "projector" / "model.safetensors") == PROJECTOR_SHAPES
    adapter = _shapes(folder / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 30 * 7 * 2
    assert adapter["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"] == [16, 576]
    assert adapter["base_model.model.model.layers.29.mlp.down_proj.lora_B.weight"] == [576, 16]


def _shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(str(path), framework="numpy") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        assert {s.get_dtype() for s in slices.values()} == {"F16"}
        return {name: list(s.get_shape()) for name, s in slices.items()}


def test_a_sample_clip_is_what_its_seed_renders() -> None:
    for outcome, seed in renderer.SAMPLES.items():
        assert renderer.render(seed, outcome, seconds=2.0, size=64).truth.outcome == outcome


def test_speaking_without_an_encoder_says_what_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"seen\.pt is not there: train the encoder first"):
        after_phase_one(tmp_path, "seen")
