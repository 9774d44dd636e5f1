"""Energy of traces whose power is known as a formula: within 0.5 %, or none."""

import math
from itertools import pairwise

import numpy as np
import pytest
from svrt.benchmarks.power import Trace

PERIOD = 0.1


def power(t):
    """Watts of a board that breathes slowly, warms up, and works in the middle."""
    return 12 + 4 * np.sin(0.7 * t) + 0.05 * t + np.where((t > 20) & (t <= 40), 9.0, 0.0)


def joules(start, stop):
    """The exact integral of `power`."""

    def until(t):
        return 12 * t - 4 / 0.7 * math.cos(0.7 * t) + 0.025 * t * t + 9.0 * min(max(t - 20, 0), 20)

    return until(stop) - until(start)


def sampled(seed, jitter=0.4, lost=0.1, gaps=(), length=60.0):
    """A trace at 10 Hz with jittered times, single samples lost, and gaps (start, stop)."""
    rng = np.random.default_rng(seed)
    t = np.arange(0, length + PERIOD / 2, PERIOD)
    t[1:-1] += rng.uniform(-jitter / 2, jitter / 2, len(t) - 2) * PERIOD
    keep = rng.uniform(size=len(t)) >= lost
    keep[1:] |= ~keep[:-1]  # no two in a row
    keep[[0, -1]] = True
    for start, stop in gaps:
        keep &= (t <= start) | (t >= stop)
    return Trace(t[keep], power(t[keep]), "VDD_IN", "ina3221", period_s=PERIOD)


@pytest.mark.parametrize("seed", range(20))
def test_energy_with_jitter_and_lost_samples_is_within_half_a_percent(seed):
    trace = sampled(seed)
    for start, stop in ((0.0, 60.0), (3.217, 58.43), (15.02, 45.07), (20.0, 40.0), (7.77, 12.3)):
        energy = trace.energy(start, stop)
        assert energy.joules == pytest.approx(joules(start, stop), rel=0.005)
        assert energy.watts == pytest.approx(energy.joules / (stop - start))
        assert energy.covered == 1.0
        assert (energy.rail, energy.method) == ("VDD_IN", "ina3221")


@pytest.mark.parametrize("seed", range(20))
def test_energy_across_a_small_gap_is_within_half_a_percent_and_states_its_share(seed):
    at = np.random.default_rng(seed).uniform(1, 58)
    energy = sampled(seed, lost=0.0, gaps=[(at, at + 0.35)]).energy(0.0, 60.0)
    assert energy.joules == pytest.approx(joules(0, 60), rel=0.005)
    assert 0.99 <= energy.covered < 1.0


@pytest.mark.parametrize("seed", range(5))
def test_a_long_gap_gives_no_energy_and_says_so_but_spares_what_it_does_not_touch(seed):
    trace = sampled(seed, gaps=[(30.0, 33.0)])
    assert trace.energy(0.0, 60.0) is None
    assert trace.why_not(0.0, 60.0).startswith("5.")  # 3.0 to 3.4 s of 60
    assert trace.energy(29.0, 31.0) is None
    assert trace.energy(5.0, 25.0).joules == pytest.approx(joules(5, 25), rel=0.005)


def test_time_outside_the_recording_is_not_covered():
    trace = sampled(0)
    assert trace.energy(-5.0, 30.0) is None
    assert trace.energy(30.0, 65.0) is None
    assert trace.energy(70.0, 80.0) is None
    assert trace.energy(50.0, 60.1).joules == pytest.approx(joules(50, 60.1), rel=0.005)  # a stream's last line


@pytest.mark.parametrize(("start", "stop"), [(5.0, 5.0), (6.0, 5.0), (5.0, math.nan), (5.0, math.inf)])
def test_no_time_has_no_energy(start, stop):
    assert sampled(0).energy(start, stop) is None


