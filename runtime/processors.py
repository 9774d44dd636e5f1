"""The processors: how many there are to use, and what one can do."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def usable_processors() -> int:
    """Processors this process may run on: its affinity and cpuset, not the machine's count.

    A CPU quota (`docker --cpus`) does not show here; limit the affinity (`--cpuset-cpus`, `taskset`) instead.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor(cpuinfo: Path = CPUINFO) -> str:
    """What the first processor is and can do, as the kernel says; the architecture where it says nothing."""
    try:
        first = cpuinfo.read_text(errors="replace").split("\n\n")[0]
    except OSError:
        first = ""
    wanted = r"^(?:model name|flags|Features|CPU (?:implementer|part))\s*:.*$"
    return " ".join([platform.machine(), *re.findall(wanted, first, re.MULTILINE)])


def processor_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """What an x86 processor can do, as Linux names it ("avx512_vnni", ...); nothing of others."""
    found = re.search(r"\bflags\s*:(.*)", processor(cpuinfo))
    return frozenset(found[1].split()) if found else frozenset()
