"""What slows a board down or does not belong to it: JetPack and TensorRT, memory, power mode, clocks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from .finding import Finding
from .host import Host
from .machine import JetPack, Machine, cpu_list, meminfo

GIB = 2**30
SCRATCH = GIB  # contiguous bytes that TensorRT may want: `WORKSPACE` of svrt.runtime.engines.tensorrt_build
SMALL_BOARD = 10 * GIB  # of memory and less: building engines needs swap
_SWAP = 4 * GIB
SWAP_FILE = (
    "sudo fallocate -l 8G /svrt.swap && sudo chmod 600 /svrt.swap && sudo mkswap /svrt.swap && sudo swapon /svrt.swap"
)
SITE_PACKAGES = "sed -i 's/^include-system-site-packages.*/include-system-site-packages = true/' {}/pyvenv.cfg"
_WATTS = re.compile(r"(\d{1,4})W")


def release(host: Host, machine: Machine) -> list[Finding]:
    """Whether L4T, the system's TensorRT, installed wheels, CUDA and Python belong together; [] off a Jetson."""
    if machine.l4t is None:
        return []
    if machine.jetpack is None:
        what = f"L4T {machine.l4t_name} is of no JetPack that svrt knows; 6.1 to 7.2 are known"
        fix = "flash JetPack 6.2 or 7.2 with NVIDIA SDK Manager: sdkmanager --cli"
        return [Finding("warn", "release", what, "/etc/nv_tegra_release", fix)]
    jetpack = machine.jetpack
    found = [*_tensorrt(host, machine, jetpack), *_wheel(host, jetpack)]
    found += [*_python(host, machine, jetpack), *_toolkit(machine, jetpack)]
    if found:
        return found
    versions = ", ".join(filter(None, (f"TensorRT {_installed(host, 'libnvinfer')}", _named("CUDA", machine.cuda))))
    what = f"JetPack {jetpack.name}: {versions} and Python {machine.python} belong together"
    return [Finding("ok", "release", what, "/etc/nv_tegra_release")]


def _named(name: str, version: str | None) -> str:
    return f"{name} {version}" if version else ""


def _tensorrt(host: Host, machine: Machine, jetpack: JetPack) -> list[Finding]:
    """The system's TensorRT, by dpkg."""
    where, version = "/var/lib/dpkg/status", _installed(host, "libnvinfer")
    if jetpack.tensorrt[0].startswith("8."):
        what = f"JetPack {jetpack.name} (L4T {machine.l4t_name}) has TensorRT {jetpack.tensorrt[-1]}; svrt needs 10.3"
        fix = "flash JetPack 6.2 with NVIDIA SDK Manager, on another computer: sdkmanager --cli"
        return [Finding("warn", "release", what, "/etc/nv_tegra_release", fix)]
    if version is None or _installed(host, "python3-libnvinfer") is None:
        missing = "TensorRT" if version is None else "TensorRT's Python module"
        fix = "sudo apt-get install -y tensorrt python3-libnvinfer"
        return [Finding("warn", "release", f"{missing} of JetPack {jetpack.name} is not installed", where, fix)]
    if _short(version) not in jetpack.tensorrt:
        wanted = " or ".join(jetpack.tensorrt)
        what = f"TensorRT {version} with L4T {machine.l4t_name}, to which {wanted} belongs"
        return [Finding("warn", "release", what, where, "sudo apt-get install -y --reinstall nvidia-jetpack")]
    return []


def _wheel(host: Host, jetpack: JetPack) -> list[Finding]:
    """TensorRT from the registry: its wheels install on any aarch64, and hide the system's that alone can run."""
    wrong = [name for name in _wheels(host) if _short(host.packages[name]) not in jetpack.tensorrt]
    if not wrong:
        return []
    what = (
        f"{wrong[0]} {host.packages[wrong[0]]} is not of JetPack {jetpack.name}, whose TensorRT is "
        f"{' or '.join(jetpack.tensorrt)}: it installs and cannot run"
    )
    return [Finding("warn", "release", what, f"package {wrong[0]}", system_tensorrt(host))]


def _wheels(host: Host) -> list[str]:
    return sorted(name for name in host.packages if re.fullmatch(r"tensorrt(-cu\d+)?(-libs|-bindings)?", name))


def system_tensorrt(host: Host) -> str:
    """The line that makes a Jetson's own TensorRT the one that Python finds."""
    steps = [f"pip uninstall -y {' '.join(_wheels(host))}"] if _wheels(host) else []
    if _installed(host, "libnvinfer") is None or _installed(host, "python3-libnvinfer") is None:
        steps.append("sudo apt-get install -y tensorrt python3-libnvinfer")
    return " && ".join([*steps, SITE_PACKAGES.format(shlex.quote(str(host.prefix)))])


