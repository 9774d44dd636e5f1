"""What this user may open, and where svrt may write: GPU, camera, sensors, cache."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from .board import GIB
from .finding import Finding, Level
from .host import Host, Outcome
from .machine import Machine

BUNDLE_BYTES = 500_000_000  # the built-in bundle twice: while it is written
_CACHE_BYTES = GIB  # bundle and engines
_GPU_NODES = (
    *("dev/nvmap", "dev/nvhost-ctrl-gpu", "dev/nvgpu/igpu*/*"),  # Orin: JetPack 5 and 6
    *("dev/nvidia[0-9]*", "dev/nvidiactl"),  # Thor, discrete GPUs
    "dev/dri/renderD*",
)
_RAILS = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr[1-3]_input"
_RAPL = "sys/class/powercap/intel-rapl:[0-9]*/energy_uj"
_GROUPS = "sudo usermod -aG video,render $USER && newgrp video"


def devices(host: Host, machine: Machine) -> list[Finding]:
    """Whether this user may use the GPU's device files and cameras."""
    found = []
    nodes = [node for pattern in _GPU_NODES for node in host.paths(pattern)]
    closed = [host.shown(node) for node in nodes if not host.opens(node, os.R_OK) or not _writable(host, node)]
    if closed:
        what = f"this user may not use the GPU: {len(closed)} of {len(nodes)} device files are closed"
        found.append(Finding("warn", "GPU access", what, closed[0], _GROUPS))
    elif machine.nvidia_gpu and not any("nv" in node.name for node in nodes):
        what = "there is an NVIDIA GPU and no device file of it: no driver, or a container without it"
        fix = f"sudo modprobe {'nvgpu' if machine.soc == 'Orin' else 'nvidia'}"
        if host.text(".dockerenv") is not None:
            fix = "docker run --runtime nvidia IMAGE svrt doctor"
        found.append(Finding("warn", "GPU access", what, "/dev", fix))
    elif nodes:
        found.append(Finding("ok", "GPU access", f"{len(nodes)} device files, all open to this user", "/dev"))
    return [*found, _camera(host)]


def _writable(host: Host, node: Path) -> bool:
    return node.name == "nvmap" or host.opens(node, os.W_OK)  # nvmap is 0440 from JetPack 5 on, and meant so


def _camera(host: Host) -> Finding:
    cameras = host.paths("dev/video[0-9]*")
    closed = [host.shown(camera) for camera in cameras if not host.opens(camera, os.R_OK | os.W_OK)]
    if closed:
        return Finding("warn", "video", f"this user may not use {', '.join(closed)}", closed[0], _GROUPS)
    what = ", ".join(host.shown(camera) for camera in cameras) or "no camera; clips are read from files"
    return Finding("ok", "video", what, "/dev/video*")


def sensors(host: Host, machine: Machine) -> Finding:
    """Whether power can be measured: INA3221 on a Jetson, RAPL elsewhere."""
    name, pattern = ("INA3221", _RAILS) if machine.jetson else ("RAPL", _RAPL)
    files = host.paths(pattern)
    closed = [host.shown(file) for file in files if not host.opens(file, os.R_OK)]
    if closed:
        what = f"{name}: this user may not read {len(closed)} of {len(files)} sensors; energy would be unknown"
        return Finding("warn", "power sensors", what, closed[0], f"sudo chmod a+r {' '.join(closed)}")
    unread = [host.shown(file) for file in files if host.number(host.shown(file)[1:]) is None]
    if unread and len(unread) == len(files):
        what = f"{name}: none of {len(files)} sensors gives a number; energy would be unknown"
        return Finding("warn", "power sensors", what, unread[0], "sudo modprobe -r ina3221; sudo modprobe ina3221")
    if files:
        return Finding("ok", "power sensors", f"{name}: {len(files) - len(unread)} can be read", f"/{pattern}")
    if machine.jetson:
        what = "no INA3221: energy would be unknown"
        return Finding("warn", "power sensors", what, f"/{pattern}", "sudo modprobe ina3221")
    return Finding("ok", "power sensors", "none that svrt reads from files; energy may be unknown here", f"/{pattern}")


def cache(host: Host, needs_export: bool, needs_cache: bool) -> Finding:
    """Whether svrt's cache can be written and has room.

    `needs_export`: the built-in bundle is still to be written. `needs_cache`: `describe` uses the built-in bundle;
    else only engines are kept there, and are built each time where they cannot be.
    """
    level: Level = "fail" if needs_cache and needs_export else "warn"
    elsewhere = "export XDG_CACHE_HOME=/another/disk"
    if host.cache is None:
        return Finding("fail" if needs_cache else "warn", "disk", "no home folder for the cache", "$HOME", elsewhere)
    place = next(folder for folder in (host.cache, *host.cache.absolute().parents) if _exists(folder))
    if not host.opens(place, os.W_OK | os.X_OK):
        what = "the cache cannot be written: the bundle is not exported and engines are not kept"
        return Finding(level, "disk", what, str(place), f"sudo chown -R $USER {shlex.quote(str(place))}")
    try:
        free = host.free(place)
    except OSError as exc:
        return Finding("warn", "disk", f"free space is unknown: {exc.strerror}", str(place), elsewhere)
    what = f"{free / GIB:.1f} GiB free for bundle and engines"
    if free >= _CACHE_BYTES:
        return Finding("ok", "disk", what, str(place))
    return Finding(level if free < BUNDLE_BYTES else "warn", "disk", what, str(place), elsewhere)


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except OSError:  # a folder above it is closed to this user
        return False


def nvml(machine: Machine, outcome: Outcome) -> Finding:
    """NVML, from which power of a discrete GPU is read, and which on an Orin is there and knows nothing."""
    where = str(outcome.values.get("library") or "libnvidia-ml.so.1")
    name, status = outcome.values.get("name", ""), outcome.values.get("power")
    if not machine.nvidia_gpu:
        return Finding("ok", "NVML", "not needed: no NVIDIA GPU on this machine", where)
    if outcome.ran and "/stubs/" in where:
        what = "a stub of the CUDA toolkit is loaded in place of the driver's library"
        return Finding("warn", "NVML", what, where, "unset LD_LIBRARY_PATH")
    if outcome.ran and status == 0:
        return Finding("ok", "NVML", f"{name}: power can be read", where)
    if machine.jetson:
        said = "is not there" if outcome.state == "absent" else "knows no power here"
        return Finding("ok", "NVML", f"{said}: INA3221 is read instead", where)
    init = outcome.values.get("init")
    what = outcome.detail or (f"nvmlInit gives {init}" if init else f"no power: status {status}")
    return Finding("warn", "NVML", what, where, "sudo ubuntu-drivers install")
