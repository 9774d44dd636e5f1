"""The C of this folder compiled, by the compiler of this machine.

No library is shipped: svrt's wheel is the same for all processors, and a compiler is there, as llama.cpp is compiled,
too. It takes seconds, once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import cache
from pathlib import Path

from ...errors import EngineError
from ..compiling import make_whole, run_compiler

NEEDED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma"})  # as Linux calls them
SOURCES = ("attention.c", "parallel.c", "product.c", "rows.c", "winograd.c")
_PROCESSOR = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma")
# Nothing here looks at errno or traps; there are no NaN, and zeros have no sign that matters: minima and maxima are one
# instruction then.
_ARITHMETIC = ("-fno-math-errno", "-fno-trapping-math", "-ffinite-math-only", "-fno-signed-zeros")
FLAGS = ("-std=gnu11", "-O3", *_PROCESSOR, *_ARITHMETIC, "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
_FOLDER = Path(__file__).parent


def find_compiler() -> str | None:
    """`$CC`, or the C compiler of the path; None where there is none."""
    names = [os.environ["CC"]] if os.environ.get("CC") else COMPILERS
    return next((found for found in map(shutil.which, names) if found), None)


@cache
def recipe() -> str:
    """A digest of the sources and of how they are compiled."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted([*_FOLDER.glob("*.c"), *_FOLDER.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def compile_kernels(out: Path) -> Path:
    """The library in folder `out`; one that is there already is not made again, and none is there half.

    Raises `EngineError` where there is no compiler or it refuses, `OSError` where the folder cannot be written.
    """
    library = out / f"vnni-{recipe()}.so"
    if library.is_file():
        return library
    compiler = find_compiler()
    if compiler is None:
        raise EngineError("no C compiler to compile svrt's kernels with; run: apt install gcc libc6-dev")
    sources = [str(_FOLDER / name) for name in SOURCES]

    def compile_to(made: Path) -> None:
        command = [compiler, *FLAGS, "-o", str(made), *sources, "-lpthread", "-lm"]
        run_compiler(command, f"{compiler} cannot compile svrt's kernels")

    make_whole(library, compile_to)
    return library
