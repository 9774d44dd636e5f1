"""Machines as folders: the files that the doctor reads on Jetsons of three JetPacks and on a plain x86 computer.

What operations would answer there is said here, too: no board is behind it. `python tests/doctor_boards.py` prints
the examination that docs/doctor.md shows.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from svrt.bundle import (
    DECODER,
    ENCODER,
    SCHEMA,
    VGG16,
    DecoderSpec,
    EncoderSpec,
    FileRecord,
    Manifest,
    SamplerSpec,
    sha256_of,
    write_manifest,
)
from svrt.doctor.host import Host, Outcome

PREFIX = Path("/home/coach/svrt/.venv")
GIB = 2**30
CPU = "sys/devices/system/cpu"
RAILS = "sys/bus/i2c/drivers/ina3221"
NANO = ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "p3768-0000+p3767-0005-super", "tegra234")
NX = ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "p3768-0000+p3767-0000", "tegra234")
AGX = ("NVIDIA Jetson AGX Orin Developer Kit", "p3737-0000+p3701-0005", "tegra234")
THOR = ("NVIDIA Jetson AGX Thor Developer Kit", "p4071-0000+p3834-0008", "tegra264")
SYSTEMS = {35: "Ubuntu 20.04.6 LTS", 36: "Ubuntu 22.04.5 LTS", 38: "Ubuntu 24.04.3 LTS", 39: "Ubuntu 24.04.3 LTS"}
PYTHONS = {35: (3, 10), 36: (3, 10), 38: (3, 12), 39: (3, 12)}  # 35: one's own, as JetPack 5 has 3.8
CUDAS = {35: "11.4.315", 36: "12.6.68", 38: "13.0.0", 39: "13.2.0"}


def write(root, files):
    """Write a tree: text by path below the root; None is an empty file."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("" if text is None else str(text))
    return root


def meminfo(total_gib, available_gib, cma_mib=(0, 0)):
    sizes = {"MemTotal": total_gib * GIB, "MemAvailable": available_gib * GIB}
    sizes |= {"CmaTotal": cma_mib[0] << 20, "CmaFree": cma_mib[1] << 20}
    return "".join(f"{name}:{int(size) // 1024:>15} kB\n" for name, size in sizes.items())


def debian(**packages):
    """dpkg's status of installed packages; underscores are hyphens."""
    paragraph = "Package: {}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {}\n"
    return "\n".join(paragraph.format(name.replace("_", "-"), version) for name, version in packages.items())


def jetson(root, board, release, revision, tensorrt, *, cores=6, memory=7.43, mode=2, cma=(256, 200), swap_gib=8):
    """A Jetson in its fastest mode, with nothing to complain of but what the arguments say."""
    model, name, soc = board
    gpu = "sys/class/devfreq/gpu-gpc-0" if soc == "tegra264" else "sys/class/devfreq/17000000.gpu"
    modes = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    modes += "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n"
    top = 1020000000
    nvinfer = f"libnvinfer{tensorrt.split('.')[0]}"
    files = {
        "etc/nv_tegra_release": f"# R{release} (release), REVISION: {revision}, GCID: 1, BOARD: generic\n",
        "etc/os-release": f'NAME="Ubuntu"\nPRETTY_NAME="{SYSTEMS[release]}"\n',
        "etc/nvpmodel.conf": modes,
        "var/lib/nvpmodel/status": f"pmode:{mode:04d} fmode:quiet",
        "var/lib/dpkg/status": debian(
            **{nvinfer: f"{tensorrt}.30-1+cuda12.5", "python3_libnvinfer": f"{tensorrt}.30-1"}
        ),
        "usr/local/cuda/version.json": f'{{"cuda": {{"name": "CUDA SDK", "version": "{CUDAS[release]}"}}}}',
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": f"nvidia,{name}\0nvidia,{name.split('+')[1]}\0nvidia,{soc}\0",
        "proc/meminfo": meminfo(memory, memory - 1.2, cma),
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 634000 0 5\n"
        + (f"/svrt.swap file {swap_gib << 20} 0 -2\n" if swap_gib else ""),
        f"{CPU}/online": f"0-{cores - 1}\n",
        f"{CPU}/present": f"0-{cores - 1}\n",
        f"{CPU}/cpufreq/policy0/scaling_max_freq": 1728000,
        f"{CPU}/cpufreq/policy0/cpuinfo_max_freq": 1728000,
        f"{CPU}/cpufreq/policy0/scaling_governor": "schedutil",
        f"{gpu}/cur_freq": 306000000,
        f"{gpu}/min_freq": 306000000,
        f"{gpu}/max_freq": top if mode == 2 else 612000000,
        f"{gpu}/available_frequencies": f"306000000 612000000 {top}",
        **({} if soc == "tegra264" else {f"{gpu}/device/of_node/name": "gpu\0"}),
        **dict.fromkeys(
            ("dev/nvidia0", "dev/nvidiactl") if soc == "tegra264" else ("dev/nvmap", "dev/nvgpu/igpu0/ctrl")
        ),
        **{f"{RAILS}/1-0040/hwmon/hwmon3/curr{rail}_input": 800 * rail for rail in (1, 2, 3)},
    }
    if board == AGX:
        files[f"{RAILS}/1-0041/hwmon/hwmon4/curr1_input"] = 120
    return write(root, files)


