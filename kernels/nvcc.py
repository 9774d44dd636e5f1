"""The CUDA sources compiled, by the nvcc of this machine: `python -m svrt.kernels.nvcc --arch 8.7 --out DIR`.

Neither cubins nor PTX are shipped: what one CUDA release writes an older driver refuses, and JetPack 6 and 7 are a
release apart. nvcc is on every board that svrt is installed on, as llama.cpp is compiled by it there; both sources
take it seconds, once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from ..errors import EngineError, OutputError
from .compiling import make_whole, run_compiler

SOURCES = ("resize", "haar")  # .cu files of this folder, a module each
# Without contraction of a * b + c, so that values are those of the CPU twins; -v prints registers and spills.
FLAGS = ("-cubin", "-O3", "-std=c++17", "-fmad=false", "-Xptxas", "-v")
_FOLDER = Path(__file__).parent


def find_nvcc() -> Path:
    """nvcc of `$CUDA_HOME`, the path, JetPack's place, or the package nvidia-cuda-nvcc.

    Raises `EngineError` where there is none.
    """
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc")
    places = [
        *([Path(home) / "bin"] if home else []),
        *([Path(found).parent] if found else []),
        Path("/usr/local/cuda/bin"),  # JetPack's, which is not on a service's path
        *sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"), reverse=True),
    ]
    for place in places:
        if (place / "nvcc").is_file():
            return place / "nvcc"
    raise EngineError(
        "no nvcc to compile the CUDA kernels with; on a Jetson run: apt install nvidia-cuda-dev; "
        "elsewhere: pip install nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 "
        "nvidia-cuda-runtime==13.0.96"
    )


def compile_kernels(out: Path, compute_capability: str) -> dict[str, Path]:
    """A cubin of each of `SOURCES` in folder `out`, for a GPU such as "8.7"; what is there already is not made again.

    Names hold a digest of sources, flags and compiler; files are written whole or not at all. Raises `EngineError`
    where nvcc is absent or refuses, `OutputError` where the folder cannot be written.
    """
    nvcc = find_nvcc()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    arch = f"sm_{compute_capability.replace('.', '')}"
    digest = hashlib.sha256("\0".join([version, arch, *FLAGS]).encode())
    for path in sorted([*_FOLDER.glob("*.cu"), *_FOLDER.glob("*.cuh")]):
        digest.update(path.read_bytes())
    cubins = {name: out / f"{name}-{arch}-{digest.hexdigest()[:12]}.cubin" for name in SOURCES}
    for name, path in cubins.items():
        if not path.is_file():
            _compile(nvcc, _FOLDER / f"{name}.cu", arch, path)
    return cubins


def _compile(nvcc: Path, source: Path, arch: str, out: Path) -> None:
    try:
        make_whole(out, lambda made: report(nvcc, source, arch, made))
    except OSError as exc:
        raise OutputError(f"{out.parent}: compiled kernels cannot be kept there: {exc.strerror or exc}") from exc


def report(nvcc: Path, source: Path, arch: str, out: Path) -> str:
    """Compile one source to `out`; returns what ptxas says of its registers and spills. Raises `EngineError`."""
    command = [str(nvcc), *FLAGS, f"-arch={arch}", "-o", str(out), str(source)]
    return run_compiler(command, f"{source.name}: {nvcc} cannot compile it for {arch}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m svrt.kernels.nvcc", description="Compile the CUDA kernels.")
    parser.add_argument("--arch", default="8.7", metavar="X.Y", help="compute capability of the GPU (8.7: Jetson Orin)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the cubins")
    arguments = parser.parse_args()
    try:
        for path in compile_kernels(arguments.out, arguments.arch).values():
            print(path)
    except (EngineError, OutputError) as exc:
        raise SystemExit(f"svrt: error: {exc}") from None


if __name__ == "__main__":
    main()
