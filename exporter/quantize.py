"""Quantization of a GGUF by llama.cpp, in a process of its own because llama.cpp can abort the one it runs in.

Run as a program it is that process: `python -m svrt.exporter.quantize SOURCE OUT TYPE`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import DecoderError, OutputError, RecipeError
from ..runtime.processors import usable_processors

# llama.cpp's number (`enum llama_ftype`) and nominal bits per weight of each; the bits serve the progress display only.
QUANTIZATIONS: dict[str, tuple[int, float]] = {
    "f16": (1, 16.0),
    "q8_0": (7, 8.5),
    "q6_k": (18, 6.6),
    "q5_k_m": (17, 5.7),
    "q4_k_m": (15, 4.9),
    "q4_0": (2, 4.6),
}

# llama.cpp would hold up to 8 GiB of a tensor in float32 at once.
_BUFFER_BYTES = 512 << 20
_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def quantize(f16: Path, out: Path, quantization: str, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the GGUF `f16` to `out` in the named quantization (`QUANTIZATIONS`); `f16` is a plain copy.

    `progress` gets the bytes written so far and an estimate of the bytes to come. `out` is either whole or untouched.

    Raises `RecipeError` for an unknown name, `DecoderError` with llama.cpp's last words where it fails, and
    `OutputError` where `out` cannot be written.
    """
    if quantization not in QUANTIZATIONS:
        raise RecipeError(f"unknown quantization {quantization!r}; expected one of {', '.join(QUANTIZATIONS)}")
    if not f16.is_file():
        raise DecoderError(f"{f16}: no such file; nothing to quantize")
    report = progress or (lambda done, total: None)
    with whole_file(out) as partial:
        if quantization == "f16":
            shutil.copyfile(f16, partial)
        else:
            _run_child(f16, partial, quantization, report)
    report(out.stat().st_size, out.stat().st_size)


@contextlib.contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A file beside `out` to write to, which becomes `out` when the block ends well and is removed when it does not.

    Raises `OutputError` where it cannot be written.
    """
    partial = out.with_name(f"{out.name}.part")
    try:
        yield partial
        partial.replace(out)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _run_child(source: Path, out: Path, quantization: str, progress: Callable[[int, int], None]) -> None:
    out.touch()  # an unwritable folder is told from here, in its own words
    expected = int(source.stat().st_size * QUANTIZATIONS[quantization][1] / 16)
    # Python would import from the folder it starts in: not from the user's.
    command = [sys.executable, "-m", __name__, str(source.absolute()), str(out.absolute()), quantization]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # an abort's last words are to be the assertion
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, env=environment, cwd=out.parent, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        ) as child,
    ):
        try:
            while child.poll() is None:
                progress(min(out.stat().st_size, expected), expected)
                try:
                    child.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:  # Ctrl-C included: no child outlives its reason
            child.kill()
            raise
        if child.returncode != 0:
            log.seek(0)
            words = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            said = words[-1].rpartition("failed to quantize: ")[2] if words else f"exit status {child.returncode}"
            if "iostream error" in said:  # all that a failed write of a C++ stream tells
                raise OutputError(f"{out.with_suffix('')}: cannot be written: {said}; the disk may be full")
            raise DecoderError(f"{source}: llama.cpp could not quantize it to {quantization}: {said}")


def _main(arguments: list[str]) -> int:
    """The child: quantize and say on stderr what llama.cpp says. Exit status 1 where it refuses."""
    source, out, quantization = arguments
    import ctypes

    if sys.platform == "linux":  # a parent that is killed outright takes this process with it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = QUANTIZATIONS[quantization][0]
    parameters.nthread = usable_processors()
    parameters.max_buf_size = _BUFFER_BYTES
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(parameters))
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
