"""What this machine is: board, release, processors, memory, GPU. Unknown is None, never a guess."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from .host import Host

_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI vendor; class of display controllers, its first byte
_SOCS = {"nvidia,tegra234": "Orin", "nvidia,tegra264": "Thor"}
COMPUTE_CAPABILITY = {"Orin": "87", "Thor": "110"}  # as CUDA_ARCHITECTURES; Thor's from CUDA 13 on


@dataclass(frozen=True)
class JetPack:
    """What a JetPack brings: its Python, CUDA's major version, and the TensorRT versions that belong to it."""

    name: str
    python: tuple[int, int]
    cuda: int
    tensorrt: tuple[str, ...]


# By L4T release and the least revision, newest first. NVIDIA's release notes; 10.3 is the oldest TensorRT svrt runs on.
_JETPACKS: tuple[tuple[tuple[int, int, int], JetPack], ...] = (
    ((39, 2, 0), JetPack("7.2", (3, 12), 13, ("10.16", "11.4"))),
    ((38, 4, 0), JetPack("7.1", (3, 12), 13, ("10.13",))),
    ((38, 0, 0), JetPack("7.0", (3, 12), 13, ("10.13",))),
    ((36, 5, 0), JetPack("6.2.2", (3, 10), 12, ("10.3",))),
    ((36, 4, 4), JetPack("6.2.1", (3, 10), 12, ("10.3",))),
    ((36, 4, 3), JetPack("6.2", (3, 10), 12, ("10.3",))),
    ((36, 4, 0), JetPack("6.1", (3, 10), 12, ("10.3",))),
    ((36, 0, 0), JetPack("6.0", (3, 10), 12, ("8.6",))),
    ((35, 0, 0), JetPack("5", (3, 8), 11, ("8.4", "8.5"))),
)


@dataclass(frozen=True)
class Machine:
    """A machine as its files describe it. `l4t` is release, major and minor revision; `memory` is MemTotal in bytes.

    `soc` is Orin, Thor or "", the latter on anything but a Jetson that svrt knows.
    """

    board: str
    soc: str
    l4t: tuple[int, int, int] | None
    jetpack: JetPack | None
    system: str
    architecture: str
    python: str
    processor: str
    cores: int | None
    memory: int | None
    cuda: str | None
    nvidia_gpu: bool

    @property
    def jetson(self) -> bool:
        return self.l4t is not None

    @property
    def l4t_name(self) -> str:
        return ".".join(map(str, self.l4t)) if self.l4t else ""


def machine_of(host: Host) -> Machine:
    """Read what the machine is."""
    l4t = _l4t(host)
    return Machine(
        board=host.text("proc/device-tree/model") or host.text("sys/class/dmi/id/product_name") or "unknown board",
        soc=_soc(host),
        l4t=l4t,
        jetpack=None if l4t is None else next((jetpack for least, jetpack in _JETPACKS if l4t >= least), None),
        system=_system(host),
        architecture=host.architecture,
        python=".".join(map(str, host.python)),
        processor=_processor(host),
        cores=len(cpu_list(host.text("sys/devices/system/cpu/online") or "")) or None,
        memory=meminfo(host).get("MemTotal"),
        cuda=_cuda(host),
        nvidia_gpu=l4t is not None or _nvidia_on_pci(host),
    )


def _l4t(host: Host) -> tuple[int, int, int] | None:
    """From a line such as `# R36 (release), REVISION: 4.3, GCID: ...`; a Jetson's containers have it too."""
    found = re.match(
        r"# R(\d{1,4}) \(release\), REVISION: (\d{1,4})(?:\.(\d{1,4}))?", host.text("etc/nv_tegra_release") or ""
    )
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def _soc(host: Host) -> str:
    compatible = (host.text("proc/device-tree/compatible") or "").split()
    return next((soc for name, soc in _SOCS.items() if name in compatible), "")


def _system(host: Host) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', host.text("etc/os-release") or "", re.MULTILINE)
    return found[1] if found else "unknown system"


def _processor(host: Host) -> str:
    found = re.search(r"^model name\s*: (.+)$", host.text("proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else ""


def _cuda(host: Host) -> str | None:
    """The toolkit's version; there is none on a machine that has only a driver."""
    try:
        return str(json.loads(host.text("usr/local/cuda/version.json") or "")["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return None


def _nvidia_on_pci(host: Host) -> bool:
    return any(
        host.text(host.shown(device / "vendor")[1:]) == _NVIDIA
        and (host.text(host.shown(device / "class")[1:]) or "").startswith(_DISPLAY)
        for device in host.paths("sys/bus/pci/devices/*")
    )


def meminfo(host: Host) -> dict[str, int]:
    """`/proc/meminfo` in bytes; lines that hold no size are left out."""
    lines = re.findall(r"^(\w+): +(\d{1,15}) kB$", host.text("proc/meminfo") or "", re.MULTILINE)
    return {name: int(size) * 1024 for name, size in lines}


def cpu_list(text: str) -> list[int]:
    """Numbers of a kernel's list such as `0-3,6`; [] where it is none."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = part.strip().split("-")
        if not all(end.isascii() and end.isdigit() and len(end) < 6 for end in ends) or len(ends) > 2:
            return []
        numbers += range(int(ends[0]), int(ends[-1]) + 1)
    return numbers
