"""A run is inconclusive where the machine was slowed down, and says by what."""

import shutil
import time
from dataclasses import replace

import pytest
from power_trees import jetson, put
from svrt.benchmarks.power import Condition, Limits, judge, snapshot, watch
from svrt.benchmarks.power.condition import Clock

BOARDS = [("nano", 5), ("nano", 6), ("nx", 6), ("agx", 5), ("agx", 7), ("thor", 7)]


@pytest.mark.parametrize(("board", "jetpack"), BOARDS)
def test_a_snapshot_says_what_the_board_says(tmp_path, board, jetpack):
    condition = snapshot(jetson(tmp_path, board, jetpack))
    assert condition.events == {
        "oc1 under-voltage": 41,
        "oc2 average over-current": 42,
        "oc3 instantaneous over-current": 43,
    }
    assert len(condition.temperatures_c) == 3
    assert condition.clocks == {
        "gpu": Clock(1_020_000_000, 1_020_000_000, 0.99),
        "cpu0": Clock(1_728_000_000, 1_728_000_000),
        "cpu4": Clock(1_728_000_000, 1_728_000_000),
    }
    assert condition.cooling == {"cpufreq-cpu0": 0, "gpu-throttle-alert": 0}  # a fan slows nothing down


def slow(root, how):
    """Something that slows the board down, as its files show it."""
    if how == "oc3":
        put(root / "sys/class/hwmon/hwmon7/oc3_event_cnt", 47)
    elif how == "reset":
        put(root / "sys/class/hwmon/hwmon7/oc3_event_cnt", 0)
    elif how == "vanished":
        shutil.rmtree(root / "sys/class/hwmon/hwmon7")
    elif how == "hot":
        put(root / "sys/class/thermal/thermal_zone2/temp", 99_500)
    elif how == "alert":
        put(root / "sys/class/thermal/cooling_device2/cur_state", 1)
    elif how == "cooled":
        put(root / "sys/class/thermal/cooling_device1/cur_state", 3)
    elif how == "capped":
        put(root / "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq", 1_190_400)
    elif how == "fan":
        put(root / "sys/class/thermal/cooling_device0/cur_state", 4)
        put(root / "sys/class/thermal/thermal_zone2/temp", 60_000)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("oc3", "oc3 instantaneous over-current: 4 events during the run"),
        ("reset", "oc3 instantaneous over-current: the counter was reset during the run"),
        ("hot", "reached 99.5 °C: the kernel slows down from 99.0 °C"),
        ("alert", "gpu-throttle-alert was at work (state 1)"),
        ("cooled", "cpufreq-cpu0 was at work (state 3)"),
        ("capped", "cpu4: its clock was capped at 1190 MHz, from 1728 MHz"),
    ],
)
@pytest.mark.parametrize(("board", "jetpack"), BOARDS)
def test_a_board_that_throttles_in_a_run_is_seen(tmp_path, board, jetpack, how, reason):
    root = jetson(tmp_path, board, jetpack)
    with watch(root, period_s=60) as watching:
        slow(root, how)
    assert watching.throttled
    assert len(watching.reasons) == 1
    assert reason in watching.reasons[0]
    assert watching.summary()["reasons"] == watching.reasons


@pytest.mark.parametrize("how", ["nothing", "fan"])
def test_a_board_that_only_warms_up_is_steady(tmp_path, how):
    root = jetson(tmp_path, "nx", 6)
    with watch(root, period_s=60) as watching:
        slow(root, how)
    assert not watching.throttled
    assert watching.summary()["events"]["oc3 instantaneous over-current"] == 0


def test_a_counter_that_vanishes_leaves_the_run_undecided(tmp_path):
    root = jetson(tmp_path, "nx", 6)
    with watch(root, period_s=60) as watching:
        slow(root, "vanished")
    assert [reason.partition(": ")[2] for reason in watching.reasons] == [
        "the counter could not be read through to the end"
    ] * 3


