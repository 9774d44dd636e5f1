"""The CUDA kernels: their sources executed by this processor against the CPU twins, and compiled by nvcc for a Jetson.

`cuda_on_cpu.cpp` includes the .cu files as they are, and the stand-in driver launches them through the very code that
would launch them on a board. Where this machine has an NVIDIA GPU and nvcc, the same claims are held against it, too.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import svrt
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stand_in_gpu import Driver
from svrt.errors import EngineError
from svrt.kernels import haar, nvcc, views
from svrt.kernels.preprocess import Normalisation, fit_square, normalise
from svrt.runtime import frame_kernels
from svrt.runtime.engines import cuda
from svrt.runtime.frame_kernels import FrameKernels, GpuFrame, GpuView

KERNELS = Path(svrt.__file__).parent / "kernels"
IMAGENET = Normalisation("rgb", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OXFORD = Normalisation("bgr", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))
PLAIN = Normalisation("bgr", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NAMES = {
    f"{work}_{layout}_{kind}"
    for work in ("resize", "motion")
    for layout in ("bgr", "nv12")
    for kind in ("float", "half")
}
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """The .cu files compiled for this processor, a * b + c in two roundings as on the GPU."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("cuda") / "kernels.so"
    here = Path(__file__).parent
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = [compiler, *flags, "-I", str(KERNELS), "-I", str(here), "-o", str(library), str(here / "cuda_on_cpu.cpp")]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.cpu_half.argtypes, loaded.cpu_half.restype = [ctypes.c_float], ctypes.c_uint16
    return loaded


@pytest.fixture(scope="module")
def stand_in(code, tmp_path_factory):
    """A board's GPU stood in for, with what nvcc would have made in the cache: the launching code does not know."""
    driver = Driver(name="Orin", capability=(8, 7), code=code)
    cubins = {name: tmp_path_factory.mktemp("cubins") / name for name in nvcc.SOURCES}
    for path in cubins.values():
        path.write_bytes(b"\x7fELF")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_load_library", lambda: driver)
        device = cuda.Device()
    return Gpu(device, cubins, driver)


@pytest.fixture(scope="module", params=["stand-in", "this machine's"])
def gpu(request, tmp_path_factory):
    """Each GPU to be had: the one that is stood in for, and this machine's own."""
    if request.param == "stand-in":
        return request.getfixturevalue("stand_in")
    try:
        device = cuda.Device()
        return Gpu(device, nvcc.compile_kernels(tmp_path_factory.mktemp("cubins"), device.compute_capability))
    except EngineError as exc:
        pytest.skip(str(exc))


