"""`svrt bench growth`: shapes are told apart, what is flat is called flat, and a measurement that stops goes on."""

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from small_system import write_system
from svrt.benchmarks import growth, growth_report, harness
from svrt.benchmarks.exponent import exponent
from svrt.benchmarks.growth import CLIPS, LENGTH, RATE, RESOLUTION, Growth, Point, Sample, Sizes, grow, write_clip
from svrt.benchmarks.growth_report import findings, markdown, page, result
from svrt.benchmarks.samples import STAGES
from svrt.benchmarks.verdict import FAIL, INCONCLUSIVE, PASS
from svrt.cli import app
from svrt.errors import OutputError, SvrtError
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from test_bench import Page
from typer.testing import CliRunner

X = [2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]
SMALL = Sizes(lengths_s=(0.5, 1.0), resolutions=((64, 48),), rates=(20,), clips=3, runs=1)


def samples(curve, noise=0.03, count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [[float(curve(x) * np.exp(rng.normal(0, noise))) for _ in range(count)] for x in X]


@pytest.mark.parametrize("constant", [0.0, 50.0, 1600.0])
@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
def test_a_power_is_found_beside_any_constant(constant, power):
    exact = exponent(X, samples(lambda x: constant + 20 * x**power, noise=0.0))
    assert exact.value == pytest.approx(power, abs=0.03)
    noisy = exponent(X, samples(lambda x: constant + 20 * x**power))
    assert noisy.low - 0.1 <= power <= noisy.high + 0.1 and noisy.high - noisy.low < 0.5


def test_what_does_not_grow_has_no_exponent():
    found = exponent(X, samples(lambda x: 1600.0 + 0.05 * x))
    assert found.value == found.high == 0.0 and found.factor < 1.25
    assert exponent(X[:3], [[1.0]] * 3) is None


def made(axis=LENGTH, whole=lambda x: 1600 + 20 * x, memory=lambda x: 500.0, x=X, noise=0.0):
    """A measurement of one axis whose times and memory follow given curves; decoding is what grows."""
    rng, found = np.random.default_rng(1), []
    for place in x:
        ms = [float(whole(place) * np.exp(rng.normal(0, noise))) for _ in range(3)]
        steps = {stage: [100.0] * 3 for stage in STAGES} | {"decode": [one - 500.0 for one in ms], "whole": ms}
        found.append(Sample(Point(axis, place), "a" * 64, "auto", steps, [memory(place)] * 3, {"encoder": "stand-in"}))
    surroundings = {"board": None, "processor": "stand-in"}
    return Growth(growth.SCHEMA, "2026-01-01T00:00:00+00:00", "0", "pocket", "a" * 64, {}, surroundings, found)


@pytest.mark.parametrize(
    ("case", "verdict", "about"),
    [
        (made(), PASS, None),
        (made(noise=0.03), PASS, None),
        (made(whole=lambda x: 1600.0), PASS, None),
        (made(whole=lambda x: 1600 + x**1.5), FAIL, "whole against length"),
        (made(whole=lambda x: 1600 + 0.1 * x**2), FAIL, "decode against length"),
        (made(whole=lambda x: 1600 + 300 * np.log(x)), PASS, None),
        (made(memory=lambda x: 500 + 0.1 * x), FAIL, "peak memory against length"),
        (made(RESOLUTION, memory=lambda x: 500 + 30 * x), PASS, None),
        (made(RESOLUTION, memory=lambda x: 500 + x**1.6), FAIL, "peak memory against resolution"),
        (made(CLIPS, x=[1, 10, 20, 100, 1000], memory=lambda x: 480 if x < 20 else 500 + x / 100), PASS, None),
        (made(CLIPS, x=[1, 10, 20, 100, 1000], memory=lambda x: 500 + x / 50), FAIL, "peak memory against clips"),
        (made(x=X[:2]), INCONCLUSIVE, "whole against length: cannot be told"),
    ],
)
def test_the_verdict_is_of_the_step_that_grows(case, verdict, about):
    found = findings(case)
    assert result(found) == verdict, [(one.step, one.verdict, one.exponent) for one in found]
    if about:
        assert any(about in line for line in growth_report.head_lines(found))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    recipe = write_system(tmp_path_factory.mktemp("system"))
    return export(read_recipe(str(recipe)), tmp_path_factory.mktemp("bundles") / "b")


@pytest.fixture(scope="module")
def measured(bundle, tmp_path_factory):
    """A real measurement, interrupted after its second point, and gone on with."""
    folder, done = tmp_path_factory.mktemp("grown"), []

    def interrupt(line):
        done.append(line)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(bundle, folder, "onnxruntime", SMALL, interrupt)
    with (folder / growth.LOG).open("a") as log:
        log.write('{"torn')
    return grow(bundle, folder, "onnxruntime", SMALL, done.append), folder, done


def test_every_point_is_measured_once_though_it_was_interrupted(measured, bundle, monkeypatch):
    found, folder, _ = measured
    assert [one.point for one in found.samples] == SMALL.points()
    assert len((folder / growth.LOG).read_text().splitlines()) == len(SMALL.points())
    monkeypatch.setattr(growth, "measure", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(growth, "make_ready", lambda *_: pytest.fail("loaded for nothing"))
    assert grow(bundle, folder, "onnxruntime", SMALL).samples == found.samples
    assert sorted(path.name for path in folder.iterdir()) == [growth.LOG]  # no clip is left


def test_what_only_the_first_use_does_is_no_part_of_the_first_point(bundle, tmp_path, monkeypatch):
    done = []

    def measure(*_, **__):
        done.append("measured")
        raise KeyboardInterrupt

    monkeypatch.setattr(growth, "make_ready", lambda *_: done.append("ready"))
    monkeypatch.setattr(growth, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        growth.grow(bundle, tmp_path)
    assert done == ["ready", "measured"]


def test_figures_are_those_of_real_runs(measured):
    found, _, _ = measured
    for one in found.samples:
        assert set(one.ms) == {"whole", *STAGES} and min(map(min, one.ms.values())) > 0
        assert sum(one.ms[stage][0] for stage in STAGES) <= one.ms["whole"][0]
        assert 20 < one.peak_rss_mib[0] < 4000
    many = found.of(CLIPS)
    assert [one.point.x for one in many] == [1, 2, 3]
    assert many[0].ms["whole"][0] < many[1].ms["whole"][0] < many[2].ms["whole"][0]
    assert [curve.title for curve in found.curves()] == ["length", "resolution", "rate", "number of clips"]


def test_what_is_written_reads_back_and_joins_the_benchmark_of_the_same_bundle(measured, tmp_path):
    found, _, _ = measured
    growth_report.write(found, tmp_path)
    assert growth.read_growth(tmp_path / growth.JSON) == found
    assert growth.curves_in(tmp_path, found.bundle_sha256) == found.curves()
    assert growth.curves_in(tmp_path, "another") == growth.curves_in(tmp_path / "empty", found.bundle_sha256) == []
    values = json.loads((tmp_path / growth.JSON).read_text())
    (tmp_path / growth.JSON).write_text(json.dumps(values | {"samples": 3}))
    with pytest.raises(SvrtError, match="measure again"):
        growth.read_growth(tmp_path / growth.JSON)


@pytest.mark.parametrize("case", ["real", "hostile"])
def test_the_page_is_one_file_and_markdown_is_tables(measured, case):
    found = measured[0] if case == "real" else replace(made(), bundle="<script>alert(1)</script>")
    seen = Page()
    seen.feed(page(found))
    assert seen.open == [] and seen.addresses == [] and "script" not in seen.tags
    assert seen.tags.count("svg") == 4 * len(found.curves())
    tables = markdown(found).split("\n\n")
    assert any(block.startswith("| against | what |") for block in tables)
    assert "None" not in markdown(found) and "nan" not in markdown(found)


def test_a_folder_of_something_else_is_refused(bundle, tmp_path):
    (tmp_path / growth.LOG).write_text('{"a": 1}\n')
    with pytest.raises(OutputError, match="not of svrt bench growth"):
        grow(bundle, tmp_path, sizes=SMALL)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="give another --out"):
        grow(bundle, tmp_path / "file", sizes=SMALL)


@pytest.mark.parametrize("point", [Point(RATE, 240, fps=240, seconds=0.5), Point(RESOLUTION, 0.1, 400, 224)])
def test_a_points_clip_is_what_the_point_says(tmp_path, point):
    capture = cv2.VideoCapture(str(write_clip(tmp_path, point)))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(point.fps)
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (
        point.width,
        point.height,
    )
    frames = 0
    while capture.grab():
        frames += 1
    assert frames == round(point.fps * point.seconds)
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_the_whole_plan_spans_what_was_asked():
    points = Sizes().points()
    spans = {axis: [one.x for one in points if one.axis == axis] for axis in growth.UNITS}
    assert (min(spans[LENGTH]), max(spans[LENGTH])) == (2, 600)
    assert (min(spans[RATE]), max(spans[RATE])) == (24, 240)
    assert (min(spans[CLIPS]), max(spans[CLIPS])) == (1, 1000) and 20 in spans[CLIPS]
    assert {one.height for one in points if one.axis == RESOLUTION} >= {360, 2160}
    assert all(json.dumps(asdict(one)) for one in points)


def test_the_command_writes_its_report_and_exits_by_the_verdict(measured, bundle, tmp_path, monkeypatch):
    found, _, _ = measured
    steady = [replace(one, ms={step: [100.0] for step in one.ms}, peak_rss_mib=[500.0]) for one in found.samples]
    (tmp_path / growth.LOG).write_text("".join(json.dumps(asdict(one)) + "\n" for one in steady))
    points = SMALL.points()
    monkeypatch.setattr(Sizes, "points", lambda _: points)
    monkeypatch.setattr(growth, "measure", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(growth, "make_ready", lambda *_: pytest.fail("loaded for nothing"))
    command = ["bench", "growth", "--bundle", str(bundle.path), "--out", str(tmp_path), "--backend", "onnxruntime"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 3, done.output  # of so few points nothing can be told
    assert "INCONCLUSIVE" in done.output and "peak memory" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {"growth.jsonl", "growth.json", "growth.html", "growth.md"}
    printed = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(printed.stdout)["figures"]["verdict"] == INCONCLUSIVE


def test_curves_that_cannot_be_read_are_refused_before_a_benchmark_and_not_after(bundle, tmp_path, monkeypatch):
    (tmp_path / growth.JSON).write_text("{")
    monkeypatch.setattr(harness, "make_ready", lambda *_: pytest.fail("something was run"))
    command = ["bench", "--bundle", str(bundle.path), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, SvrtError) and "growth.json" in str(done.exception)


def test_what_another_svrt_or_machine_measured_is_measured_again(measured, bundle, monkeypatch):
    _, folder, _ = measured
    monkeypatch.setattr(growth, "_here", lambda _: "svrt 99, a faster machine")
    monkeypatch.setattr(growth, "make_ready", lambda *_: None)

    def measure(*_, **__):
        raise KeyboardInterrupt  # it begins to

    monkeypatch.setattr(growth, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        grow(bundle, folder, "onnxruntime", SMALL)