def test_what_passes_between_start_and_end_is_seen_by_the_thread(tmp_path):
    root = jetson(tmp_path, "nx", 6)
    with watch(root, period_s=0.005) as watching:
        slow(root, "alert")
        seen = len(watching.conditions)
        while len(watching.conditions) < seen + 2:
            time.sleep(0.002)
        put(root / "sys/class/thermal/cooling_device2/cur_state", 0)
    assert watching.conditions[-1].cooling["gpu-throttle-alert"] == 0
    assert watching.reasons == ["gpu-throttle-alert was at work (state 1)"]


def clocks(hz, most=1_000_000_000, load=None):
    return [Condition(float(i), clocks={"gpu": Clock(value, most, load)}) for i, value in enumerate(hz)]


def test_a_clock_that_sags_over_the_run_is_seen():
    steady = [1_000_000_000, 300_000_000] * 15  # it rests between clips
    sagging = [*steady[:20], *[850_000_000, 300_000_000] * 5]
    assert judge(clocks(steady)) == []
    assert judge(clocks(sagging)) == ["gpu: its clock sagged from 1000 to 850 MHz"]
    assert judge(clocks(sagging), Limits(sag=0.2)) == []
    assert judge(clocks(sagging[-12:])) == []  # too short to say


def test_the_fastest_core_counts_because_work_wanders():
    wandering = [
        Condition(float(i), clocks={"cpu0": Clock(hot, None), "cpu4": Clock(cold, None)})
        for i, (hot, cold) in enumerate([(2_000_000_000, 500_000_000)] * 10 + [(500_000_000, 2_000_000_000)] * 10)
    ]
    assert judge(wandering) == []
    slower = [replace(c, clocks={n: Clock(k.hz // 2, None) for n, k in c.clocks.items()}) for c in wandering[10:]]
    assert judge(wandering[:10] + slower) == ["cpu: its clock sagged from 2000 to 1000 MHz"]


def test_a_gpu_held_below_its_most_under_load_is_seen():
    assert judge(clocks([600_000_000] * 8, load=0.97)) == [
        "gpu: under load its clock was at 60% of what its power mode allows"
    ]
    assert judge(clocks([600_000_000] * 8, load=0.2)) == []  # an idle GPU clocks down by itself


def test_a_limit_of_ones_own_to_the_temperature():
    seen = [Condition(0.0, temperatures_c={"tj": 60.0}), Condition(1.0, temperatures_c={"tj": 81.0})]
    assert judge(seen) == []
    assert judge(seen, Limits(hottest_c=80)) == ["tj reached 81.0 °C, above the limit of 80.0 °C"]


def test_a_machine_that_says_nothing_gives_no_reason_and_no_figure(tmp_path):
    with watch(tmp_path) as watching:
        pass
    assert not watching.throttled
    assert watching.summary() == {
        "snapshots": 2,
        "temperatures_c": {},
        "clocks_hz": {},
        "events": {},
        "throttled": False,
        "reasons": [],
    }
    assert judge([]) == []


def test_garbage_is_left_out(tmp_path):
    root = jetson(tmp_path, "nx", 6)
    put(root / "sys/class/thermal/thermal_zone0/temp", "warm")
    put(root / "sys/class/thermal/thermal_zone1/temp", -256_000)
    put(root / "sys/class/hwmon/hwmon7/oc1_event_cnt", "")
    put(root / "sys/class/devfreq/17000000.gpu/cur_freq", "fast")
    condition = snapshot(root)
    assert list(condition.temperatures_c) == ["tj-thermal"]
    assert "oc1 under-voltage" not in condition.events
    assert condition.clocks["gpu"].hz is None


def test_thermal_throttling_of_x86_is_seen(tmp_path):
    for cpu in (0, 1):
        put(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count", 5)
        put(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/package_throttle_count", 9)
    with watch(tmp_path, period_s=60) as watching:
        put(tmp_path / "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count", 12)
    assert watching.reasons == ["package thermal throttling: 3 events during the run"]
