"""How many processors there are to use."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Processors this process may run on: its affinity and cpuset, not the machine's count.

    A CPU quota (`docker --cpus`) does not show here; limit the affinity (`--cpuset-cpus`, `taskset`) instead.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
