"""A benchmark's report from a stated model of time, so that figures can be held against what they were made from."""

from __future__ import annotations

import numpy as np
from svrt.benchmarks.samples import SCHEMA, STAGES, Clip, MemoryTrace, Power, Process, Report, Run, RunEnergy

MS = {"decode": 10.0, "sample": 1600.0, "encode": 140.0, "prefill": 145.0, "generate": 130.0}
BETWEEN, WITHIN = 0.02, 0.03  # deviations of the logarithm, of processes and of runs


def small_report(seed=0, processes=5, runs=4, clips=1, slower=1.0, power=False, **changes) -> Report:
    """Processes one after the other, each cold once and then `runs` times warm for each clip; 1 ms is of no stage."""
    rng = np.random.default_rng(seed)
    at, found, lived = 0.5, [], []
    for process in range(processes):
        start, pace = at, slower * float(np.exp(rng.normal(0, BETWEEN)))
        at += 0.8
        order = [(True, process % clips)] + [(False, clip) for _ in range(runs) for clip in range(clips)]
        for cold, clip in order:
            factor = pace * float(np.exp(rng.normal(0, WITHIN))) * (1 + clip) * (1.1 if cold else 1.0)
            stages = {stage: ms * factor for stage, ms in MS.items()}
            whole = sum(stages.values()) + 1.0
            first = whole - stages["generate"]
            found.append(Run(clip, process, cold, at, at + whole / 1e3, stages, first, 22, f"clip {clip}"))
            at += whole / 1e3 + 0.002
        lived.append(Process(start, start + 0.5, start + 0.79, at, 575.0 + process))
        at += 0.1
    seconds = np.arange(0, at, 0.1)
    rss = [next((300.0 for p in lived if p.start_s < s < p.stop_s), None) for s in seconds]
    memory = MemoryTrace(
        seconds.tolist(), rss, [8000.0 - (value or 0.0) for value in rss], [None] * len(seconds), "none: stand-in"
    )
    values = {
        "schema": SCHEMA,
        "created": "2026-01-01T00:00:00+00:00",
        "svrt": "0.1.0",
        "bundle": "pocket",
        "bundle_sha256": "a" * 64,
        "backends": {"sampler": "onnxruntime cpu", "encoder": "onnxruntime cpu", "decoder": "llama.cpp CPU"},
        "environment": {"processor": "stand-in", "cores": 2, "versions": {"svrt": "0.1.0"}, "clocks": {}},
        "clips": [
            Clip(f"clip{index}.mp4", f"{index}" * 64, 60 * (index + 1), 30.0, 400, 400) for index in range(clips)
        ],
        "processes": lived,
        "runs": found,
        "memory": memory,
        "power": _power(found, seconds) if power else Power("none", "none", "no power sensor: stand-in"),
        "condition": {},
        "disturbed": [],
        "limits": {},
        "measuring_share": 0.002,
    }
    return Report(**{**values, **changes})


def _power(runs: list[Run], seconds: np.ndarray) -> Power:
    """5 W, and by stage 6 to 14 W; energies are exact."""
    watts = dict(zip(STAGES, (6.0, 14.0, 12.0, 11.0, 9.0), strict=True))
    trace = np.full(len(seconds), 5.0)
    for run in runs:
        for stage, start, stop in run.stretches():
            trace[(seconds >= start) & (seconds < stop)] = watts[stage]
    energies = []
    for run in runs:
        joules = {stage: watts[stage] * run.stages_ms[stage] / 1e3 for stage in STAGES}
        gross = sum(joules.values()) + 5.0 * run.other_ms / 1e3
        energies.append(RunEnergy(gross, gross - 5.0 * run.whole_ms / 1e3, joules))
    return Power("ina3221", "VDD_IN", "", seconds.tolist(), trace.tolist(), 5.0, energies)
