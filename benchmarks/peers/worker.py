"""A contestant's process: `python -m svrt.benchmarks.peers.worker TASK`, where TASK is a `contestants.Task` as JSON.

It loads, runs once, says so, and then runs whenever a line comes on stdin; between, it sleeps. When stdin ends it says
what its memory was at most, and ends. Events go to stdout, a JSON object a line; what libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

from ...errors import SvrtError
from ...records import from_json
from ..memory import peak_rss_mib
from .contestants import Outputs, Task, load

PREPARE = "prepare"
_PR_SET_PDEATHSIG = 1  # prctl.h


def perform(task: Task, outputs: Path, ask: TextIO, say: TextIO) -> None:
    """Serve until `ask` ends."""
    if task.peer == PREPARE:
        from .prepare import WORK

        WORK[task.stage](task)
        _write(say, "ready")
        return
    started = time.perf_counter()
    contestant = load(task)
    loaded = time.perf_counter()
    contestant.run()
    first = time.perf_counter()
    _keep(contestant.outputs(), outputs)
    ready = {"precision": contestant.precision, "note": contestant.note}
    _write(say, "ready", **ready, load_ms=(loaded - started) * 1e3, first_ms=(first - loaded) * 1e3)
    for _ in ask:
        _write(say, "ran", ms=contestant.run())
    _write(say, "end", peak_mib=peak_rss_mib())


def _keep(given: Outputs, outputs: Path) -> None:
    """Arrays to `outputs`, the rest beside it."""
    import numpy as np

    np.savez(outputs, **given.arrays)  # type: ignore[arg-type]
    rest = {"keyframes": given.keyframes, "token_ids": given.token_ids, "text": given.text}
    outputs.with_suffix(".json").write_text(json.dumps(rest), encoding="utf-8")


def _write(say: TextIO, event: str, **values: object) -> None:
    say.write(json.dumps({"event": event, **values}) + "\n")
    say.flush()


def _end_with_parent() -> None:
    """Be killed when the parent is, which then cannot end what runs here (Linux alone has that)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    _end_with_parent()
    say = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        perform(from_json(Task, json.loads(sys.argv[1]), ""), Path(sys.argv[2]), sys.stdin, say)
    except ModuleNotFoundError as exc:
        _write(say, "missing", package=exc.name or str(exc))
    except SvrtError as exc:
        _write(say, "error", message=str(exc), kind=type(exc).__name__)
        sys.exit(exc.exit_code)
    except Exception as exc:  # of any library: it is a row of the table
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        _write(say, "failed", why=f"{type(exc).__name__}: {lines[0] if lines else 'no reason given'}")
        raise


if __name__ == "__main__":
    main()
