"""Pages of a file that a library has mapped into this process, given back to the kernel.

Mapped pages count as this process's memory from when they are looked at until they are given back. Those of a file are
never lost by that: the kernel finds them in its cache, or reads them again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_MAPS = Path("/proc/self/maps")  # see proc(5)


def give_back(file: Path) -> None:
    """Give back every page of `file` that is mapped here to be read alone; see madvise(2), MADV_DONTNEED.

    Whoever mapped the file must not unmap it meanwhile: something else could lie there then. Where the kernel does not
    say what is mapped nothing happens.
    """
    try:
        lines = _MAPS.read_bytes().splitlines()
    except OSError:  # not Linux
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    of_file = b" " + os.fsencode(file.resolve())
    for line in lines:
        addresses, permissions, _ = line.split(b" ", 2)
        if permissions.startswith(b"r--") and line.endswith(of_file):
            first, end = (int(address, 16) for address in addresses.split(b"-"))
            madvise(first, end - first, mmap.MADV_DONTNEED)