def test_a_stretch_that_no_sample_fell_into_has_no_energy():
    trace = sampled(0, jitter=0.0, lost=0.0)
    assert trace.energy(10.02, 10.08) is None
    assert "no sample fell into 60 ms" in trace.why_not(10.02, 10.08)


def test_constant_power_is_exact_between_samples():
    trace = Trace(np.array([0.0, 1.0, 2.5]), np.array([4.0, 4.0, 4.0]), "VIN", "ina3221")
    assert trace.energy(0.25, 2.25).joules == pytest.approx(8.0, rel=1e-12)


def test_rising_power_is_exact_between_samples():
    trace = Trace(np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0, 6.0]), "VIN", "ina3221")  # 2 W more each second
    assert trace.energy(0.5, 2.75).joules == pytest.approx(2.75**2 - 0.5**2, rel=1e-12)


def test_above_idle_is_what_the_idle_machine_would_not_have_used():
    idle = Trace(np.arange(0, 5, PERIOD), np.full(50, 3.0), "VDD_IN", "ina3221", period_s=PERIOD)
    energy = sampled(1).energy(10.0, 30.0, idle)
    assert energy.idle_watts == pytest.approx(3.0)
    assert energy.above_idle_j == pytest.approx(energy.joules - 60.0)
    other = Trace(idle.seconds, idle.watts, "VIN", "ina3221", period_s=PERIOD)
    assert sampled(1).energy(10.0, 30.0, other).above_idle_j is None
    torn = Trace(idle.seconds[[0, 1, 40]], idle.watts[[0, 1, 40]], "VDD_IN", "ina3221", period_s=PERIOD)
    assert sampled(1).energy(10.0, 30.0, torn).above_idle_j is None


def test_stages_add_up_to_the_whole():
    trace = sampled(2)
    edges = np.concatenate([[5.0], np.sort(np.random.default_rng(2).uniform(5, 55, 41)), [55.0]])
    stretches = [(("encode", "generate")[i % 2], float(a), float(b)) for i, (a, b) in enumerate(pairwise(edges))]
    stages = trace.stages(stretches)
    assert list(stages) == ["encode", "generate"]
    assert sum(energy.joules for energy in stages.values()) == pytest.approx(trace.energy(5.0, 55.0).joules, rel=1e-9)
    exact = sum(joules(start, stop) for stage, start, stop in stretches if stage == "encode")
    assert stages["encode"].joules == pytest.approx(exact, rel=0.005)
    assert trace.stages([("prefill", 10.02, 10.021), ("encode", 11.0, 13.0)])["prefill"] is None


def test_a_counter_loses_nothing_in_a_gap_but_an_end_within_one_is_unknown():
    t = np.concatenate([np.arange(0, 30, PERIOD), np.arange(36, 60.05, PERIOD)])
    counted = np.array([joules(0, at) for at in t])
    trace = Trace(t, np.full(len(t), math.nan), "package-0", "rapl", joules=counted, period_s=PERIOD)
    energy = trace.energy(0.0, 60.0)
    assert energy.joules == pytest.approx(joules(0, 60), rel=1e-4)
    assert energy.covered == 1.0
    assert trace.energy(10.0, 33.0) is None
    assert trace.energy(3.123, 20.456).joules == pytest.approx(joules(3.123, 20.456), rel=0.005)


@pytest.mark.parametrize(
    ("seconds", "watts"),
    [([0.0, 1.0, 1.0], [1, 2, 3]), ([0.0, 2.0, 1.0], [1, 2, 3]), ([0.0, 1.0], [1, 2, 3]), ([0.0, 1.0], [1, math.nan])],
)
def test_columns_that_are_no_trace_are_refused(seconds, watts):
    with pytest.raises(ValueError, match="trace"):
        Trace(np.array(seconds), np.array(watts, np.float64), "VDD_IN", "ina3221")


def test_json_holds_all_samples():
    trace = sampled(0)
    values = trace.to_json()
    assert values["seconds"] == trace.seconds.tolist()
    assert values["watts"] == trace.watts.tolist()
    assert values["joules"] is None
