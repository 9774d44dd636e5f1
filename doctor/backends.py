"""Which backends run here: an operation each, and what to do about those that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..bundle import DECODER, Bundle
from . import board
from .finding import Backend, Finding, Level
from .host import Host, Outcome
from .machine import COMPUTE_CAPABILITY, Machine

LLAMA = "0.3.36"  # struct layouts change between releases, so another one may crash
_INSTALL = {
    "opencv": "pip install --force-reinstall 'opencv-python-headless>=4.8,<4.13'",
    "onnxruntime": "pip install --force-reinstall 'onnxruntime>=1.18'",
    "tensorrt-rtx": "pip install --no-deps tensorrt-rtx-cu12-libs==1.7.1.116 tensorrt-rtx-cu12-bindings==1.7.1.116",
    "llama": f"pip install --force-reinstall --no-cache-dir llama-cpp-python=={LLAMA}",
}
_FLAGS = "-U__AMX_INT8__ -fschedule-insns -fsched-pressure"  # as the Makefile has them
_WITHOUT_AMX = f'-DCMAKE_C_FLAGS="{_FLAGS}" -DCMAKE_CXX_FLAGS="{_FLAGS}"'
_CPU = "CPUExecutionProvider"
_REMOTE = "AzureExecutionProvider"  # in every wheel; it asks a service on the network

Said = tuple[Backend, Finding]
Say = Callable[[str], None]


def backends(host: Host, machine: Machine, bundle: Bundle | None, say: Say = lambda _: None) -> list[Said]:
    """Try every backend. `bundle` is where a GGUF is taken from; `say` is told what is tried: it can take long."""
    found = [_opencv(host, say), *_onnxruntime(host, say), _openvino(host, say), _ncnn(host, say), _vnni(host, say)]
    found += [_tensorrt(host, machine, backend, say) for backend in ("tensorrt", "tensorrt-rtx")]
    return [*found, _llama(host, machine, bundle, say)]


def _try(host: Host, say: Say, name: str, *arguments: str) -> Outcome:
    say(f"trying {name} {' '.join(arguments)}".rstrip())
    return host.operate(name, *arguments)


def _said(name: str, outcome: Outcome, detail: str, level: Level, fix: str = "") -> Said:
    """The backend's row and its finding. `detail` is of an operation that was done; else the outcome has it."""
    version = str(outcome.values.get("version", ""))
    if outcome.ran:
        state = detail
    else:
        state = {"absent": "not here", "failed": "fails", "crashed": "crashes", "hung": "hangs"}[outcome.state]
        state = f"{state}: {outcome.detail}"
    backend = Backend(name, outcome.ran, version, state)
    what = f"{name} {version}".rstrip() + f": {state}"
    return backend, Finding(level, "backend", what, f"package {name.split()[0]}", "" if level == "ok" else fix)


def _level(outcome: Outcome, *, wanted: bool = False) -> Level:
    """How bad an outcome is of a backend that `describe` can do without, unless it crashes or hangs there; absent is
    as it should be but where it is `wanted`."""
    if outcome.ran or (outcome.state == "absent" and not wanted):
        return "ok"
    return "fail" if outcome.state in ("crashed", "hung") else "warn"


def _opencv(host: Host, say: Say) -> Said:
    outcome = _try(host, say, "opencv")
    values = outcome.values
    detail = f"decoded {values.get('frames')} {values.get('codec')} frames with {values.get('reader')}"
    return _said("opencv", outcome, detail, "ok" if outcome.ran else "fail", _INSTALL["opencv"])


def _onnxruntime(host: Host, say: Say) -> list[Said]:
    """The processor's provider, which svrt needs, and every other that is listed: lists are longer than what runs."""
    listed = _try(host, say, "providers")
    if not listed.ran:
        return [_said("onnxruntime", listed, "", "fail", _INSTALL["onnxruntime"])]
    names = [str(name) for name in listed.values.get("providers", [])]
    found = []
    for provider in [_CPU, *(name for name in names if name not in (_CPU, _REMOTE))]:
        outcome = _try(host, say, "onnxruntime", provider)
        level: Level = "ok" if outcome.ran else "fail" if provider == _CPU else "warn"
        name = f"onnxruntime {provider.removesuffix('ExecutionProvider')}"
        detail = "ran a matrix product" + ("" if provider == _CPU else "; svrt does not use it")
        found.append(_said(name, outcome, detail, level, _reinstall(host)))
    return found


def _reinstall(host: Host) -> str:
    """Wheels of ONNX Runtime write into one folder, so all go before one comes."""
    others = sorted(name for name in host.packages if name.startswith("onnxruntime-"))
    return f"pip uninstall -y {' '.join(others)} && {_INSTALL['onnxruntime']}" if others else _INSTALL["onnxruntime"]


def _openvino(host: Host, say: Say) -> Said:
    """OpenVINO. Where it fails `auto` takes another; where it crashes or hangs, so does `svrt describe`."""
    outcome = _try(host, say, "openvino")
    detail = f"ran a matrix product in {' and '.join(outcome.values.get('precisions', []))}"
    return _said("openvino", outcome, detail, _level(outcome), "pip uninstall -y openvino")


