"""One operation on one backend: run as `python -m svrt.doctor.operations NAME ...`, so that a crash stays in there.

The last line it prints is JSON: `state`, `detail` and `values` of `svrt.doctor.host.Outcome`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from ctypes import CDLL, byref, c_uint, c_void_p, create_string_buffer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .graph import INPUT, OUTPUT, SIDE, answer, graph_bytes

FRAMES = 20
_CODECS = (("clip.mp4", "mp4v"), ("clip.avi", "MJPG"))  # of writers that OpenCV has with FFmpeg, and always
_X = [1.0, -2.0, 3.0, 0.5]
_TOLERANCE = 0.05  # of 28.5, the largest value: room for TF32 and FP16
_TOKENS = 8  # of a description that is only tried


class Absent(Exception):  # noqa: N818 - not an error of anyone's
    """What an operation needs is not installed, or has no device here; with what was found before that showed."""

    def __init__(self, detail: object, **values: Any) -> None:
        super().__init__(str(detail))
        self.values = values


def opencv() -> dict[str, Any]:
    """Decode generated frames through the runtime's own reader, and compare their brightness."""
    import cv2
    import numpy as np

    from ..runtime.video import Frame, read_candidates

    class Brightness:
        def __init__(self) -> None:
            self.found: list[float] = []

        def add(self, frame: Frame) -> None:
            self.found.append(float(frame.image.mean()))

    levels = [20 + 10 * index for index in range(FRAMES)]
    clip, codec = _write_clip([np.full((96, 128, 3), level, np.uint8) for level in levels])
    found = read_candidates(clip, FRAMES, Brightness)[0].found
    if len(found) != FRAMES or max(abs(a - b) for a, b in zip(found, levels, strict=True)) > 8:
        raise RuntimeError(f"{len(found)} of {FRAMES} {codec} frames came back, or with other pictures in them")
    return {"version": cv2.__version__, "frames": len(found), "codec": codec, "reader": _reader(clip)}


def _write_clip(frames: list[Any]) -> tuple[Path, str]:
    import cv2

    size = (frames[0].shape[1], frames[0].shape[0])
    for name, codec in _CODECS:
        writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*codec), 30.0, size)
        if writer.isOpened():
            for frame in frames:
                writer.write(frame)
            writer.release()
            return Path(name), codec
    raise RuntimeError("OpenCV can write neither MPEG-4 nor Motion JPEG, so there is nothing to decode")


def _reader(clip: Path) -> str:
    import cv2

    capture = cv2.VideoCapture(str(clip.absolute()))
    return str(capture.getBackendName()) if capture.isOpened() else ""


def providers() -> dict[str, Any]:
    """What ONNX Runtime lists, which says nothing of what runs."""
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": list(onnxruntime.get_available_providers())}


def onnxruntime(provider: str) -> dict[str, Any]:
    """Run the tiny graph on one provider of ONNX Runtime, and on no other."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if provider != "CPUExecutionProvider":  # or what it cannot do is done by the processor, without a word
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(graph_bytes(), options, providers=[provider])
    if provider not in session.get_providers():
        raise RuntimeError("listed, but its libraries do not load")
    _check(session.run([OUTPUT], {INPUT: np.array([_X], np.float32)})[0])
    return {"version": onnxruntime.__version__}


def openvino() -> dict[str, Any]:
    """Run the tiny graph on both of OpenVINO's backends, as the runtime loads them."""
    import numpy as np
    import openvino  # noqa: F401  ModuleNotFoundError is told from what else keeps it from loading

    from ..runtime.engines import load

    path = Path("tiny.onnx")
    path.write_bytes(graph_bytes())
    engines = [load(path, backend) for backend in ("openvino", "openvino-fp32")]
    for engine in engines:
        _check(engine({INPUT: np.array([_X], np.float32)})[OUTPUT])
    return {"version": version("openvino"), "precisions": list(dict.fromkeys(one.precision for one in engines))}


def ncnn() -> dict[str, Any]:
    """Run a convolution as the runtime runs VGG-16's."""
    import ncnn  # noqa: F401  ModuleNotFoundError is told from what else keeps it from loading
    import numpy as np

    from ..runtime.engines.ncnn import NcnnEngine
    from ..runtime.engines.onnx_chain import Chain, Node

    weights = {"weight": np.ones((1, 1, 3, 3), np.float32), "bias": np.full(1, 0.5, np.float32)}
    nodes = (
        Node("Conv", ("weight", "bias"), {"pads": (1, 1, 1, 1)}),
        Node("GlobalAveragePool", (), {}),
        Node("Flatten", (), {}),
    )
    found = NcnnEngine(Path("tiny"), Chain("x", "y", (None, 1, 3, 3), nodes, weights))(
        {"x": np.ones((1, 1, 3, 3), np.float32)}
    )["y"]
    if not np.allclose(found, 49 / 9 + 0.5, atol=1e-4):  # of nine windows one sees 9 ones, four 6 and four 4
        raise RuntimeError(f"wrong result: {found}")
    return {"version": version("ncnn")}


