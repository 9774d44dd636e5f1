"""Readers on recorded trees: right totals with their method, and nothing where nothing was measured."""

import os
import shutil
import time

import numpy as np
import pytest
from power_trees import BOARDS, jetson, put, rail_file, spend, x86
from svrt.benchmarks.power import (
    Ina3221Reader,
    NoSensorError,
    NvmlReader,
    RaplReader,
    Reading,
    Recorder,
    find_reader,
    why_none,
)

TREES = [("nano", 5), ("nano", 6), ("nano", 7), ("nx", 5), ("nx", 6), ("nx", 7)]
TREES += [("agx", 5), ("agx", 6), ("agx", 7), ("thor", 7)]


@pytest.mark.parametrize(("board", "jetpack"), TREES)
def test_a_boards_total_is_right_and_names_its_rails(tmp_path, board, jetpack):
    rails, name, watts = BOARDS[board]
    reader = find_reader(jetson(tmp_path, board, jetpack))
    reading = reader.read()
    assert (reader.method, reader.rail) == ("ina3221", name)
    assert reading.watts == pytest.approx(watts, rel=1e-12)
    assert reading.joules is None
    assert set(reading.parts) == {label for label in rails if label != "NC"} | ({"VIN"} if board == "thor" else set())
    for label, (_, _, millivolts, milliamperes) in rails.items():
        if label != "NC":
            assert reading.parts[label] == pytest.approx(millivolts * milliamperes / 1e6, rel=1e-12)
    assert sorted(reading.temperatures_c.values()) == [43.406, 45.843, 45.843]  # the zone that fails is left out


def test_the_number_of_a_monitor_does_not_matter(tmp_path):
    root = jetson(tmp_path, "nx", 6)
    folder = rail_file(root, "VDD_IN").parent
    folder.rename(folder.with_name("hwmon11"))
    assert find_reader(root).read().watts == pytest.approx(BOARDS["nx"][2])


def test_agx_without_its_second_chip_says_so_in_the_name(tmp_path):
    root = jetson(tmp_path, "agx", 6)
    shutil.rmtree(root / "sys/bus/i2c/drivers/ina3221/1-0041")
    reader = find_reader(root)
    assert reader.rail == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert reader.read().watts == pytest.approx(23.524944 - 1.09)


@pytest.mark.parametrize("board", ["nx", "agx"])
@pytest.mark.parametrize("register", ["", "garbage", "12.5", "1_0", "\N{ARABIC-INDIC DIGIT THREE}", "9" * 30, "0x10"])
def test_garbage_in_a_register_is_no_total(tmp_path, board, register):
    root = jetson(tmp_path, board, 6)
    reader = find_reader(root)
    label = reader.rail.split(" + ")[-1]
    rail_file(root, label).write_text(register + "\n")
    reading = reader.read()
    assert reading.watts is None
    assert label not in reading.parts
    assert len(reading.parts) == len(BOARDS[board][0]) - 1 - (board == "agx")


def test_a_total_of_nothing_is_not_a_measurement(tmp_path):
    root = jetson(tmp_path, "nx", 6)
    reader = find_reader(root)
    put(rail_file(root, "VDD_IN"), 0)
    assert reader.read().watts is None
    put(rail_file(root, "VDD_IN"), 999_999_999)  # 5 MW
    assert reader.read().watts is None


def refuse(monkeypatch, part):
    """Let every file whose path holds `part` be forbidden, for root too."""
    open_ = os.open

    def refusing(path, *rest, **named):
        if part in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open_(path, *rest, **named)

    monkeypatch.setattr(os, "open", refusing)


def test_a_monitor_that_may_not_be_read_is_no_sensor_and_says_why(tmp_path, monkeypatch):
    root = jetson(tmp_path, "nx", 6)
    refuse(monkeypatch, "curr")
    with pytest.raises(NoSensorError, match="cannot be read: run as root"):
        Ina3221Reader(root)
    assert find_reader(root) is None
    assert "cannot be read: run as root" in why_none(root)


def test_a_monitor_that_is_forbidden_in_a_run_says_nothing_from_then_on(tmp_path, monkeypatch):
    reader = find_reader(jetson(tmp_path, "nx", 6))
    assert reader.read().watts is not None
    refuse(monkeypatch, "ina3221")
    assert reader.read() is None