def _ncnn(host: Host, say: Say) -> Said:
    """ncnn. Where it fails `auto` takes another; where it crashes or hangs, so does `svrt describe`."""
    outcome = _try(host, say, "ncnn")
    return _said("ncnn", outcome, "ran a convolution", _level(outcome), "pip uninstall -y ncnn")


def _vnni(host: Host, say: Say) -> Said:
    """svrt's own kernels. Where they fail `auto` takes a library; where they crash or hang, so does `svrt describe`."""
    outcome = _try(host, say, "vnni")
    level = _level(outcome)
    fix = "svrt describe --backend onnxruntime CLIP" if level == "fail" else "sudo apt install gcc libc6-dev"
    backend, finding = _said("vnni", outcome, "compiled, and ran two convolutions", level, fix)
    return backend, replace(finding, where="svrt.kernels.vnni")


def _tensorrt(host: Host, machine: Machine, backend: str, say: Say) -> Said:
    """TensorRT. Where it fails `auto` takes another; where it crashes or hangs, so does `svrt describe`."""
    outcome = _try(host, say, backend)
    values = outcome.values
    wanted = machine.nvidia_gpu and (backend == "tensorrt") == machine.jetson
    level = _level(outcome, wanted=wanted)
    device = f"{values.get('device')}, compute capability {values.get('compute_capability')}"
    fix = _INSTALL["tensorrt-rtx"]
    if backend == "tensorrt":
        fix = board.system_tensorrt(host) if machine.jetson else "pip uninstall -y tensorrt"
    if level == "ok" and not outcome.ran:  # how it would be installed is no news where it is not wanted
        outcome = replace(outcome, detail=outcome.detail.partition(" (")[0])
    return _said(backend, outcome, f"built an engine, loaded it and ran it on {device}", level, fix)


def _llama(host: Host, machine: Machine, bundle: Bundle | None, say: Say) -> Said:
    arguments: tuple[str, ...] = ()
    if bundle is not None:
        arguments = (str(bundle.file(DECODER).absolute()), bundle.manifest.files[DECODER].precision)
    outcome = _try(host, say, "llama", *arguments)
    amx = bool(outcome.values.get("amx"))
    install = _llama_install(host, machine, amx)
    name, installed = "llama-cpp-python", host.packages.get("llama-cpp-python", LLAMA)
    if outcome.ran and installed != LLAMA:
        outcome = Outcome("failed", f"svrt is written for {LLAMA}; another version may crash", outcome.values)
    detail = f"loaded {outcome.values.get('model')} and computed a token with {outcome.values.get('device')}"
    if bundle is None:
        detail = "the library loads; no GGUF is at hand, so a token was not tried"
    if not outcome.ran:
        return _said(name, outcome, "", "fail", install)
    if machine.nvidia_gpu and not outcome.values.get("gpu"):
        return _said(name, outcome, f"{detail}; it was built without CUDA, so the GPU is not used", "warn", install)
    if amx:
        return _said(name, outcome, f"{detail}; it was built with AMX, and is slower without using it", "warn", install)
    return _said(name, outcome, detail, "ok")


def _llama_install(host: Host, machine: Machine, amx: bool) -> str:
    """The line that builds llama.cpp for this machine; on a small board without CUDA's virtual memory: it crashes."""
    install = _INSTALL["llama"]
    if "llama-cpp-python" in host.packages:
        install = install.replace("--force-reinstall", "--force-reinstall --no-deps")  # NumPy stays as it is
    options = [_WITHOUT_AMX] if amx else []
    compiler = ""
    if machine.nvidia_gpu:
        compiler = "CUDACXX=/usr/local/cuda/bin/nvcc "
        options.append("-DGGML_CUDA=on")
        if machine.soc:
            options.append(f"-DCMAKE_CUDA_ARCHITECTURES={COMPUTE_CAPABILITY[machine.soc]}")
        if machine.jetson and (machine.memory or 0) < board.SMALL_BOARD:
            options.append("-DGGML_CUDA_NO_VMM=ON")
    return f"{compiler}CMAKE_ARGS='{' '.join(options)}' {install}" if options else install


def describes(host: Host, bundle: Bundle, again: str, say: Say) -> Finding:
    """Whether a description succeeds, from a clip to a text. `again` is the line that exports the bundle anew."""
    outcome = _try(host, say, "describe", str(bundle.path.absolute()))
    where = str(bundle.path)
    if outcome.ran:
        seconds = outcome.values.get("ms", 0.0) / 1000
        return Finding("ok", "describe", f"described a generated clip in {seconds:.1f} s with ONNX Runtime", where)
    if "SIGKILL" in outcome.detail:
        return Finding("fail", "describe", f"{outcome.detail}, as a rule for want of memory", where, board.SWAP_FILE)
    return Finding("fail", "describe", f"cannot describe a generated clip: {outcome.detail}", where, again)


def sample_clip() -> Path:
    """The clip that svrt ships."""
    return Path(__file__).parent.parent / "models" / "pocket" / "sample" / "make.mp4"
