"""Ablations of the sampler: event recall against brute force, each way of choosing, and the command."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import moving_ball, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from small_system import write_system
from svrt.bundle import Bundle, EncoderSpec, SamplerSpec
from svrt.errors import OutputError
from svrt.evaluation import ablate
from svrt.evaluation.ablation import recall as events
from svrt.evaluation.ablation import trial
from svrt.evaluation.ablation.footage import REAL, Footage, Truth
from svrt.evaluation.ablation.journal import Journal, Result
from svrt.evaluation.ablation.results import Measured, Table, tabulate
from svrt.evaluation.ablation.seen import LEVELS, Reduced, Seen, colour_histograms, look
from svrt.evaluation.ablation.sheets import beside_uniform
from svrt.evaluation.ablation.tables import GAINS, compare
from svrt.evaluation.ablation.variants import (
    PAPER_SAMPLER,
    energy_peaks,
    for_encoder,
    nearest_to_centres,
    uniform,
    variants,
)
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from svrt.models.pocket.dataset import evenly
from svrt.models.pocket.renderer import Event, render
from svrt.runtime.pipeline import Pipeline
from svrt.runtime.sampler import Candidates, Sampler
from svrt.runtime.video import Frame

SPEC = SamplerSpec(16, 64, "haar", 2, 32, "bgr", 1.0, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
ENCODER = EncoderSpec(16, 32, "stretch", 32, [8, 2, 2], 1.0, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Chosen:
    events: list[Event]
    keyframes: list[int]


class Eye:
    """In place of VGG-16: the means of 8 x 8 blocks of each channel, and how many pictures it was shown."""

    name, precision, device = "eye", "fp32", "cpu"

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = inputs["images"]
        self.shown += len(images)
        blocks = images.reshape(len(images), 3, 4, 8, 4, 8).mean(axis=(3, 5))
        return {"features": blocks.reshape(len(images), -1).astype(np.float32)}


def reduced(pictures, spec: SamplerSpec = SPEC) -> Reduced:
    clip = Reduced(spec, ENCODER)
    for index, picture in enumerate(pictures):
        clip.add(Frame(index, index / 30, picture))
    return clip


def seen(pictures) -> Seen:
    return look(Sampler(SPEC, Eye()), reduced(pictures))


KINDS = st.sampled_from([*events.RECALLED, *events.EDGES])
FRAMES = st.integers(0, 60)
CLIPS = st.lists(st.builds(Chosen, st.lists(st.builds(Event, KINDS, FRAMES)), st.lists(FRAMES, max_size=8)), min_size=1)


@settings(deadline=None)
@given(clips=CLIPS, tolerance=st.integers(0, 2))
def test_recall_is_the_share_of_events_with_a_keyframe_about_them(clips: list[Chosen], tolerance: int) -> None:
    hits = total = 0
    for clip in clips:
        for event in clip.events:
            if event.kind in ("backboard", "rim", "net", "through"):
                total += 1
                hits += bool({event.frame + step for step in range(-tolerance, tolerance + 1)} & set(clip.keyframes))
    share = events.recall(clips, tolerance=tolerance)
    if total == 0:
        assert share is None
        return
    assert share is not None
    assert (share.hits, share.total, share.share) == (hits, total, hits / total)
    assert 0 <= share.low <= share.high <= 1
    if hits in (0, total):
        assert share.low <= share.share <= share.high
        assert share.low < share.high, "all of a few clips is not all of every clip"


@given(keyframes=st.lists(FRAMES), frames=st.integers(1, 61))
def test_coverage_is_the_recall_of_one_event_in_every_frame(keyframes: list[int], frames: int) -> None:
    everywhere = Chosen([Event("rim", frame) for frame in range(frames)], keyframes)
    share = events.recall([everywhere])
    assert share is not None
    assert events.coverage(keyframes, frames) == share.share


def test_the_interval_of_a_recall_is_that_of_clips_drawn_with_repeats() -> None:
    rng = np.random.default_rng(5)
    hits, totals = rng.integers(0, 3, 40), np.full(40, 3)
    draws = events.resampled(hits, totals)
    assert len(draws) == events.RESAMPLES
    assert draws.mean() == pytest.approx(hits.sum() / totals.sum(), abs=0.01)
    assert draws.std() == pytest.approx(np.std(hits / 3) / 40**0.5, rel=0.06), "the error of a mean of 40"


def test_a_clip_counts_once_however_many_events_it_has() -> None:
    """Events of one clip stand and fall together: the interval is wider than if they were as many clips."""
    clips = [Chosen([Event("rim", 5)] * 8, [5] if number % 2 else []) for number in range(20)]
    apart = [Chosen([Event("rim", 5)], [5] if number % 2 else []) for number in range(160)]
    together, alone = events.recall(clips), events.recall(apart)
    assert together is not None and alone is not None
    assert together.high - together.low > 2 * (alone.high - alone.low)
    every, one_each = events.recall(clips[1:2] * 20), events.recall(apart[1:2] * 20)
    assert every is not None and one_each is not None
    assert (every.low, every.high) == (one_each.low, one_each.high)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(hits: int, total: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3."""
    share = events.Share.of_clips(hits, total)
    assert (share.low, share.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_the_gain_over_another_choice_is_paired_by_clip() -> None:
    net = [Event("net", 10)]
    better = [Chosen(net, [10])] * 30
    worse = [Chosen(net, [10])] * 20 + [Chosen(net, [30])] * 10
    same, gain = events.recall_gain(better, better), events.recall_gain(better, worse)
    assert same is not None and gain is not None
    assert (same.mean, same.low, same.high, same.n) == (0.0, 0.0, 0.0, 30)
    assert gain.mean == pytest.approx(1 / 3)
    assert 0.1 < gain.low < gain.mean < gain.high < 0.6
    assert events.recall_gain([Chosen([], [1])], [Chosen([], [1])]) is None


def test_events_that_no_viewer_could_see_are_left_out() -> None:
    truth = render(1, size=64).truth
    ball = truth.ball.copy()
    ball[9, 3] = 0
    listed = (Event("entry", 0), Event("rim", 8), Event("backboard", 9), Event("exit", 12))
    kept = events.seen_events(replace(truth, events=listed, ball=ball))
    assert [event.kind for event in kept] == ["rim", "exit"]


@given(frames=st.integers(8, 200), count=st.integers(1, 8))
def test_uniform_keyframes_are_the_middles_of_equal_stretches(frames: int, count: int) -> None:
    picks = uniform(frames, count)
    assert picks == [int((index + 0.5) * frames / count + 1e-9) for index in range(count)]
    assert len(set(picks)) == count
    assert uniform(frames + 16, 16) == list(evenly(frames + 16))


def test_energy_peaks_are_the_highest_that_are_no_neighbours() -> None:
    energy = np.array([0, 9, 8, 1, 7, 7, 0, 3.0])
    assert energy_peaks(energy, 2) == [1, 4]
    assert energy_peaks(energy, 3) == [1, 4, 7]
    assert energy_peaks(energy, 4) == [1, 2, 4, 7], "all that is left has a neighbour among them"


def test_energy_peaks_take_neighbours_only_when_nothing_else_is_left() -> None:
    energy = np.array([5, 9, 5, 1.0, 6])
    assert energy_peaks(energy, 4) == [0, 1, 2, 4]


def test_a_colour_histogram_is_that_of_a_loop_over_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    counts = np.zeros((16, 4, 4))
    for hue, saturation, value in cv2.cvtColor(picture, cv2.COLOR_BGR2HSV).reshape(-1, 3).tolist():
        counts[hue * 16 // 180, saturation // 64, value // 64] += 1
    np.testing.assert_allclose(colour_histograms([picture])[0], np.sqrt(counts.ravel() / 63), atol=1e-6)


def test_colour_histograms_choose_one_frame_of_each_colour() -> None:
    colours = [(200, 30, 30)] * 9 + [(30, 200, 30)] * 2 + [(30, 30, 200)] * 5
    clip = [np.full((24, 32, 3), colour, np.uint8) for colour in colours]
    picks = nearest_to_centres(colour_histograms(clip), 3)
    assert [colours[pick] for pick in picks] == [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def flash(frames: int, at: int) -> list[np.ndarray]:
    """A still picture with a disc in one frame."""
    still = next(moving_ball(1))
    pictures = [still.copy() for _ in range(frames)]
    cv2.circle(pictures[at], (40, 30), 20, (255, 255, 255), -1)
    return pictures


def test_a_flash_between_two_uniform_keyframes_is_recalled_by_motion_and_missed_by_them() -> None:
    clip, event = seen(flash(60, at=22)), [Event("rim", 22)]
    ways = {variant.name: variant for variant in variants(replace(SPEC, keyframes=8))}
    found = {name: events.recall([Chosen(event, ways[name].pick(clip))]) for name in ways}
    hit = {name: share.hits for name, share in found.items() if share}
    assert hit["uniform"] == 0
    assert hit["motion energy"] == hit["dwt-vgg16-lda"] == hit["motion only"] == 1


def test_the_eye_sees_every_picture_once() -> None:
    eye, clip = Eye(), reduced(moving_ball(30))
    look(Sampler(SPEC, eye), clip)
    assert eye.shown == 30 * (1 + len(LEVELS))


@pytest.mark.parametrize("level", LEVELS)
def test_each_levels_features_are_those_of_a_sampler_made_for_it(level: int) -> None:
    pictures = list(moving_ball(20))
    spec, views = replace(SPEC, level=level), Candidates(replace(SPEC, level=level), ENCODER)
    for index, picture in enumerate(pictures):
        views.add(Frame(index, index / 30, picture))
    ours = seen(pictures)
    theirs = Sampler(spec, Eye()).features(views)
    np.testing.assert_allclose(np.hstack([ours.appearance, ours.motion[level]]), theirs, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(frames=st.integers(2, 64))
def test_every_variant_gives_as_many_keyframes_as_it_says_in_time_order(frames: int) -> None:
    clip = seen(moving_ball(frames))
    for variant in variants(SPEC):
        picks = variant.pick(clip)
        assert len(picks) == variant.keyframes, variant.name
        assert picks == sorted(picks), variant.name
        assert len(set(picks)) == min(frames, variant.keyframes), variant.name
        assert picks[-1] < frames, variant.name


def test_the_variants_are_named_once_and_start_with_the_runtimes_own() -> None:
    clip = reduced(moving_ball(50))
    every = variants(SPEC)
    names = [variant.name for variant in every]
    assert len(set(names)) == len(names) == 4 + 2 + 3 + 2 * 3
    assert sorted({variant.keyframes for variant in every}) == [8, 12, 16, 24]
    sampler = Sampler(SPEC, Eye())
    assert every[0].pick(look(sampler, clip)) == sampler.pick(clip.candidates)


def test_the_encoder_is_shown_its_own_number_of_pictures_whatever_was_picked() -> None:
    assert for_encoder([3, 7], 4) == (3, 3, 7, 7)
    assert for_encoder([3, 7, 8, 9], 4) == (3, 7, 8, 9)
    assert for_encoder(list(range(24)), 16) == tuple(uniform(24, 16))


def result(clip: str, text: str | None = "Made", **changes) -> Result:
    values = {"bundle": "b", "group": "real", "version": "", "variant": PAPER_SAMPLER, "frames": 9, "keyframes": [1]}
    values |= {"outcome": "make", "reference": "Made", "events": []}
    return Result(clip=clip, text=text, **{**values, **changes})


def never(*_: object) -> tuple[Reduced, Truth]:
    raise AssertionError("a clip was read again")


def asked(clip: str, version: str = "") -> Footage:
    return Footage("real", clip, version, True, never)


def test_a_journal_gives_back_what_was_kept_but_not_a_torn_line_or_another_bundles(tmp_path: Path) -> None:
    path, paper = tmp_path / "clips.jsonl", variants(SPEC)[0]
    known = [result("one", events=[Event("rim", 3)]), result("two", text=None)]
    with Journal(tmp_path, "b") as journal:
        journal.append(known)
    with Journal(tmp_path, "other") as journal:
        journal.append([result("three", bundle="other")])
    with path.open("a") as file:
        file.write('{"bundle": "b", "cli')
    with Journal(tmp_path, "b") as journal:
        assert [journal.get(asked(name), paper) for name in ("one", "two", "three")] == [*known, None]
        assert journal.get(asked("one", "relabelled"), paper) is None
        journal.append([result("four")])
    assert [json.loads(line)["clip"] for line in path.read_text().splitlines()] == ["one", "two", "three", "four"]


def test_a_journal_is_one_process_and_one_programs(tmp_path: Path) -> None:
    with Journal(tmp_path, "b"), pytest.raises(OutputError, match="another run writes there"):
        Journal(tmp_path, "b")
    (tmp_path / "clips.jsonl").write_text('{"video": "a.mp4"}\n')
    with pytest.raises(OutputError, match=r"clips\.jsonl: line 1 .* another --out"):
        Journal(tmp_path, "b")


def test_outcomes_are_counted_and_paired_with_the_papers_sampler() -> None:
    said = {"one": "Made shot", "two": "Missed shot", "three": "no idea", "four": "No hoop in view."}
    paper = [result(clip, text) for clip, text in said.items()]
    other = [result(clip, "Made", variant="uniform") for clip in said]
    table = tabulate([*paper, *other], {}).groups["real"]
    ours, theirs = table[PAPER_SAMPLER].sentences, table["uniform"].sentences
    assert ours is not None and theirs is not None
    assert (ours.outcome.hits, theirs.outcome.hits) == (1, 4)
    assert (theirs.gained, theirs.lost, theirs.gain.mean) == (3, 0, 0.75)
    assert (ours.gained, ours.lost, ours.gain.low, ours.gain.high) == (0, 0, 0, 0)
    assert table["uniform"].recall is None
    assert result("five", "No hoop in view.", outcome="none").is_right


def test_footage_that_is_not_described_has_recall_alone() -> None:
    table = tabulate([result("one", text=None, events=[Event("net", 2)], frames=6)], {})
    row = table.groups["real"][PAPER_SAMPLER]
    assert row.sentences is None and row.recall is not None
    assert (row.recall.events.hits, row.recall.same_frame.hits, row.coverage) == (1, 0, 0.5)
    assert table.missing == {}


def test_ground_truth_validation_is_scored_per_variant_or_missing_with_the_reason(monkeypatch) -> None:
    results = [result("one", "Made shot"), result("one", "Made", variant="uniform")]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "rouge_score.rouge_scorer", None)
        without.delitem(sys.modules, "svrt.evaluation.truth", raising=False)
        without.delattr("svrt.evaluation.truth", raising=False)
        table = tabulate(results, {})
        assert "svrt[eval]" in table.missing["all terms"]
        sentences = table.groups["real"]["uniform"].sentences
        assert sentences is not None and sentences.truth is None
    truth = pytest.importorskip("svrt.evaluation.truth")
    table = tabulate(results, {})
    same, other = (table.groups["real"][name].sentences for name in ("uniform", PAPER_SAMPLER))
    assert same is not None and other is not None and same.truth is not None and other.truth is not None
    assert same.truth.terms["rouge_l"].mean == 1.0 > other.truth.terms["rouge_l"].mean
    assert set(same.truth.terms) | set(table.missing) == set(truth.TERMS)
    assert (same.truth.total is None) == bool(table.missing), "a sum of five needs five"
    assert same.truth.gain.mean == pytest.approx(same.truth.of_present.mean - other.truth.of_present.mean)


def measured(table: Table) -> dict[str, Measured]:
    return table.groups["real"]


def test_the_papers_sampler_loses_where_the_whole_interval_of_the_difference_is_above_zero() -> None:
    net = [Event("net", 4)]
    keyframes = {PAPER_SAMPLER: [4, 1], "better": [4, 5], "worse": [1, 1], "alike": [4, 1], "fewer": [4]}
    results = []
    for name, chosen in keyframes.items():
        for clip in range(20):
            shown = [1, 1] if name == PAPER_SAMPLER and clip % 2 else chosen
            shown = [1, 1] if name == "alike" and clip % 2 else shown
            results.append(result(str(clip), variant=name, events=net, keyframes=shown))
    found = compare(measured(tabulate(results, {})), GAINS["event recall"])
    assert found == {"loses to": ["better"], "beats": ["worse"]}, "one is alike, and another K is not compared"
    no_events = tabulate([result("one"), result("one", variant="uniform")], {})
    assert compare(measured(no_events), GAINS["event recall"]) is None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    export(read_recipe(str(write_system(folder))), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def rim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder of one validation clip and one that is not for validation."""
    folder = tmp_path_factory.mktemp("rim")
    (folder / "val").mkdir()
    write_video(folder / "val" / "a.mp4", moving_ball(40))
    row = {"file": "val/a.mp4", "split": "val", "outcome": "miss", "entry": "left", "contact": "rim", "exit": "right"}
    with (folder / "labels.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*row, "caption"], delimiter="\t")
        table.writeheader()
        table.writerow({**row, "caption": "It hits the rim."})
        table.writerow({**row, "caption": "Absent.", "split": "train", "file": "train/absent.mp4"})
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run the command; gives what it wrote to stdout and stderr."""

    def run(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["ablate", *map(str, arguments)])
        try:
            ablate.main()
        finally:
            wrote = capsys.readouterr()
            run.error = wrote.err  # type: ignore[attr-defined]
        return wrote.out, wrote.err

    return run


def test_the_command_reports_and_goes_on_where_it_stopped(bundle, rim, command, tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    write_video(videos / "serve.mp4", moving_ball(40))
    arguments = ("--bundle", bundle, "--rim", rim, "--rendered", 1, "--out", out, "--clips", videos)
    whole, tried = trial.try_variants, []

    def interrupted(pipeline, clip, wanted):
        if len(tried) == 2:
            raise KeyboardInterrupt
        tried.append(clip.group)
        return whole(pipeline, clip, wanted)

    monkeypatch.setattr(trial, "try_variants", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 130
    tried.clear()
    text, progress = command(*arguments)
    assert tried == [REAL], "two rendered clips were kept"
    assert "3/3 real: val/a.mp4" in progress
    assert text == (out / "results.md").read_text()
    assert "Run by sampler: onnxruntime cpu, encoder: onnxruntime cpu, decoder: llama.cpp CPU." in text
    assert "| dwt-vgg16-lda |" in text and "## rendered, 2 s: 1 clips" in text

    monkeypatch.setattr(trial, "try_variants", never)
    (sheet,) = (out / "footage").glob("*/serve.mp4.png")
    written = sheet.stat().st_mtime_ns
    again, _ = command(*arguments, "--json")
    assert sheet.stat().st_mtime_ns == written, "a sheet that is there stays"
    groups = json.loads(again)["groups"]
    assert json.loads(again)["backends"]["sampler"] == "onnxruntime cpu"
    assert list(groups) == ["rendered, 2 s", "rendered, 1 to 2 s", "real"]
    assert groups["real"]["uniform"]["recall"] is None
    assert groups["rendered, 1 to 2 s"]["uniform"]["sentences"] is None
    assert groups["rendered, 2 s"]["uniform, K = 8"]["coverage"] == pytest.approx(24 / 60)
    assert {"/clips.jsonl", "/footage/"} <= set((out / ".gitignore").read_text().split())
    for picture in (*(out / f"{name}.png" for name in ("variants", "keyframes", "level", "sample")), sheet):
        assert cv2.imread(str(picture)) is not None, picture


def test_a_sheet_shows_the_described_keyframes_above_uniform_ones(bundle, clip) -> None:
    with Pipeline(Bundle.load(bundle)) as pipeline:
        sheet = beside_uniform(pipeline, clip)
    height = sheet.shape[0] // 2
    assert sheet.shape[1] > 8 * 200
    assert not np.array_equal(sheet[28:height], sheet[height + 28 :]), "40 frames leave the sampler a choice"


def test_a_clip_that_is_missing_is_said_before_any_work(rim, command, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "labels.tsv").write_text((rim / "labels.tsv").read_text())
    with pytest.raises(SystemExit):
        command("--bundle", tmp_path, "--rim", tmp_path, "--out", tmp_path / "out")
    assert "a.mp4: cannot be read" in command.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rim", "{tmp}/nowhere"], "labels.tsv: cannot be read"),
        (["--clips", "{tmp}/nowhere"], "cannot be listed"),
        (["--clips", "{tmp}"], "holds no video"),
        (["--rendered", "0"], "give 1 or more"),
        ([], "not a bundle"),
    ],
)
def test_what_a_user_can_mend_is_one_line(arguments, complaint, command, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        command("--bundle", tmp_path / "none", "--out", tmp_path / "out", *given)
    assert stopped.value.code == 2
    assert complaint in command.error
    assert command.error.count("\n") == 1


def test_without_matplotlib_the_command_says_so_before_any_work(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        command("--bundle", tmp_path, "--out", tmp_path / "out")
    assert "pip install 'svrt[bench]'" in command.error
