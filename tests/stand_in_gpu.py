"""A GPU for machines without one: the driver's functions over host memory, and TensorRT's contexts over ONNX Runtime.

Only the hardware is stood in for. Engines are built by the real TensorRT for RTX; what runs one reads and writes at the
addresses it was given, when its stream is waited for, and fails where an address, size or order is wrong.
"""

# ruff: noqa: N802 - functions have the names of cuda.h

import ctypes
import hashlib
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint, c_void_p
from ctypes import c_ulonglong as c_address
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

GARBAGE = 0xFF  # float32 of these bytes is not a number
INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, NO_IMAGE, NOT_FOUND, UNSUPPORTED = 1, 2, 100, 209, 500, 900
ERRORS = {
    INVALID_VALUE: b"CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY",
    NO_DEVICE: b"CUDA_ERROR_NO_DEVICE",
    NO_IMAGE: b"CUDA_ERROR_NO_BINARY_FOR_GPU",
    NOT_FOUND: b"CUDA_ERROR_NOT_FOUND",
    UNSUPPORTED: b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
}


class Driver:
    """libcuda.so.1 as C functions, with the prototypes of cuda.h; work waits until its stream is synchronized.

    `code` holds what kernels do: the sources compiled for this processor, see cuda_on_cpu.h.
    """

    def __init__(self, name="Stand-in GPU", capability=(8, 6), code=None):
        self.name, self.capability, self.code = name, capability, code
        self.fails = {}  # function: error
        self.counts = {}  # function: calls
        self.memory, self.pinned, self.streams, self.graphs = {}, {}, {}, {}
        self.modules, self.kernels = {}, {}
        self.contexts, self.current, self._next = 0, None, 0x1000
        prototypes = {
            "cuInit": (c_uint,),
            "cuGetErrorName": (c_int, POINTER(c_char_p)),
            "cuDeviceGet": (POINTER(c_int), c_int),
            "cuDeviceGetName": (c_void_p, c_int, c_int),
            "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
            "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
            "cuDevicePrimaryCtxRelease_v2": (c_int,),
            "cuCtxSetCurrent": (c_void_p,),
            "cuMemAlloc_v2": (POINTER(c_address), c_size_t),
            "cuMemFree_v2": (c_address,),
            "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
            "cuMemFreeHost": (c_void_p,),
            "cuMemcpyHtoDAsync_v2": (c_address, c_void_p, c_size_t, c_void_p),
            "cuMemcpyDtoHAsync_v2": (c_void_p, c_address, c_size_t, c_void_p),
            "cuStreamCreate": (POINTER(c_void_p), c_uint),
            "cuStreamDestroy_v2": (c_void_p,),
            "cuStreamSynchronize": (c_void_p,),
            "cuStreamBeginCapture_v2": (c_void_p, c_int),
            "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
            "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_address),
            "cuGraphDestroy": (c_void_p,),
            "cuGraphLaunch": (c_void_p, c_void_p),
            "cuGraphExecDestroy": (c_void_p,),
            "cuModuleLoadData": (POINTER(c_void_p), c_void_p),
            "cuModuleUnload": (c_void_p,),
            "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
            "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), c_void_p),
        }
        for function, arguments in prototypes.items():
            setattr(self, function, CFUNCTYPE(c_int, *arguments)(self._counted(function)))

    def _counted(self, function):
        work = getattr(self, f"_{function.removeprefix('cu').split('_v2')[0]}")

        def call(*arguments):
            self.counts[function] = self.counts.get(function, 0) + 1
            if function in self.fails:
                if function == "cuStreamEndCapture":  # fails, and ends the recording all the same
                    self.streams[arguments[0]] = (self.streams[arguments[0]][0], None)
                return self.fails[function]
            try:
                return work(*arguments) or 0
            except Exception as exc:  # what ctypes would print and take for success
                print(f"{function}: {exc!r}")
                return INVALID_VALUE

        return call

    @property
    def held(self):
        """What was made and not given back."""
        return (self.contexts, len(self.memory), len(self.pinned), len(self.streams), len(self.graphs))

    def _handle(self):
        self._next += 0x10
        return self._next

    def _Init(self, flags):
        assert flags == 0

    def _GetErrorName(self, error, text):
        text[0] = ERRORS[error]

    def _DeviceGet(self, device, ordinal):
        device[0] = 7 + ordinal

    def _DeviceGetName(self, text, size, device):
        assert device == 7
        ctypes.memmove(text, self.name.encode() + b"\0", len(self.name) + 1)

    def _DeviceGetAttribute(self, value, attribute, device):
        value[0] = self.capability[{75: 0, 76: 1}[attribute]]

    def _DevicePrimaryCtxRetain(self, context, device):
        assert device == 7
        self.contexts += 1
        context[0] = 0xC0

    def _DevicePrimaryCtxRelease(self, device):
        assert device == 7
        self.contexts -= 1

    def _CtxSetCurrent(self, context):
        assert context == 0xC0
        self.current = context

    def _allocate(self, kept, out, size):
        assert self.current and size > 0
        block = ctypes.create_string_buffer(size)
        ctypes.memset(block, GARBAGE, size)
        out[0] = ctypes.addressof(block)
        kept[ctypes.addressof(block)] = block

    def _MemAlloc(self, out, size):
        self._allocate(self.memory, out, size)

    def _MemHostAlloc(self, out, size, flags):
        self._allocate(self.pinned, out, size)

    def _MemFree(self, address):
        del self.memory[address]

    def _MemFreeHost(self, address):
        del self.pinned[address]

    def _copy(self, target, targets, source, sources, size, stream):
        assert size <= min(len(targets[target]), len(sources[source]))
        self.submit(stream, lambda: ctypes.memmove(target, source, size))

    def _MemcpyHtoDAsync(self, target, source, size, stream):
        self._copy(target, self.memory, source, self.pinned, size, stream)

    def _MemcpyDtoHAsync(self, target, source, size, stream):
        self._copy(target, self.pinned, source, self.memory, size, stream)

    def submit(self, stream, work):
        """Put work on a stream, or on the graph that is being recorded from it."""
        queue, recorded = self.streams[stream]
        (queue if recorded is None else recorded).append(work)

    def _StreamCreate(self, out, flags):
        out[0] = handle = self._handle()
        self.streams[handle] = ([], None)

    def _StreamDestroy(self, stream):
        del self.streams[stream]

    def _StreamSynchronize(self, stream):
        queue, recorded = self.streams[stream]
        assert recorded is None, "a stream cannot be waited for while it is recorded"
        while queue:
            queue.pop(0)()

    def _StreamBeginCapture(self, stream, mode):
        assert mode == 1, "llama.cpp may allocate in another thread"
        queue, recorded = self.streams[stream]
        assert recorded is None and not queue
        self.streams[stream] = (queue, [])

    def _StreamEndCapture(self, stream, graph):
        queue, recorded = self.streams[stream]
        self.streams[stream] = (queue, None)
        graph[0] = handle = self._handle()
        self.graphs[handle] = recorded

    def _GraphInstantiateWithFlags(self, executable, graph, flags):
        executable[0] = handle = self._handle()
        self.graphs[handle] = list(self.graphs[graph])

    def _GraphDestroy(self, graph):
        del self.graphs[graph]

    def _GraphExecDestroy(self, executable):
        del self.graphs[executable]

    def _GraphLaunch(self, executable, stream):
        self.streams[stream][0].extend(self.graphs[executable])

    def _ModuleLoadData(self, out, image):
        assert self.current
        if ctypes.string_at(image, 4) != b"\x7fELF":
            return NO_IMAGE
        out[0] = handle = self._handle()
        self.modules[handle] = image
        return 0

    def _ModuleUnload(self, module):
        del self.modules[module]

    def _ModuleGetFunction(self, out, module, name):
        assert module in self.modules
        if not hasattr(self.code, f"cpu_{name.decode()}"):
            return NOT_FOUND
        out[0] = handle = self._handle()
        self.kernels[handle] = name.decode()
        return 0

    def _LaunchKernel(self, kernel, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):
        name = self.kernels[kernel]
        assert gz == bz == 1 and shared == 0 and not extra and bx * by <= 1024
        size = c_uint.in_dll(self.code, f"size_{name}").value
        job = ctypes.create_string_buffer(ctypes.string_at(arguments[0], size), size)  # CUDA copies it, too
        self.submit(stream, lambda: getattr(self.code, f"cpu_{name}")(job, gx, gy, bx, by))