class Gpu:
    """Frames in, tensors out."""

    def __init__(self, device, cubins, driver=None):
        self.device, self.cubins, self.driver = device, cubins, driver
        self.stream = cuda.Stream(self.device)
        self.kernels = self.new_kernels()

    def new_kernels(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frame_kernels, "compile_kernels", lambda cache, capability: self.cubins)
            return FrameKernels(self.device, Path("unused"))

    def put(self, array):
        """Device memory that holds exactly these bytes."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        memory, host = cuda.DeviceMemory(self.device, data.size), self.pinned(data.size)
        host.array.view(np.uint8)[: data.size] = data
        self.stream.copy_in(memory, host, data.size)
        self.stream.synchronize()
        return memory

    def pinned(self, size):
        return cuda.PinnedArray(self.device, (-(-size // 4),))

    def frame(self, layout, pixels, pad):
        """A frame of `layout` in rows that are `pad` bytes longer than needed; with the memory that it lies in."""
        if layout == "bgr":
            height, width = pixels.shape[:2]
            memory = self.put(np.pad(pixels.reshape(height, -1), ((0, 0), (0, pad))))
            return GpuFrame("bgr", width, height, memory.address, 3 * width + pad), memory
        height, width = pixels.shape[0] * 2 // 3, pixels.shape[1]
        rows = np.pad(pixels, ((0, 0), (0, pad)))
        luma, chroma = self.put(rows[:height]), self.put(rows[height:])
        pitch = width + pad
        return GpuFrame("nv12", width, height, luma.address, pitch, chroma.address, pitch), (luma, chroma)

    def get(self, memory, shape, dtype):
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        host = self.pinned(size)
        self.stream.copy_out(host, memory, size)
        self.stream.synchronize()
        return np.frombuffer(host.array.tobytes()[:size], dtype).reshape(shape)

    def resize(self, layout, pixels, norm, size, fit, resize_to, half, pad=0):
        frame, held = self.frame(layout, pixels, pad)
        view = GpuView(self.device, self.stream, views.view(frame.width, frame.height, size, fit, resize_to))
        dtype = np.float16 if half else np.float32
        tensor = cuda.DeviceMemory(self.device, 3 * size * size * np.dtype(dtype).itemsize)
        self.kernels.resize(frame, view, norm, tensor.address, self.stream, half=half)
        self.stream.synchronize()
        del held
        return self.get(tensor, (3, size, size), dtype)

    def motion(self, layout, clip, level, half, norm=PLAIN, pad=0):
        """Bands and motion of a clip's frames, one after the other."""
        bands, tensors, before = [], [], None
        for pixels in clip:
            frame, held = self.frame(layout, pixels, pad)
            shape = (-(-frame.height // 2**level), -(-frame.width // 2**level))
            dtype = np.float16 if half else np.float32
            band = cuda.DeviceMemory(self.device, 4 * shape[0] * shape[1])
            tensor = cuda.DeviceMemory(self.device, 3 * shape[0] * shape[1] * np.dtype(dtype).itemsize)
            previous = before.address if before else 0
            arguments = (frame, level, previous, band.address, tensor.address, self.stream)
            self.kernels.motion(*arguments, half=half, norm=norm)
            self.stream.synchronize()
            bands.append(self.get(band, shape, np.float32))
            tensors.append(self.get(tensor, (3, *shape), dtype))
            before = band
            del held
        return np.stack(bands), np.stack(tensors)


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_within_an_ulp(halves, twin):
    """Half precision values beside what the float32 twin rounds to: at most one step apart."""
    assert halves.dtype == np.float16
    steps = [values.view(np.int16).astype(np.int32) for values in (halves, twin.astype(np.float16))]
    ordered = [np.where(step < 0, -(step & 0x7FFF), step) for step in steps]
    assert np.abs(ordered[0] - ordered[1]).max() <= 1


@st.composite
def views_of_frames(draw):
    height, width, size = draw(st.integers(1, 90)), draw(st.integers(1, 90)), draw(st.integers(1, 40))
    fit = draw(st.sampled_from(["crop", "stretch"]))
    return height, width, size, fit, size + draw(st.integers(0, 9)) if fit == "crop" else None


FITS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FITS
@given(case=views_of_frames(), norm=st.sampled_from([IMAGENET, OXFORD]), pad=st.integers(0, 5), seed=SEEDS)
@example(case=(64, 48, 24, "crop", 24), norm=IMAGENET, pad=0, seed=0)
@example(case=(64, 64, 32, "stretch", None), norm=OXFORD, pad=0, seed=0)
@example(case=(96, 96, 32, "stretch", None), norm=OXFORD, pad=0, seed=0)
def test_a_bgr_frame_becomes_exactly_what_the_twins_make_of_it(gpu, case, norm, pad, seed):
    height, width, size, fit, resize_to = case
    frame = noise(seed, height, width, 3)
    twin = normalise(fit_square(frame, size, fit, resize_to)[None], norm)[0]
    np.testing.assert_array_equal(gpu.resize("bgr", frame, norm, size, fit, resize_to, half=False, pad=pad), twin)
    assert_within_an_ulp(gpu.resize("bgr", frame, norm, size, fit, resize_to, half=True, pad=pad), twin)


@FITS
@given(case=views_of_frames(), norm=st.sampled_from([IMAGENET, OXFORD]), pad=st.integers(0, 5), seed=SEEDS)
def test_an_nv12_frame_is_converted_as_opencv_does_and_then_the_same(gpu, case, norm, pad, seed):
    height, width, size, fit, resize_to = case
    pixels = noise(seed, 3 * height, 2 * width)
    bgr = cv2.cvtColor(pixels, cv2.COLOR_YUV2BGR_NV12)
    twin = normalise(fit_square(bgr, size, fit, resize_to)[None], norm)[0]
    np.testing.assert_array_equal(gpu.resize("nv12", pixels, norm, size, fit, resize_to, half=False, pad=pad), twin)
    assert_within_an_ulp(gpu.resize("nv12", pixels, norm, size, fit, resize_to, half=True, pad=pad), twin)


@pytest.mark.parametrize("layout", ["bgr", "nv12"])
@pytest.mark.parametrize(
    ("height", "width", "size", "fit", "resize_to", "norm"),
    [
        (720, 1280, 256, "crop", 292, IMAGENET),
        (720, 1280, 224, "stretch", None, OXFORD),
        (512, 512, 256, "stretch", None, IMAGENET),
        (240, 320, 256, "crop", 292, IMAGENET),
    ],
)
def test_frames_of_the_sizes_that_cameras_give_equal_the_twins(gpu, layout, height, width, size, fit, resize_to, norm):
    pixels = noise(3, height, width, 3) if layout == "bgr" else noise(3, height * 3 // 2, width)
    bgr = pixels if layout == "bgr" else cv2.cvtColor(pixels, cv2.COLOR_YUV2BGR_NV12)
    twin = normalise(fit_square(bgr, size, fit, resize_to)[None], norm)[0]
    assert_within_an_ulp(gpu.resize(layout, pixels, norm, size, fit, resize_to, half=True), twin)


@FITS
@given(height=st.integers(1, 70), width=st.integers(1, 70), level=st.integers(1, 4), pad=st.integers(0, 5), seed=SEEDS)
@example(height=720, width=1280, level=2, pad=0, seed=0)
@example(height=1080, width=1918, level=2, pad=2, seed=0)
def test_motion_of_bgr_frames_is_exactly_that_of_the_twins_thrice(gpu, height, width, level, pad, seed):
    clip = noise(seed, 3, height, width, 3)
    check_motion(gpu, "bgr", clip, clip, level, pad)


@FITS
@given(height=st.integers(1, 35), width=st.integers(1, 35), level=st.integers(1, 4), pad=st.integers(0, 5), seed=SEEDS)
def test_motion_of_nv12_frames_is_exactly_that_of_the_twins_thrice(gpu, height, width, level, pad, seed):
    clip = noise(seed, 3, 3 * height, 2 * width)
    check_motion(gpu, "nv12", clip, [cv2.cvtColor(pixels, cv2.COLOR_YUV2BGR_NV12) for pixels in clip], level, pad)


def check_motion(gpu, layout, clip, bgr, level, pad):
    bands = np.stack([haar.approximation(haar.luma(frame), level) for frame in bgr])
    twin = np.repeat(haar.motion_maps(bands, level)[:, None], 3, axis=1)
    got_bands, got = gpu.motion(layout, clip, level, half=False, pad=pad)
    np.testing.assert_array_equal(got_bands, bands)
    np.testing.assert_array_equal(got, twin)
    assert_within_an_ulp(gpu.motion(layout, clip, level, half=True, pad=pad)[1], twin)


def test_motion_can_be_normalised_as_vgg16_reads_it(gpu):
    clip = noise(5, 2, 40, 56, 3)
    bands = np.stack([haar.approximation(haar.luma(frame)) for frame in clip])
    maps = np.repeat(haar.motion_maps(bands)[..., None], 3, axis=3)
    np.testing.assert_array_equal(gpu.motion("bgr", clip, 2, half=False, norm=OXFORD)[1], normalise(maps, OXFORD))


def test_the_halves_of_this_processor_are_numpys(code):
    bits = np.arange(0x7C00, dtype=np.uint16)
    exact = bits.view(np.float16).astype(np.float32)
    middles = (exact[:-1] + exact[1:]) / 2
    values = [exact, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(np.inf))]
    values = np.concatenate([*values, np.float32([65519.9, 65520, 1e9, np.inf, 1e-9])])
    values = np.concatenate([values, -values])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal([code.cpu_half(value) for value in values.tolist()], expected)


def test_what_python_packs_is_what_the_kernels_unpack(code):
    for work, jobs in (("resize", frame_kernels.RESIZE_JOBS), ("motion", frame_kernels.MOTION_JOBS)):
        for layout, job in jobs.items():
            assert ctypes.sizeof(job) == ctypes.c_uint.in_dll(code, f"size_{work}_{layout}_half").value


def test_memory_of_views_and_kernels_is_given_back(stand_in):
    gpu, driver = stand_in, stand_in.driver
    before = driver.held, len(driver.modules)
    kernels, view = gpu.new_kernels(), GpuView(gpu.device, gpu.stream, views.view(64, 48, 32))
    assert (driver.held, len(driver.modules)) != before
    del kernels, view
    assert (driver.held, len(driver.modules)) == before


def test_a_kernel_that_is_not_there_and_a_cubin_that_is_none_are_refused(gpu):
    with pytest.raises(EngineError, match="NOT_FOUND"):
        gpu.kernels._modules["haar"].kernel("blur")
    with pytest.raises(EngineError, match=r"NO_BINARY_FOR_GPU|INVALID_IMAGE"):
        cuda.Module(gpu.device, b"#!/bin/sh")


@pytest.mark.parametrize("level", [0, 9])
def test_a_level_whose_sums_would_not_be_exact_is_refused(gpu, level):
    with pytest.raises(ValueError, match="level"):
        gpu.kernels.motion(GpuFrame("bgr", 8, 8, 1, 24), level, 0, 1, 1, gpu.stream, half=True)


def test_nv12_of_odd_sides_or_without_chroma_is_refused():
    with pytest.raises(ValueError, match="even"):
        GpuFrame("nv12", 7, 8, 1, 8, 1, 8)
    with pytest.raises(ValueError, match="chroma"):
        GpuFrame("nv12", 8, 8, 1, 8)


@pytest.fixture(scope="module")
def compiler():
    try:
        return nvcc.find_nvcc()
    except EngineError as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("arch", ["sm_87", "sm_110"])
def test_nvcc_builds_both_sources_without_a_spill(compiler, arch, tmp_path):
    found = {}
    for name in nvcc.SOURCES:
        try:
            text = nvcc.report(compiler, KERNELS / f"{name}.cu", arch, tmp_path / f"{name}.cubin")
        except EngineError as exc:
            if arch == "sm_87" or "gpu-architecture" not in str(exc):
                raise
            pytest.skip(f"this nvcc does not know {arch}: Thor is of CUDA 13")
        assert (tmp_path / f"{name}.cubin").read_bytes()[:4] == b"\x7fELF"
        pattern = r"entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes"
        found |= {entry: (sm, *map(int, rest)) for entry, sm, *rest in re.findall(pattern, text, re.DOTALL)}
    assert found == dict.fromkeys(NAMES, (arch, 0, 0, 0))


def test_no_product_and_sum_are_fused_on_the_gpu(compiler, tmp_path):
    for name in nvcc.SOURCES:
        flags = ["-ptx" if flag == "-cubin" else flag for flag in nvcc.FLAGS]
        out = tmp_path / f"{name}.ptx"
        subprocess.run(
            [compiler, *flags, "-arch=sm_87", "-o", out, KERNELS / f"{name}.cu"], check=True, capture_output=True
        )
        text = out.read_text()
        assert "fma." not in text
        assert "mul.f32" in text or "mul.rn.f32" in text
        assert "cvt.rn.f16.f32" in text


def test_cubins_are_made_once_and_again_for_another_gpu(compiler, tmp_path):
    first = nvcc.compile_kernels(tmp_path, "8.7")
    assert set(first) == {"resize", "haar"} and all("sm_87" in path.name for path in first.values())
    times = {path: path.stat().st_mtime_ns for path in first.values()}
    assert nvcc.compile_kernels(tmp_path, "8.7") == first
    assert {path: path.stat().st_mtime_ns for path in first.values()} == times
    assert set(tmp_path.iterdir()) == set(times), "nothing half-made stays"


def test_no_nvcc_and_an_nvcc_that_fails_are_each_said_in_a_line(tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "nvcc"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit\necho 'nvcc fatal : Value sm_87 is not defined' >&2; exit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(EngineError, match=r"resize\.cu: .*sm_87 is not defined") as error:
        nvcc.compile_kernels(tmp_path / "out", "8.7")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(nvcc.Path, "is_file", lambda path: False)
    with pytest.raises(EngineError, match="apt install"):
        nvcc.find_nvcc()