def test_a_machine_without_sensors_has_no_reader_and_each_sensor_says_why(tmp_path):
    assert find_reader(tmp_path) is None
    said = why_none(tmp_path)
    assert "\n" not in said
    for word in ("INA3221", "tegrastats", "RAPL"):
        assert word in said


def counting(root, **named):
    """A RAPL reader whose counters move while it looks whether they do, and the clock it reads."""
    now = [100.0]
    reader = RaplReader(root, clock=lambda: now[0], sleep=lambda s: spend(root, "intel-rapl:0", 1.0), **named)
    return reader, now


def test_rapl_counts_over_the_end_of_its_counter(tmp_path):
    root = x86(tmp_path, range_uj=60_000_000)  # 60 J
    reader, now = counting(root)
    assert (reader.method, reader.rail) == ("rapl", "package-0 + package-0/dram")
    first = reader.read()
    assert (first.watts, first.joules) == (None, 1.0)
    for _ in range(20):  # 20 times 20 J: over the end six times
        now[0] += 0.5
        spend(root, "intel-rapl:0", 18.0)
        spend(root, "intel-rapl:0:1", 2.0)
        reading = reader.read()
        assert reading.watts == pytest.approx(40.0)
        assert reading.parts == pytest.approx({"package-0": 36.0, "package-0/core": 0.0, "package-0/dram": 4.0})
    assert reading.joules == pytest.approx(1.0 + 20 * 20)
    assert reading.seconds == 110.0


def test_rapl_adds_up_its_packages(tmp_path):
    reader, _ = counting(x86(tmp_path, packages=2, dram=False))
    assert reader.rail == "package-0 + package-1"


def test_rapl_that_stands_still_or_is_cut_off_gives_nothing(tmp_path):
    root = x86(tmp_path)
    with pytest.raises(NoSensorError, match="stands still"):
        RaplReader(root, sleep=lambda s: None)
    reader, now = counting(root)
    reader.read()
    now[0] += 1
    assert reader.read() is None  # nothing was used in a second: that cannot be
    put(root / "sys/class/powercap/intel-rapl:0/energy_uj", "garbage")
    now[0] += 1
    assert reader.read() is None
    put(root / "sys/class/powercap/intel-rapl:0/energy_uj", 10_000_000)  # 11 J on, over the end
    now[0] += 1
    assert reader.read().watts == pytest.approx(10.0 / 3, rel=1e-6)


def test_rapl_for_root_alone_says_how_to_be_let_in(tmp_path, monkeypatch):
    root = x86(tmp_path)
    refuse(monkeypatch, "energy_uj")
    with pytest.raises(NoSensorError, match=r"sudo chmod a\+r"):
        RaplReader(root)


class Gpus:
    """Stands in for NVML."""

    def __init__(self, names, milliwatts, millijoules=None):
        self._names, self._milliwatts, self._millijoules = names, milliwatts, millijoules

    def names(self):
        return self._names

    def milliwatts(self, device):
        return self._milliwatts[device]

    def millijoules(self, device):
        return None if self._millijoules is None else self._millijoules[device]

    def celsius(self, device):
        return 40 + device

    def close(self):
        pass


def test_nvml_adds_up_gpus_and_counts_their_energy(tmp_path):
    gpus = Gpus(["NVIDIA L4", "NVIDIA L4"], [30_000, 31_500], [5_000, 7_000])
    reader = find_reader(tmp_path, nvml=lambda: gpus)
    assert (reader.method, reader.rail) == ("nvml", "GPU 0 (NVIDIA L4) + GPU 1 (NVIDIA L4)")
    gpus._millijoules = [6_500, 7_250]
    reading = reader.read()
    assert (reading.watts, reading.joules) == (61.5, 1.75)
    assert reading.temperatures_c == {"GPU 0 (NVIDIA L4)": 40.0, "GPU 1 (NVIDIA L4)": 41.0}
    gpus._milliwatts, gpus._millijoules = [30_000, None], [6_500, None]
    reading = reader.read()
    assert (reading.watts, reading.joules) == (None, None)
    gpus._milliwatts = [None, None]
    assert reader.read() is None


@pytest.mark.parametrize(
    "gpus", [Gpus(["Orin (nvgpu)"], [0]), Gpus(["Orin (nvgpu)"], [7]), Gpus(["NVIDIA GT 710"], [None]), Gpus([], [])]
)
def test_nvml_that_cannot_measure_is_no_sensor(gpus):
    with pytest.raises(NoSensorError):
        NvmlReader(gpus)