def vnni() -> dict[str, Any]:
    """Compile svrt's own kernels, and run two convolutions as the runtime runs VGG-16's."""
    import numpy as np

    from ..runtime.engines import AbsentError
    from ..runtime.engines.onnx_chain import Chain, Node
    from ..runtime.engines.vnni_vgg16 import VnniVgg16

    first, second = np.zeros((64, 3, 3, 3), np.float32), np.full((64, 64, 3, 3), 1 / 64, np.float32)
    first[:, 0, 1, 1] = 1
    weights = {"first": first, "second": second, "bias": np.full(64, 0.5, np.float32)}
    convolutions = [Node("Conv", (name, "bias"), {"pads": (1, 1, 1, 1)}) for name in ("first", "second")]
    relu, end = Node("Relu", (), {}), (Node("GlobalAveragePool", (), {}), Node("Flatten", (), {}))
    nodes = (convolutions[0], relu, convolutions[1], relu, *end)
    try:
        engine = VnniVgg16(Path("tiny"), Chain("x", "y", (None, 3, 4, 4), nodes, weights), None)
    except AbsentError as exc:
        raise Absent(exc) from exc
    found = engine({"x": np.full((1, 3, 4, 4), 0.5, np.float32)})["y"]
    if not np.allclose(found, 100 / 16 + 0.5, atol=1e-2):  # of 16 windows 4 see 9 ones, 8 see 6 and 4 see 4
        raise RuntimeError(f"wrong result: {found}")
    return {}


def tensorrt(backend: str = "tensorrt") -> dict[str, Any]:
    """Import TensorRT, build the tiny graph's engine, deserialise it and run it, as the runtime does."""
    import numpy as np

    from ..runtime.engines import AbsentError, EngineStore, load
    from ..runtime.engines.cuda import Device
    from ..runtime.engines.tensorrt_build import find_module

    found: dict[str, Any] = {}
    path = Path("tiny.onnx")
    path.write_bytes(graph_bytes())
    try:
        found["version"] = find_module(backend).__version__
        device = Device()
        engine = load(path, backend, store=EngineStore(Path("engines").absolute(), max_batch=1))
    except AbsentError as exc:
        raise Absent(exc, **found) from exc
    _check(engine({INPUT: np.array([_X], np.float32)})[OUTPUT])
    return {**found, "device": device.name, "compute_capability": device.compute_capability}


def _check(y: Any) -> None:
    error = max(abs(float(a) - b) for a, b in zip(y.reshape(-1), answer(_X), strict=True))
    if not error <= _TOLERANCE:  # a NaN is no answer either
        raise RuntimeError(f"its matrix product of {SIDE} numbers is off by {error:g}")


def llama(gguf: str = "", precision: str = "") -> dict[str, Any]:
    """Load a GGUF and compute one token; without one, only the library."""
    import llama_cpp

    from ..runtime.decoder import Decoder, has_amx, is_repacked

    found = {
        "version": llama_cpp.__version__,
        "gpu": bool(llama_cpp.llama_supports_gpu_offload()),
        "amx": has_amx(llama_cpp),
    }
    if not gguf:
        return found
    import numpy as np

    with Decoder(
        Path(gguf), prefix="A", suffix="B", max_tokens=1, video_tokens=1, repacked=is_repacked(precision)
    ) as decoder:
        decoder.generate(np.zeros((1, decoder.width), np.float32))
        return {**found, "device": decoder.backend, "model": decoder.name}


def describe(bundle: str) -> dict[str, Any]:
    """Describe a generated clip with a bundle whose hashes were checked, its graphs on the backend that runs anywhere.

    `auto` would build TensorRT's engines first, which takes minutes on a board; `tensorrt` tries that with a tiny one.
    """
    import cv2
    import numpy as np

    from ..bundle import Bundle
    from ..runtime.engines import ANYWHERE
    from ..runtime.pipeline import Pipeline

    frames = [np.full((120, 160, 3), 90, np.uint8) for _ in range(FRAMES)]
    for index, frame in enumerate(frames):
        cv2.circle(frame, (8 * index, 60), 10, (40, 90, 200), -1)
    clip, _ = _write_clip(frames)
    with Pipeline(Bundle.load(Path(bundle), verify=False), ANYWHERE, _TOKENS) as pipeline:
        found = pipeline.describe(clip)
    return {"ms": found.timings_ms.total, "text": found.text, "backends": found.backends}


def nvml() -> dict[str, Any]:
    """What NVML answers: status of initialisation, the first device's name, status of asking for its power."""
    try:
        library = CDLL("libnvidia-ml.so.1")
    except OSError as exc:
        raise Absent(exc) from exc
    maps = Path("/proc/self/maps").read_text()
    file = next((line.split()[-1] for line in maps.splitlines() if "libnvidia-ml" in line), "")
    found: dict[str, Any] = {"library": file, "init": int(library.nvmlInit_v2())}
    device, name, power = c_void_p(), create_string_buffer(96), c_uint()
    if found["init"] == 0 and library.nvmlDeviceGetHandleByIndex_v2(c_uint(0), byref(device)) == 0:
        library.nvmlDeviceGetName(device, name, c_uint(len(name)))
        found["name"] = name.value.decode(errors="replace")
        found["power"] = int(library.nvmlDeviceGetPowerUsage(device, byref(power)))
    return found


OPERATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "opencv": opencv,
    "providers": providers,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ncnn": ncnn,
    "vnni": vnni,
    "tensorrt": tensorrt,
    "tensorrt-rtx": lambda: tensorrt("tensorrt-rtx"),
    "llama": llama,
    "describe": describe,
    "nvml": nvml,
}


def perform(name: str, *arguments: str) -> dict[str, Any]:
    """Do the operation; its outcome as plain values. Anything it raises is an outcome."""
    started = time.perf_counter()
    try:
        values = OPERATIONS[name](*arguments)
    except (Absent, ModuleNotFoundError) as exc:
        return {"state": "absent", "detail": _line(exc), "values": getattr(exc, "values", {})}
    except Exception as exc:
        return {"state": "failed", "detail": _line(exc), "values": {}}
    return {"state": "ran", "detail": "", "values": {**values, "seconds": round(time.perf_counter() - started, 3)}}


def _line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]


if __name__ == "__main__":
    print(f"\n{json.dumps(perform(*sys.argv[1:]))}", flush=True)