def _python(host: Host, machine: Machine, jetpack: JetPack) -> list[Finding]:
    if host.python == jetpack.python or jetpack.python < (3, 10):  # the latter: too old for svrt itself
        return []
    wanted = ".".join(map(str, jetpack.python))
    what = f"TensorRT of JetPack {jetpack.name} is for Python {wanted}, this is {machine.python}"
    fix = f"python{wanted} -m venv --system-site-packages --clear {host.prefix}"
    return [Finding("warn", "release", what, str(host.prefix), fix)]


def _toolkit(machine: Machine, jetpack: JetPack) -> list[Finding]:
    if machine.cuda is None or machine.cuda.split(".")[0] == str(jetpack.cuda):
        return []
    what = f"CUDA {machine.cuda} with JetPack {jetpack.name}, whose driver is for CUDA {jetpack.cuda}"
    fix = f"sudo ln -sfn /usr/local/cuda-{jetpack.cuda} /usr/local/cuda"
    return [Finding("warn", "release", what, "/usr/local/cuda/version.json", fix)]


def _installed(host: Host, package: str) -> str | None:
    """Upstream version of a Debian package, such as 10.3.0; `libnvinfer` is any libnvinferN. None if not installed."""
    name = r"libnvinfer\d+" if package == "libnvinfer" else re.escape(package)
    for paragraph in (host.text("var/lib/dpkg/status") or "").split("\n\n"):
        if re.search(rf"^Package: {name}$", paragraph, re.MULTILINE) and "\nStatus: install ok installed" in paragraph:
            found = re.search(r"^Version: (?:\d+:)?(\d+(?:\.\d+){1,2})", paragraph, re.MULTILINE)
            return found[1] if found else None
    return None


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])


def memory(host: Host, machine: Machine) -> list[Finding]:
    """Memory that is free, swap on a disk, and on a Jetson contiguous memory for TensorRT's builder."""
    sizes = meminfo(host)
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        fix = "mount -t proc proc /proc"
        return [Finding("warn", "memory", "cannot be read, so it is unknown", "/proc/meminfo", fix)]
    disk = _disk_swap(host)
    what = f"{_gib(sizes['MemAvailable'])} of {_gib(sizes['MemTotal'])} GiB available; swap on disk {_gib(disk)} GiB"
    if not (machine.jetson and sizes["MemTotal"] < SMALL_BOARD and disk < _SWAP):
        found = [Finding("ok", "memory", what, "/proc/meminfo")]
    else:
        what += "; building engines wants 4 GiB, and compressed memory (zram) is no help"
        found = [Finding("warn", "memory", what, "/proc/swaps", SWAP_FILE)]
    return found + (_contiguous(sizes) if machine.jetson else [])


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def _disk_swap(host: Host) -> int:
    """Bytes of swap that are not compressed memory."""
    rows = [line.split() for line in (host.text("proc/swaps") or "").splitlines()[1:]]
    return sum(int(row[2]) * 1024 for row in rows if len(row) > 2 and _is_number(row[2]) and "zram" not in row[0])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 15


def _contiguous(sizes: dict[str, int]) -> list[Finding]:
    if "CmaFree" not in sizes:
        return []
    free, total = sizes["CmaFree"], sizes.get("CmaTotal", 0)
    what = f"{free >> 20} of {total >> 20} MiB of contiguous memory (CMA) free"
    if total == 0 or free >= SCRATCH:
        return [Finding("ok", "contiguous memory", what, "/proc/meminfo")]
    what += f"; the builder of TensorRT may want {SCRATCH >> 20}"
    fix = "sudo systemctl isolate multi-user.target"  # ends the desktop, which holds most of it
    if total < SCRATCH:
        fix = "sudo sed -i '/^ *APPEND/ s/$/ cma=1536M/' /boot/extlinux/extlinux.conf && sudo reboot"
    return [Finding("warn", "contiguous memory", what, "/proc/meminfo", fix)]


@dataclass(frozen=True)
class PowerModes:
    """nvpmodel's modes by number, and the current one; None where it is unknown."""

    names: dict[int, str]
    current: int | None

    @property
    def fastest(self) -> int | None:
        """The mode without limits, else the one with most watts."""
        for wanted in ("MAXN_SUPER", "MAXN"):
            for number, name in self.names.items():
                if name.upper().replace(" ", "_") == wanted:
                    return number
        watts = {number: int(found[1]) for number, name in self.names.items() if (found := _WATTS.search(name))}
        return max(watts, key=lambda number: watts[number]) if watts else None

    def name(self, number: int) -> str:
        return f"{self.names.get(number, 'mode')} ({number})"


def power_modes(host: Host) -> PowerModes:
    """From nvpmodel's configuration, and `nvpmodel -q` or else the file that it keeps the mode in."""
    listed = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=(\S+)\s*>", _modes_text(host), re.MULTILINE)
    # Without root it complains after the mode; what it says first is right all the same.
    asked = re.search(r"NV Power Mode: *\S*\s+(\d{1,4})\b", host.command(["nvpmodel", "-q"]) or "")
    kept = re.search(r"pmode:(\d{1,4})\b", host.text("var/lib/nvpmodel/status") or "")
    found = asked or kept
    return PowerModes({int(number): name for number, name in listed}, int(found[1]) if found else None)


