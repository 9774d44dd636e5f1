"""Limits held against a report: PASS, FAIL, or INCONCLUSIVE where the figures cannot tell."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SvrtError
from .figures import FIRST_TOKEN, WHOLE, figures, grouped, of_stage, tokens_per_s
from .samples import STAGES, Report
from .statistics import STATISTICS, Groups, Statistic, flat, interval, median

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
LEAST_RUNS = 5  # with fewer no interval says anything
_TAIL = {"p90": 0.90, "p95": 0.95, "p99": 0.99}  # share of all runs that are no slower
_AT_LEAST = ("tokens_per_s", "clips_per_s")
_COLD = "cold"
_PLAIN = (*_AT_LEAST, "peak_rss_mib", "available_drop_mib", "gpu_mib", "joules_per_clip", "joules_per_token")
_TIMED = re.compile(r"(?:(?P<of>[a-z_]+)\.)?(?P<statistic>p50|p90|p95|p99|min|max)_ms")


@dataclass(frozen=True)
class Held:
    """One limit held against what was measured: `value` and its 95 % interval, None where it was not measured."""

    name: str
    limit: float
    value: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """`result` is None where no limit was given; `reasons` say why it is not PASS."""

    result: str | None
    reasons: list[str]
    held: list[Held]


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """Limits by name of `name=number` texts. Raises `SvrtError` for one that nothing measures."""
    limits = {}
    for text in texts:
        name, _, number = text.partition("=")
        name = name.strip()
        timed = _TIMED.fullmatch(name)
        known = name in _PLAIN or (timed and (timed["of"] or WHOLE) in (*STAGES, WHOLE, FIRST_TOKEN, _COLD))
        if not known:
            raise SvrtError(
                f"--limit {text!r}: not known; give [STAGE.]p99_ms=NUMBER (p50 to p99, min, max; STAGE is one of "
                f"{', '.join((*STAGES, WHOLE, FIRST_TOKEN, _COLD))}) or {', '.join(_PLAIN)}"
            )
        try:
            limits[name] = float(number)
        except ValueError:
            limits[name] = math.nan
        if not (math.isfinite(limits[name]) and limits[name] > 0):
            raise SvrtError(f"--limit {text!r}: the limit must be a number above 0, as in {name}=2000")
    return limits


def verdict(report: Report) -> Verdict:
    """Hold a report's limits against its samples. What disturbed the run makes all of it INCONCLUSIVE."""
    held = [_hold(report, name, limit) for name, limit in report.limits.items()]
    if not held:
        return Verdict(None, ["no limit was given", *report.disturbed], [])
    reasons = [*report.disturbed]
    runs = len(report.warm())
    if runs < LEAST_RUNS:
        reasons.append(f"{runs} warm runs; {LEAST_RUNS} are the least that an interval can be given for")
    if reasons:
        return Verdict(INCONCLUSIVE, reasons, held)
    for result in (FAIL, INCONCLUSIVE):
        found = [one.reason for one in held if one.verdict == result]
        if found:
            return Verdict(result, found, held)
    return Verdict(PASS, [], held)


def _hold(report: Report, name: str, limit: float) -> Held:
    found = _measured(report, name)
    if isinstance(found, str):
        return Held(name, limit, None, None, None, INCONCLUSIVE, f"{name} was not measured: {found}")
    value, low, high, samples = found
    more = name in _AT_LEAST
    within = (low >= limit) if more else (high <= limit)
    beyond = (high < limit) if more else (low > limit)
    shown = f"{name} is {value:.5g} (95 % interval {low:.5g} to {high:.5g})"
    asked = f"{'at least' if more else 'at most'} {limit:.5g} is asked for"
    if beyond:
        return Held(name, limit, value, low, high, FAIL, f"{shown}; {asked}")
    needed = _samples_needed(name)
    if within and samples is not None and samples < needed:
        reason = f"{shown}, of {samples} samples; {needed} are the least that can vouch for {name}"
        return Held(name, limit, value, low, high, INCONCLUSIVE, reason)
    if within:
        return Held(name, limit, value, low, high, PASS, f"{shown}; {asked}")
    reason = f"{shown}: the spread is too wide to tell it from the limit {limit:.5g}"
    return Held(name, limit, value, low, high, INCONCLUSIVE, reason)


def _samples_needed(name: str) -> int:
    """The least samples of which the slowest, beyond which no interval drawn from them goes, is above the percentile in
    39 of 40 cases: else a limit would be kept for want of slow runs. 36 for p90, 72 for p95, 368 for p99."""
    timed = _TIMED.fullmatch(name)
    share = _TAIL.get(timed["statistic"]) if timed else None
    return LEAST_RUNS if share is None else math.ceil(math.log(0.025) / math.log(share))


# A figure, its interval [low, high], and of how many samples it is: None of a peak, which is of all.
_Figure = tuple[float, float, float, int | None]


def _measured(report: Report, name: str) -> _Figure | str:
    """A figure, or why there is none."""
    timed = _TIMED.fullmatch(name)
    if timed:
        statistic, of = STATISTICS[timed["statistic"]], timed["of"] or WHOLE
        if of == _COLD:
            processes = report.processes
            groups = [[[(run.stop_s - processes[run.process].start_s) * 1e3]] for run in report.cold()]
        else:
            groups = grouped(report.warm(), of_stage(of))
        return _of_groups(groups, statistic) if groups else "no run has it"
    found = figures(report)
    if name == "tokens_per_s":
        groups = grouped(report.warm(), tokens_per_s)
        return _of_groups(groups, median) if groups else "nothing was generated"
    if name == "clips_per_s":
        groups = grouped(report.warm(), of_stage(WHOLE))
        if not groups or found.clips_per_s is None:
            return "there are no warm runs"
        low, high = interval(groups, lambda values: values.mean(axis=-1))
        return found.clips_per_s, 1e3 / high, 1e3 / low if low > 0 else math.inf, len(flat(groups))
    if name.startswith("joules"):
        joules = None if found.energy is None else getattr(found.energy, name)
        if joules is None:
            return report.power.note or "no run lies whole within the power trace"
        return joules.p50, joules.low, joules.high, joules.n
    peak = getattr(found.memory, name)
    if peak is None:
        return report.memory.gpu if name == "gpu_mib" else "it could not be read"
    return peak, peak, peak, None


def _of_groups(groups: Groups, statistic: Statistic) -> _Figure:
    values = flat(groups)
    return (float(statistic(values)), *interval(groups, statistic), len(values))