class TensorRT:
    """TensorRT's module: the real one, but for what needs a GPU.

    `lacks` are names that another flavour or version of it does not have. `refuses` holds sha256 of engines that do not
    load, and `broken` graphs (file names) whose engines give what is no number.
    """

    def __init__(self, real, driver, version=None, lacks=()):
        self._real, self._driver, self._lacks = real, driver, set(lacks)
        self.__version__ = version or real.__version__
        self.__file__ = real.__file__
        self.engines, self.refuses, self.broken, self.builds = {}, set(), set(), []
        self.capturable = self.enqueues_while_recorded = True
        outer = self

        class Builder(real.Builder):
            def create_builder_config(self):
                config = real.Builder.create_builder_config(self)
                if "ComputeCapability" in outer._lacks:  # `tensorrt` asks the GPU
                    config.num_compute_capabilities = 1
                    config.set_compute_capability(real.ComputeCapability.SM86, 0)
                return config

            def create_optimization_profile(self):
                self.profile = real.Builder.create_optimization_profile(self)
                return self.profile

            def build_serialized_network(self, network, config):
                graph = outer.parsed
                plan = real.Builder.build_serialized_network(self, network, config)
                outer.builds.append(graph.name)
                if plan is not None:
                    outer.engines[hashlib.sha256(plan).hexdigest()] = (graph, self.profile)
                return plan

        class OnnxParser(real.OnnxParser):
            def parse_from_file(self, path):
                outer.parsed = Path(path)
                return real.OnnxParser.parse_from_file(self, path)

        self.Builder, self.OnnxParser = Builder, OnnxParser

    def __getattr__(self, name):
        if name in self._lacks:
            raise AttributeError(name)
        return getattr(self._real, name)

    def Runtime(self, log):
        return _Runtime(self, log)