def _modes_text(host: Host) -> str:
    return host.text("etc/nvpmodel.conf") or ""


def power(host: Host, machine: Machine) -> list[Finding]:
    """The power mode of a Jetson; [] elsewhere."""
    if not machine.jetson:
        return []
    modes = power_modes(host)
    fastest = modes.fastest
    if modes.current is None:
        fix = "sudo nvpmodel -q" if fastest is None else f"sudo nvpmodel -m {fastest}"
        return [Finding("warn", "power mode", "unknown: nvpmodel does not say", "nvpmodel -q", fix)]
    if fastest is None or modes.current == fastest:
        return [Finding("ok", "power mode", modes.name(modes.current), "nvpmodel -q")]
    what = f"{modes.name(modes.current)}; {modes.name(fastest)} is faster, if supply and cooling allow it"
    return [Finding("warn", "power mode", what, "nvpmodel -q", f"sudo nvpmodel -m {fastest} && sudo jetson_clocks")]


def clocks(host: Host, machine: Machine) -> list[Finding]:
    """Cores that are off, and limits below what processor and GPU can do."""
    modes = power_modes(host) if machine.jetson else PowerModes({}, None)
    faster = None if modes.current == modes.fastest else modes.fastest
    by_mode = "" if faster is None else f"sudo nvpmodel -m {faster} && sudo jetson_clocks"
    return [*_cores(host, by_mode), *_processor_clock(host, by_mode), *_gpu_clock(host, machine, by_mode)]


def _cores(host: Host, by_mode: str) -> list[Finding]:
    folder = "sys/devices/system/cpu"
    online, present = (cpu_list(host.text(f"{folder}/{name}") or "") for name in ("online", "present"))
    off = sorted(set(present) - set(online))
    if not online or not off:
        return []
    what = f"{len(off)} of {len(present)} cores are off: {', '.join(map(str, off))}"
    fix = by_mode or f"echo 1 | sudo tee {' '.join(f'/{folder}/cpu{core}/online' for core in off)}"
    return [Finding("warn", "cores", what, f"/{folder}/online", fix)]


def _processor_clock(host: Host, by_mode: str) -> list[Finding]:
    limits: list[tuple[int, int, str]] = []
    for folder in host.paths("sys/devices/system/cpu/cpufreq/policy*"):
        place = host.shown(folder)[1:]
        limit, most = (host.number(f"{place}/{name}") for name in ("scaling_max_freq", "cpuinfo_max_freq"))
        if limit and most:
            limits.append((limit, most, place))
    if not limits:
        what = "the processor's clock cannot be read, as in most virtual machines; the benchmark will not know of it"
        return [Finding("ok", "processor clock", what, "/sys/devices/system/cpu/cpufreq")]
    limit, most, place = min(limits, key=lambda found: found[0] / found[1])
    governor = host.text(f"{place}/scaling_governor") or "unknown"
    what = f"up to {limit / 1000:.0f} of {most / 1000:.0f} MHz, governor {governor}"
    where = f"/{place}/scaling_max_freq"
    if limit >= most:
        return [Finding("ok", "processor clock", what, where)]
    every = "/sys/devices/system/cpu/cpufreq/policy*/scaling_max_freq"
    return [Finding("warn", "processor clock", what, where, by_mode or f"echo {most} | sudo tee {every}")]


def _gpu_clock(host: Host, machine: Machine, by_mode: str) -> list[Finding]:
    if not machine.jetson:
        return []
    place = _gpu_place(host)
    limit = None if place is None else host.number(f"{place}/max_freq")
    if place is None or limit is None:
        what = "the GPU's clock cannot be read, so limits and sagging cannot be told"
        return [Finding("warn", "GPU clock", what, "/sys/class/devfreq", "sudo jetson_clocks --show")]
    now, least = host.number(f"{place}/cur_freq"), host.number(f"{place}/min_freq")
    steps = [int(step) for step in (host.text(f"{place}/available_frequencies") or "").split() if _is_number(step)]
    most = max([*steps, limit])
    fixed = "; fixed" if least == limit else ""
    what = f"up to {limit / 1e6:.0f} of {most / 1e6:.0f} MHz, now {_mhz(now)}{fixed}"
    if limit >= most:
        return [Finding("ok", "GPU clock", what, f"/{place}/max_freq")]
    return [Finding("warn", "GPU clock", what, f"/{place}/max_freq", by_mode or "sudo jetson_clocks")]


def _mhz(hertz: int | None) -> str:
    return "unknown" if hertz is None else f"{hertz / 1e6:.0f} MHz"


def _gpu_place(host: Host) -> str | None:
    """The GPU's folder in devfreq: its device tree node is `ga10b` or `gpu`; on Thor the folder is `gpu-gpc-N`."""
    for folder in host.paths("sys/class/devfreq/*"):
        place = host.shown(folder)[1:]
        if host.text(f"{place}/device/of_node/name") in ("ga10b", "gpu") or folder.name.startswith("gpu-gpc-"):
            return place
    return None