def test_a_jetsons_own_monitor_goes_before_all_others(tmp_path):
    root = x86(jetson(tmp_path, "nx", 6))
    assert find_reader(root, nvml=lambda: Gpus(["NVIDIA L4"], [30_000])).method == "ina3221"
    shutil.rmtree(root / "sys/bus")
    assert find_reader(root, nvml=lambda: Gpus(["NVIDIA L4"], [30_000])).method == "nvml"


def until(condition):
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it never came")


def test_a_sensor_that_vanishes_in_a_run_leaves_a_gap_and_no_energy(tmp_path):
    root = jetson(tmp_path, "agx", 6)
    reader = find_reader(root)
    with Recorder(reader, period_s=0.01) as recorder:
        start = time.monotonic()
        until(lambda: len(recorder.trace.seconds) > 20)
        whole = recorder.trace
        shutil.rmtree(root / "sys/bus/i2c/drivers/ina3221/1-0041")
        lost = recorder.trace.missed
        until(lambda: recorder.trace.missed > lost + 20)
        stop = time.monotonic()
    trace = recorder.trace
    middle = (float(whole.seconds[5]), float(whole.seconds[10]))
    assert trace.rail == BOARDS["agx"][1]
    assert np.allclose(trace.watts, BOARDS["agx"][2])
    assert trace.energy(start, stop) is None
    assert "no samples from ina3221" in trace.why_not(start, stop)
    if whole.why_not(*middle) is None:  # a busy machine may have left a gap there
        assert trace.energy(*middle).watts == pytest.approx(BOARDS["agx"][2])


class Saying:
    """A reader that says what it is told to, one after the other, and then nothing."""

    method, rail = "synthetic", "VDD_IN"

    def __init__(self, *readings):
        self._left = list(readings)

    def read(self):
        if not self._left:
            return None
        reading = self._left.pop(0)
        if isinstance(reading, Exception):
            raise reading
        return reading

    def close(self):
        pass


def recorded(*readings):
    with Recorder(Saying(*readings), period_s=0.001) as recorder:
        until(lambda: len(recorder.trace.seconds) + recorder.trace.missed > len(readings))
    return recorder.trace


def test_what_a_sensor_cannot_say_is_missed_and_never_zero():
    trace = recorded(
        Reading(5.0), None, OSError("gone"), ValueError("odd"), Reading(None), Reading(float("nan")), Reading(6.0)
    )
    assert trace.watts.tolist() == [5.0, 6.0]
    assert trace.missed >= 5
    assert trace.cost_s > 0


def test_a_reading_that_brings_its_own_time_keeps_it_and_none_goes_back():
    trace = recorded(Reading(5.0, seconds=10.0), Reading(6.0, seconds=9.0), Reading(7.0, seconds=11.0))
    assert trace.seconds.tolist() == [10.0, 11.0]
    assert trace.watts.tolist() == [5.0, 7.0]


def test_a_counter_that_fails_once_is_taken_as_power():
    counted = recorded(Reading(None, joules=0.0, seconds=1.0), Reading(5.0, joules=5.0, seconds=2.0))
    assert counted.joules.tolist() == [0.0, 5.0]
    mixed = recorded(
        Reading(5.0, joules=0.0, seconds=1.0), Reading(None, joules=4.0, seconds=2.0), Reading(6.0, seconds=3.0)
    )
    assert mixed.joules is None
    assert mixed.watts.tolist() == [5.0, 6.0]


def test_parts_and_temperatures_that_were_not_read_are_not_known():
    trace = recorded(Reading(5.0, {"A": 1.0}, {"cpu": 40.0}, seconds=1.0), Reading(6.0, {"B": 2.0}, seconds=2.0))
    assert trace.to_json()["parts"] == {"A": [1.0, None], "B": [None, 2.0]}
    assert trace.to_json()["temperatures_c"] == {"cpu": [40.0, None]}


def test_a_sensor_that_never_answers_does_not_hold_up_the_run():
    trace = recorded()
    assert len(trace.seconds) == 0
    assert trace.energy(0.0, 1.0) is None
    assert trace.why_not(0.0, 1.0) == "synthetic gave 0 samples"


def test_a_period_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        Recorder(Saying(), period_s=0)