class _Runtime:
    def __init__(self, trt, log):
        self.trt, self.log = trt, log

    def deserialize_cuda_engine(self, plan):
        digest = hashlib.sha256(plan).hexdigest()
        refused = digest in self.trt.refuses
        self.trt.refuses.discard(digest)  # what is built again may be the same, byte by byte
        if refused or digest not in self.trt.engines:
            self.log.log(self.trt.ILogger.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Version mismatch")
            return None
        return _Engine(self.trt, *self.trt.engines[digest])


class _Engine:
    def __init__(self, trt, graph, profile):
        self.trt, self.graph, self.profile = trt, graph, profile
        model = onnx.load(graph, load_external_data=False).graph
        self.inputs = [value.name for value in model.input]
        self.shapes = {
            value.name: tuple(-1 if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in [*model.input, *model.output]
        }
        self.names = list(self.shapes)
        self.num_io_tensors = len(self.names)
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def get_tensor_dtype(self, name):
        return self.trt.DataType.FLOAT

    def get_tensor_profile_shape(self, name, index):
        assert index == 0
        return self.profile.get_shape(name)

    def create_execution_context(self):
        return _Capturable(self) if "ComputeCapability" not in self.trt._lacks else _Context(self)


class _Context:
    def __init__(self, engine):
        self.engine, self.driver = engine, engine.trt._driver
        self.chosen = {name: engine.shapes[name] for name in engine.inputs}
        self.addresses = {}

    def set_input_shape(self, name, shape):
        assert name in self.engine.inputs
        if -1 in self.engine.shapes[name]:
            least, _, most = (tuple(dims) for dims in self.engine.profile.get_shape(name))
            assert all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        else:
            assert tuple(shape) == self.engine.shapes[name]
        self.chosen[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        if name in self.chosen:
            return self.chosen[name]
        batch = next(iter(self.chosen.values()))[0]
        return tuple(batch if size == -1 else size for size in self.engine.shapes[name])

    def set_tensor_address(self, name, address):
        assert address in self.driver.memory
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if self.driver.streams[stream][1] is not None and not self.engine.trt.enqueues_while_recorded:
            return False
        shapes = {name: self.get_tensor_shape(name) for name in self.engine.names}
        assert -1 not in [size for shape in shapes.values() for size in shape]
        self.driver.submit(stream, lambda: self._run(shapes))
        return True

    def _run(self, shapes):
        views = {name: self._view(name, shape) for name, shape in shapes.items()}
        results = self.engine.session.run(None, {name: views[name].copy() for name in self.engine.inputs})
        outputs = [name for name in self.engine.names if name not in self.engine.inputs]
        for name, result in zip(outputs, results, strict=True):
            views[name][...] = np.nan if self.engine.graph.name in self.engine.trt.broken else result

    def _view(self, name, shape):
        block, count = self.driver.memory[self.addresses[name]], int(np.prod(shape))
        assert len(block) >= 4 * count
        return np.frombuffer(block, np.float32, count).reshape(shape)


class _Capturable(_Context):
    """Of TensorRT for RTX."""

    def is_stream_capturable(self, stream):
        assert stream in self.driver.streams
        return self.engine.trt.capturable
