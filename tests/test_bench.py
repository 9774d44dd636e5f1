"""`svrt bench`: figures come from samples, verdicts admit what they do not know, comparisons are honest."""

import io
import json
import re
import sys
import time
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import moving_ball, write_video
from small_report import MS, small_report
from small_system import write_system
from svrt.benchmarks import bench, harness, memory, repeat, worker
from svrt.benchmarks.compare import compare
from svrt.benchmarks.energy import Meter
from svrt.benchmarks.environment import environment, l4t
from svrt.benchmarks.figures import figures
from svrt.benchmarks.harness import Job, measure
from svrt.benchmarks.markdown import comparison_markdown, markdown
from svrt.benchmarks.page import page
from svrt.benchmarks.power import Reading
from svrt.benchmarks.samples import SCHEMA, STAGES, Curve, Power, read_report
from svrt.benchmarks.statistics import STATISTICS, interval, median, percentile, ratio, stats
from svrt.benchmarks.verdict import parse_limits, verdict
from svrt.benchmarks.worker import Task
from svrt.cli import app
from svrt.errors import BundleError, ClipError, OutputError, SvrtError
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from svrt.runtime.pipeline import BundleName, Description, Timings, TokenCounts
from typer.testing import CliRunner


class Steady:
    """A power sensor that always says 7 W."""

    method, rail = "stand-in", "VDD_TEST"
    closed = False

    def read(self):
        return Reading(7.0)

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{n}.mp4", moving_ball(n, 64, 48)) for n in (20, 30)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    recipe = write_system(tmp_path_factory.mktemp("system"))
    return export(read_recipe(str(recipe)), tmp_path_factory.mktemp("bundles") / "b")


@pytest.fixture(scope="module")
def measured(bundle, clips):
    """A real benchmark of the small system: two processes, 2 runs of two clips, and a sensor of 7 W."""
    sensor = Steady()
    report = measure(Job(bundle, clips, runs=2, limits={"p99_ms": 1e6}), meter=Meter(reader=sensor))
    assert sensor.closed
    return report


# What is measured


def test_each_process_is_cold_once_and_clips_take_turns(measured):
    assert len(measured.processes) == len(measured.cold()) == 2
    assert [run.clip for run in measured.cold()] == [0, 1]
    assert [run.clip for run in measured.runs if run.process == 1] == [1, 1, 0]
    assert [len(measured.warm(clip)) for clip in (0, 1)] == [2, 2]
    for process, after in zip(measured.processes, measured.processes[1:], strict=False):
        assert process.start_s < process.imported_s < process.loaded_s < process.stop_s <= after.start_s
    for run in measured.runs:
        process = measured.processes[run.process]
        assert process.loaded_s <= run.start_s < run.stop_s <= process.stop_s
        assert 0 < run.first_token_ms <= run.whole_ms


def test_the_stages_are_the_whole_within_3_percent(measured):
    assert figures(measured).other_share <= 0.03
    assert all(run.other_ms >= 0 for run in measured.runs)


def test_memory_is_of_the_process_that_described(measured):
    found = figures(measured).memory
    assert 50 < max(v for v in measured.memory.rss_mib if v is not None) <= found.peak_rss_mib * 1.01
    assert measured.memory.rss_mib[0] is None, "before the first process there is none"


def test_energy_is_the_sensors_power_times_the_time(measured):
    assert (measured.power.method, measured.power.rail) == ("stand-in", "VDD_TEST")
    assert measured.power.idle_w == pytest.approx(7.0)
    for run, energy in zip(measured.runs, measured.power.runs, strict=True):
        if energy.gross_j is not None:  # a run shorter than a period may hold no sample
            assert energy.gross_j == pytest.approx(7.0 * run.whole_ms / 1e3, rel=1e-6)
            assert energy.above_idle_j == pytest.approx(0.0, abs=1e-6)


def test_without_a_sensor_energy_is_null_and_says_why(bundle, clips, tmp_path):
    report = measure(Job(bundle, clips[:1], runs=1), meter=Meter(root=tmp_path))
    bench.write(report, tmp_path)
    written = json.loads((tmp_path / bench.JSON).read_text())
    assert written["figures"]["energy"] is None and written["power"]["watts"] == []
    assert "no power sensor: " in written["power"]["note"] and len(written["power"]["note"]) > 30
    for text in (markdown(report), page(report)):
        assert "no power sensor" in text