def desktop(root):
    """An x86 computer without a GPU of NVIDIA's, whose RAPL can be read."""
    files = {
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "sys/class/dmi/id/product_name": "OptiPlex 7090\n",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-10505 CPU @ 3.20GHz\n",
        "proc/meminfo": meminfo(15.5, 12),
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
        f"{CPU}/online": "0-11",
        f"{CPU}/present": "0-11",
        f"{CPU}/cpufreq/policy0/scaling_max_freq": 4600000,
        f"{CPU}/cpufreq/policy0/cpuinfo_max_freq": 4600000,
        "sys/class/powercap/intel-rapl:0/energy_uj": 123456,
        "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086",
        "sys/bus/pci/devices/0000:00:02.0/class": "0x030000",
    }
    return write(root, files)


def answers(gpu=None, **others):
    """What operations answer where all is well: `gpu` is a name and compute capability for TensorRT, or None."""
    absent = Outcome("absent", "no NVIDIA driver", {})
    ran = {
        "opencv": {"version": "4.8.0", "frames": 20, "codec": "MJPG", "reader": "GSTREAMER"},
        "providers": {"version": "1.20.1", "providers": ["AzureExecutionProvider", "CPUExecutionProvider"]},
        "onnxruntime": {"version": "1.20.1"},
        "llama": {"version": "0.3.36", "gpu": True, "model": "pocket Q8_0", "device": "llama.cpp CUDA0 (Orin)"},
        "describe": {"ms": 2345.0},
    }
    found = {name: Outcome("ran", values=values) for name, values in ran.items()}
    found |= {"tensorrt": absent, "tensorrt-rtx": absent, "nvml": absent}
    found |= {name: Outcome("absent", f"No module named '{name}'") for name in ("openvino", "ncnn")}
    found["vnni"] = Outcome("absent", "vnni needs a processor with AVX-512 VNNI")
    if gpu:
        values = {"version": "10.3.0", "device": gpu[0], "compute_capability": gpu[1]}
        found["tensorrt"] = Outcome("ran", values=values)
        found["nvml"] = Outcome(
            "ran", values={"library": "/usr/lib/libnvidia-ml.so.1", "init": 0, "name": gpu[0], "power": 3}
        )
    return found | {name.replace("_", "-"): outcome for name, outcome in others.items()}


def host(root, found, cache=None, **changes):
    """A host over a tree. `found` are outcomes by operation; all may be opened, and the disk is nearly empty."""
    release = (root / "etc" / "nv_tegra_release").read_text() if (root / "etc" / "nv_tegra_release").exists() else ""
    board = Host(
        root=root,
        architecture="aarch64" if release else "x86_64",
        python=PYTHONS[int(release[3:5])] if release else (3, 11),
        prefix=PREFIX,
        packages={"llama-cpp-python": "0.3.36", "onnxruntime": "1.20.1"},
        operate=lambda name, *_: found[name],
        command=lambda _: None,
        opens=lambda *_: True,
        free=lambda _: 100 * GIB,
        cache=cache or root,
    )
    return replace(board, **changes)


def tiny_bundle(folder):
    """A bundle that is whole by its manifest, and holds no network."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    records = {}
    for name in (VGG16, ENCODER, DECODER):
        (folder / name).write_bytes(rng.bytes(1000))
        records[name] = FileRecord(1000, sha256_of(folder / name), "q8_0" if name == DECODER else "fp32")
    norm = {"scale": 255.0, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    manifest = Manifest(
        schema=SCHEMA,
        name="court",
        svrt="0.1.0",
        sampler=SamplerSpec(16, 64, "haar", 2, 96, "bgr", **norm),
        encoder=EncoderSpec(16, 64, "crop", 72, [8, 4, 4], **norm),
        decoder=DecoderSpec("a", "b", 96, 64),
        files=records,
        provenance={},
        parity={},
    )
    write_manifest(folder, manifest)
    return folder


def neglected_nano(root):
    """An Orin Nano as people meet it: 15 W, no swap, TensorRT 11 from the registry, llama.cpp without CUDA."""
    jetson(root, NANO, 36, "4.3", "10.3.0", mode=0, swap_gib=0)
    found = answers(
        ("Orin", "8.7"),
        tensorrt=Outcome(
            "failed",
            f"tensorrt 11.1.0 in {PREFIX}/lib/python3.10/site-packages/tensorrt cannot run on JetPack 6 (L4T 36); "
            "remove it (pip uninstall tensorrt): on a Jetson it comes with JetPack",
        ),
        tensorrt_rtx=Outcome("absent", "tensorrt-rtx is not installed (No module named 'tensorrt_rtx_bindings')"),
        llama=Outcome(
            "ran", values={"version": "0.3.36", "gpu": False, "model": "pocket Q8_0", "device": "llama.cpp CPU"}
        ),
    )
    packages = {"llama-cpp-python": "0.3.36", "onnxruntime": "1.20.1", "tensorrt": "11.1.0", "tensorrt-cu12": "11.1.0"}
    return host(root, found, packages=packages, opens=lambda path, _: path.name != "ctrl")


if __name__ == "__main__":
    import tempfile

    from svrt.doctor.examination import examine, show

    os.environ["COLUMNS"] = "200"
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        show(examine(neglected_nano(place / "nano"), tiny_bundle(place / "court")))
