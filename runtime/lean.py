"""What a process that only describes spares itself."""

from __future__ import annotations

import os
import sys

CONVERTER = "openvino.tools.ovc"


def make_lean() -> None:
    """Spare this process what no description needs. For a process of svrt's own, before it imports anything large.

    NumPy's BLAS gets one thread, unless the user set `OPENBLAS_NUM_THREADS`: the runtime's products are small, and
    another thread spins for some 20 ms as it starts, and after what it shares in, on a processor that the engines could
    use. OpenVINO does without its converter of models, which takes almost half of its import.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.modules.setdefault(CONVERTER, None)  # type: ignore[arg-type]  # as if it were not installed