def test_a_process_goes_on_until_its_rounds_are_done_and_its_time_is_over(monkeypatch):
    class Pipeline:
        """Takes 10 ms a clip, and prints."""

        backends: ClassVar = {"decoder": "stand-in"}

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def describe(self, clip, on_text):
            time.sleep(0.01)
            on_text("Made")
            timings = Timings(1.0, 2.0, 3.0, 1.0, 3.0, 10.0)
            return Description(clip, "Made", None, [], timings, TokenCounts(1, 1, 1), BundleName("b", "c"), {})

    monkeypatch.setattr("svrt.runtime.pipeline.Pipeline", Pipeline)
    monkeypatch.setattr("svrt.seal.load", lambda *_: None)

    def events(rounds, seconds):
        said = io.StringIO()
        worker.perform(Task("b", ["0", "1", "2"], "auto", 1, rounds, time.monotonic() + seconds), said)
        return [json.loads(line) for line in said.getvalue().splitlines()]

    counted = events(2, 0.0)
    assert [e["event"] for e in counted] == ["ready", *["run"] * 7, "end"]
    runs = counted[1:-1]
    assert [(e["clip"], e["cold"]) for e in runs] == [(1, True), *[(c, False) for c in (1, 2, 0, 1, 2, 0)]]
    assert all(set(e["stages_ms"]) == set(STAGES) and e["first_token_ms"] >= 10 for e in runs)
    timed = events(0, 0.3)
    assert timed[-2]["stop"] - timed[1]["start"] >= 0.25 and len(timed) > 8


def test_what_only_the_first_use_does_is_done_before_anything_is_measured(monkeypatch):
    loaded = []

    class Pipeline:
        backends: ClassVar = {}

        def __init__(self, *arguments, **_):
            loaded.append(arguments[1])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("svrt.runtime.pipeline.Pipeline", Pipeline)
    monkeypatch.setattr("svrt.seal.load", lambda *_: None)
    said = io.StringIO()
    worker.perform(Task("b", [], "auto", 0, 0, 0.0), said)
    assert loaded == ["auto"] and [json.loads(line)["event"] for line in said.getvalue().splitlines()] == ["ready"]


def test_a_bundle_that_does_not_load_is_told_before_anything_is_measured(bundle, tmp_path):
    harness.make_ready(bundle, "auto")
    (tmp_path / "b").mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        harness.make_ready(replace(bundle, path=tmp_path / "b"), "auto")


def test_what_a_process_cannot_read_is_said_as_describe_says_it(bundle, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ClipError, match=r"text\.mp4: not a video"):
        measure(Job(bundle, [tmp_path / "text.mp4"], runs=1))
    broken = replace(bundle, path=tmp_path / "gone")
    clip = write_video(tmp_path / "clip.mp4", moving_ball(4, 64, 48))
    with pytest.raises(SvrtError, match="gone: not a bundle"):
        measure(Job(broken, [clip], runs=1))


def test_a_process_that_dies_is_told_with_its_last_words(bundle, clips, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SvrtError, match="a process of the benchmark ended with status 1"):
        measure(Job(bundle, clips[:1], runs=1))


def test_a_job_shares_its_runs_among_the_processes(bundle):
    job = Job(bundle, [Path("a"), Path("b")], runs=17)
    tasks = [job.task(index, 100.0) for index in range(job.processes)]
    assert [task.rounds for task in tasks] == [4, 4, 3, 3, 3]
    assert [task.first for task in tasks] == [0, 1, 0, 1, 0]
    assert job.total == 5 + 17 * 2
    assert all(task.until == 100.0 for task in tasks)
    timed = Job(bundle, [Path("a")], runs=5, minutes=10.0)
    assert [timed.task(index, 100.0).until for index in range(5)] == [220.0, 340.0, 460.0, 580.0, 700.0]


def test_gpu_memory_is_nvmls_or_null_with_a_reason():
    class Library:
        """Answers as nvml.h says; `shared` as on a Jetson."""

        def __init__(self, shared):
            self.shared = shared

        def nvmlInit_v2(self):  # noqa: N802
            return 0

        def nvmlDeviceGetHandleByIndex_v2(self, index, device):  # noqa: N802
            return 0

        def nvmlDeviceGetMemoryInfo(self, device, info):  # noqa: N802
            info._obj.used = 3 * 2**30
            return 3 if self.shared else 0

        def nvmlDeviceGetName(self, device, name, size):  # noqa: N802
            name.value = b"Board"
            return 0

    def absent():
        raise OSError

    assert memory.GpuMemory(lambda: Library(False)).read() == 3072
    assert memory.GpuMemory(lambda: Library(False)).what == "NVML, all programs on Board"
    shared = memory.GpuMemory(lambda: Library(True))
    assert shared.read() is None and "MemAvailable" in shared.what
    none = memory.GpuMemory(absent)
    assert none.read() is None and none.what == "none: no NVIDIA driver here"


def test_the_environment_of_an_orin_is_read_from_its_files(tmp_path):
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "proc/meminfo": "MemTotal:        7802880 kB\nSwapTotal: 0 kB\n",
        "proc/cpuinfo": "processor : 0\nCPU part\t: 0xd42\n",
        "usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.68"}}',
        "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    said = {"nvpmodel": "NV Power Mode: MAXN_SUPER\n2\n"}
    found = environment(tmp_path, lambda command: said.get(command[0]))
    assert found["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (found["l4t"], found["cuda"], found["power_mode"]) == ("36.4.3", "12.6.68", "MAXN_SUPER")
    assert found["processor"] == "Cortex-A78AE" and found["memory_mib"] == 7620
    assert found["clocks"]["gpu gpu"] == {"cur": 306.0, "min": None, "max": 1020.0, "governor": None}
    assert found["clocks"]["cpu policy0"]["governor"] == "schedutil"
    assert found["gpu"] is None and found["kernel"] is None


def test_a_machine_that_says_nothing_is_recorded_as_unknown(tmp_path):
    found = environment(tmp_path, lambda _: None)
    assert {k for k, v in found.items() if v is not None} == {"cores", "architecture", "clocks"}
    assert l4t("garbage") is None and l4t(None) is None


# Figures


def test_percentiles_are_numpys_median_and_nearest_rank():
    values = np.random.default_rng(0).lognormal(size=137)
    assert median(values) == np.percentile(values, 50)
    for share in (0.90, 0.95, 0.99):
        assert percentile(share)(values) == np.percentile(values, share * 100, method="inverted_cdf")
    assert STATISTICS["p99"](values[:99]) == values[:99].max()
    assert STATISTICS["p90"](np.arange(1.0, 11.0)) == 9.0


def test_every_figure_is_computed_from_the_samples():
    report = small_report(runs=7, power=True)
    found, warm = figures(report), report.warm()
    for stage in STAGES:
        values = [run.stages_ms[stage] for run in warm]
        assert found.warm[stage].n == len(values) == 35
        assert found.warm[stage].p50 == np.median(values)
        assert (found.warm[stage].min, found.warm[stage].max) == (min(values), max(values))
        assert found.warm[stage].p99 in values
    whole = [run.whole_ms for run in warm]
    assert found.warm["other"].p50 == pytest.approx(1.0)
    assert found.clips_per_s == pytest.approx(1e3 / np.mean(whole))
    assert found.tokens_per_s.p50 == pytest.approx(np.median([22e3 / run.stages_ms["generate"] for run in warm]))
    assert found.memory.peak_rss_mib == 579.0 and found.memory.available_drop_mib == 300.0
    assert found.cold.imports.p50 == pytest.approx(500) and found.cold.loading.p50 == pytest.approx(290)
    first = report.cold()[0]
    assert min(found.cold.whole.max, 800 + first.whole_ms) <= found.cold.whole.max
    joules = [e.gross_j for run, e in zip(report.runs, report.power.runs, strict=True) if not run.cold]
    assert found.energy.joules_per_clip.p50 == np.median(joules)
    assert found.energy.joules_per_token.p50 == pytest.approx(np.median(joules) / 22)


def test_an_outlier_is_kept():
    report = small_report()
    runs = list(report.runs)
    runs[7] = replace(runs[7], stop_s=runs[7].stop_s + 60.0)
    found = figures(replace(report, runs=runs)).warm["whole"]
    assert found.n == 20 and found.max == found.p99 > 60_000 > 2 * found.p90


def test_one_process_or_one_sample_gives_figures_without_a_false_interval():
    assert stats([]) is None and stats([[]]) is None
    one = stats([[[5.0]]])
    assert (one.n, one.p50) == (1, 5.0) and (one.low, one.high) == pytest.approx((5.0, 5.0))
    low, high = interval([[[1.0, 2.0, 3.0]], [[2.0, 3.0, 4.0]]], median)
    assert 0 < low < 1 and high > 4, "two processes say little of a third, but time is above 0"


# Verdict


def judged(report, *limits):
    return verdict(replace(report, limits=parse_limits(limits)))


def test_pass_fail_and_inconclusive_follow_the_interval():
    report = small_report(runs=10)
    found = figures(report).warm["whole"]
    assert judged(report, "p50_ms=3000", "max_ms=3000", "tokens_per_s=100").result == "PASS"
    failed = judged(report, "p50_ms=1000", "p99_ms=3000")
    assert failed.result == "FAIL" and failed.reasons[0].startswith("p50_ms is ")
    wide = judged(report, f"p50_ms={found.p50}", "max_ms=3000")
    assert wide.result == "INCONCLUSIVE" and "spread is too wide" in wide.reasons[0]
    assert judged(report, f"tokens_per_s={22e3 / MS['generate'] * 2}").result == "FAIL"
    assert judged(report, "sample.p90_ms=3000", "first_token.p50_ms=3000", "cold.p50_ms=4000").result == "PASS"
    assert judged(report, "peak_rss_mib=500").result == "FAIL"


@pytest.mark.parametrize(("name", "needed"), [("p90_ms", 36), ("p95_ms", 72), ("sample.p99_ms", 368)])
def test_few_runs_do_not_vouch_for_a_high_percentile(name, needed):
    """The slowest of them may well be faster than it, and no draw of them is slower than that."""
    few, enough = (small_report(processes=1, runs=runs) for runs in (needed - 1, needed))
    found = judged(few, f"{name}=9000")
    assert found.result == "INCONCLUSIVE" and f"of {needed - 1} samples; {needed} are the least" in found.reasons[0]
    assert judged(enough, f"{name}=9000").result == "PASS"
    assert judged(few, f"{name}=1").result == "FAIL"  # that it is beyond, few can tell


def test_a_figure_of_few_samples_is_no_pass_however_many_runs_there_were():
    report = small_report(processes=3, runs=10)
    assert judged(report, "cold.p50_ms=9000").result == "INCONCLUSIVE"
    assert judged(small_report(processes=5, runs=10), "cold.p50_ms=9000").result == "PASS"


@pytest.mark.parametrize("clips", [1, 2, 3, 5])
def test_cold_times_of_one_build_do_not_differ_however_many_clips_share_the_processes(clips, tmp_path):
    rng, seen = np.random.default_rng(4), 0
    for _ in range(40):
        reports = []
        for side in "ab":
            report = small_report(clips=clips, processes=5, runs=2)
            slower = rng.normal(1, 0.05, len(report.processes))
            runs = [
                replace(run, stop_s=run.start_s + (run.stop_s - run.start_s) * slower[run.process]) if run.cold else run
                for run in report.runs
            ]
            path = tmp_path / f"{side}.json"
            path.write_text(json.dumps(asdict(replace(report, runs=runs))))
            reports.append(path)
        seen += next(row for row in compare(*reports).rows if row.stage == "cold").seen
    assert seen <= 4, seen


@pytest.mark.parametrize("limit", ["p50_ms=1000", "p50_ms=3000"])
def test_a_board_that_throttled_is_inconclusive_whatever_the_times(limit):
    report = small_report(disturbed=["oc3 instantaneous over-current: 4 events during the run"])
    found = judged(report, limit)
    assert found.result == "INCONCLUSIVE" and found.reasons == report.disturbed


def test_few_runs_and_figures_that_were_not_measured_are_inconclusive():
    assert judged(small_report(processes=2, runs=2), "p50_ms=9000").result == "INCONCLUSIVE"
    found = judged(small_report(), "joules_per_clip=9000")
    assert found.result == "INCONCLUSIVE" and "not measured: no power sensor: stand-in" in found.reasons[0]
    assert judged(small_report(), "gpu_mib=9000").result == "INCONCLUSIVE"
    assert judged(small_report(power=True), "joules_per_clip=9000").result == "PASS"
    none = verdict(small_report())
    assert none.result is None and none.reasons == ["no limit was given"]


@pytest.mark.parametrize(
    "text", ["p98_ms=3", "p99_ms", "p99_ms=soon", "p99_ms=-1", "p99_ms=nan", "dream.p50_ms=3", "=3"]
)
def test_a_limit_that_nothing_measures_is_refused(text):
    with pytest.raises(SvrtError, match="--limit"):
        parse_limits([text])


# Comparison


def written(report, path):
    path.mkdir()
    bench.write(report, path)
    return path / bench.JSON


def test_a_slower_build_is_seen_and_the_same_build_is_not(tmp_path):
    a, same = written(small_report(1), tmp_path / "a"), written(small_report(2), tmp_path / "b")
    slower = written(small_report(3, slower=1.3), tmp_path / "c")
    rows = {row.stage: row for row in compare(a, same).rows}
    assert rows["whole"].verdict == "no difference seen" and rows["whole"].low < 1 < rows["whole"].high
    found = compare(a, slower)
    rows = {row.stage: row for row in found.rows}
    assert rows["whole"].low < 1.3 < rows["whole"].high and rows["whole"].low > 1
    assert re.fullmatch(r"B is [\d.]+% to [\d.]+% slower", rows["whole"].verdict)
    assert "| whole |" in comparison_markdown(found)


@pytest.mark.parametrize(("between", "trend"), [(0.02, 0.0), (0.08, 0.0), (0.0, 0.05)])
def test_the_same_build_differs_by_less_than_the_interval_19_times_in_20(between, trend):
    """200 pairs of benchmarks of one build, whose processes differ, or whose machine drifts from run to run."""
    rng, missed, pairs = np.random.default_rng(5), 0, 200

    def one():
        groups = []
        for _ in range(5):
            drift = np.cumsum(rng.normal(0, trend / 2, 4)) if trend else np.zeros(4)
            log = rng.normal(0, between) + drift + rng.normal(0, 0.03, 4)
            groups.append([np.exp(log).tolist()])
        return groups

    for _ in range(pairs):
        missed += ratio([(one(), one())]).seen
    assert missed <= 0.05 * pairs, missed


@pytest.mark.parametrize(("spread", "kept"), [(0.03, 0.9), (0.04, 0.98), (0.06, 0.99)])
def test_a_machine_that_drifts_over_minutes_does_not_make_a_build_differ_from_itself(spread, kept):
    """200 pairs in a row on a machine whose pace wanders by `spread` and keeps `kept` of it from run to run."""
    rng, missed, pairs = np.random.default_rng(6), 0, 200
    for _ in range(pairs):
        pace = [rng.normal(0, spread)]
        for _ in range(39):
            pace.append(kept * pace[-1] + rng.normal(0, spread * (1 - kept**2) ** 0.5))
        times = np.exp(np.array(pace) + rng.normal(0, 0.02, 40)).reshape(2, 5, 1, 4)
        missed += ratio([(times[0].tolist(), times[1].tolist())]).seen
    assert missed <= 0.05 * pairs, missed


def test_a_build_is_held_against_itself_as_often_as_asked(bundle, clips, tmp_path):
    found = list(repeat.repeat(bundle, clips[0], tmp_path, rounds=2, runs=2, backend="onnxruntime"))
    assert [path.name for path in sorted(tmp_path.glob("*/bench.json"))] == ["bench.json"] * 3
    assert [(one.a, one.b) for one in found] == [
        (str(tmp_path / str(k) / "bench.json"), str(tmp_path / str(k + 1) / "bench.json")) for k in range(2)
    ]
    rows = {row[0]: row[1:] for row in repeat.rows(found)}
    alike = sum(row.low <= 1 <= row.high for one in found for row in one.rows if row.stage == "whole")
    assert rows["whole"][0] == f"{alike} of 2"
    assert rows["cold"][0].endswith(" of 2") and rows["whole"][2].startswith("±")


def test_a_ratio_over_clips_is_the_geometric_mean():
    a, b = [[[10.0] * 4]] * 5, [[[20.0] * 4]] * 5
    found = ratio([(a, b), (b, b)])
    assert found.ratio == pytest.approx(2**0.5) and found.low == pytest.approx(found.high)


def test_a_side_of_one_process_cannot_be_compared(tmp_path):
    for name, processes in (("a", 1), ("b", 5)):
        (tmp_path / name).write_text(json.dumps(asdict(small_report(processes=processes, slower=processes))))
    rows = compare(tmp_path / "a", tmp_path / "b").rows
    assert {(row.verdict, row.seen) for row in rows} == {("cannot be compared", False)}


def test_options_before_a_subcommand_are_refused_and_not_passed_over():
    found = CliRunner().invoke(app, ["bench", "--bundle", "mine", "growth"])
    assert isinstance(found.exception, SvrtError) and "--bundle stands before growth" in str(found.exception)


def test_other_bundles_clips_or_files_are_refused_in_one_line(tmp_path):
    a = written(small_report(), tmp_path / "a")
    other = written(small_report(bundle_sha256="b" * 64), tmp_path / "b")
    clips = written(small_report(clips=2), tmp_path / "c")
    with pytest.raises(SvrtError, match="measure one bundle on both sides"):
        compare(a, other)
    with pytest.raises(SvrtError, match="give the same clips"):
        compare(a, clips)
    bad = tmp_path / "bad.json"
    for content, says in (("[", "not JSON"), ("[]", "schema None"), ('{"schema": 9}', "schema 9")):
        bad.write_text(content)
        with pytest.raises(SvrtError, match=says) as error:
            compare(a, bad)
        assert "\n" not in str(error.value) and str(bad) in str(error.value)
    with pytest.raises(SvrtError, match="No such file"):
        compare(a, tmp_path / "absent.json")


def test_what_differs_besides_time_is_said(tmp_path):
    changed = small_report(disturbed=["gpu: its clock sagged from 1020 to 612 MHz"], environment={"processor": "other"})
    found = compare(written(small_report(), tmp_path / "a"), written(changed, tmp_path / "b"))
    assert any("processor differs" in note for note in found.notes)
    assert "B was disturbed: gpu: its clock sagged from 1020 to 612 MHz" in found.notes


# What is written


def test_a_report_that_was_written_reads_back_whole(tmp_path, measured):
    for report in (measured, small_report(power=True, growth=[Curve("length", "s", [1.0], [2.0], [3.0])])):
        bench.write(report, tmp_path)
        again = read_report(tmp_path / bench.JSON)
        assert again == report and figures(again) == figures(report)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([bench.HTML, bench.JSON, bench.MARKDOWN])


def test_a_report_with_a_run_of_no_clip_is_refused(tmp_path):
    bench.write(small_report(), tmp_path)
    values = json.loads((tmp_path / bench.JSON).read_text())
    values["runs"][0]["clip"] = 7
    (tmp_path / bench.JSON).write_text(json.dumps(values))
    with pytest.raises(SvrtError, match=r"runs\[0\] is of a clip"):
        read_report(tmp_path / bench.JSON)
    assert values["schema"] == SCHEMA


class Page(HTMLParser):
    """Tags that are opened and closed in order, and every address a page names."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", ["power", "no power", "one run", "real"])
def test_the_page_is_one_file_that_needs_no_network(kind, measured):
    report = {
        "power": small_report(clips=2, power=True, growth=[Curve("length", "s", [1.0, 9.0], [2.0, 9.0], [3.0, 3.0])]),
        "no power": small_report(disturbed=["<script>alert(1)</script>"]),
        "one run": small_report(processes=1, runs=1),
        "real": measured,
    }[kind]
    text = page(report)
    found = Page()
    found.feed(text)
    assert found.open == [] and found.addresses == []
    assert not {"script", "link", "img", "iframe"} & set(found.tags) and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text and found.tags.count("svg") >= 10
    assert not re.search(r"\bnan\b|\bNone\b", text)


def test_a_hostile_name_stays_text():
    report = small_report()
    report = replace(report, clips=[replace(report.clips[0], name='<img src=x onerror="1">')])
    found = Page()
    found.feed(page(report))
    assert "img" not in found.tags


def test_markdown_is_tables_that_paste():
    text = markdown(replace(small_report(clips=2), limits={"p50_ms": 9000.0}))
    assert text.startswith("## svrt bench: pocket, stand-in\n\n**PASS**\n- kept: p50_ms is ")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| sample | 40 |" in text and "clip1.mp4" in text


def test_a_place_that_cannot_be_written_is_told_before_measuring(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="give another --out"):
        bench.check_writable(tmp_path / "file")
    bench.check_writable(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()


def test_power_without_samples_is_not_drawn_as_power():
    empty = Power("ina3221", "VDD_IN", "ina3221 gave 0 samples")
    assert "Not measured: ina3221 gave 0 samples" in page(replace(small_report(), power=empty))
