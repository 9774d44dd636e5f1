"""Folders as the kernel of a Jetson or of an x86 machine lays them out, for readers that take a root folder."""

from pathlib import Path

# Rail: chip address, channel, millivolts, milliamperes. hwmon numbers differ between JetPacks and boots.
MODULE = {
    "VDD_IN": ("1-0040", 1, 5048, 852),
    "VDD_CPU_GPU_CV": ("1-0040", 2, 5048, 114),
    "VDD_SOC": ("1-0040", 3, 5040, 242),
}
AGX = {
    "VDD_GPU_SOC": ("1-0040", 1, 19_824, 159),
    "VDD_CPU_CV": ("1-0040", 2, 19_824, 722),
    "VIN_SYS_5V0": ("1-0040", 3, 5000, 994),
    "NC": ("1-0041", 1, 0, 0),
    "VDDQ_VDD2_1V8AO": ("1-0041", 2, 5000, 218),
}
THOR = {
    "VDD_GPU": ("2-0040", 1, 12_040, 0),
    "VDD_CPU_SOC_MSS": ("2-0040", 2, 12_040, 525),
    "VIN_SYS_5V0": ("2-0040", 3, 5088, 1194),
}
BOARDS = {  # rails, rails of the total, its watts
    "nano": (MODULE, "VDD_IN", 4.300896),
    "nx": (MODULE, "VDD_IN", 4.300896),
    "agx": (AGX, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO", 23.524944),
    "thor": (THOR, "VIN", 19.78),
}
HWMON = {5: 3, 6: 1, 7: 0}  # number of the first power monitor
ZONES = {5: ("CPU-therm", "GPU-therm", "tj-therm"), 6: ("cpu-thermal", "gpu-thermal", "tj-thermal")}
ZONES[7] = ZONES[6]


def put(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")
    return path


def jetson(root: Path, board: str, jetpack: int) -> Path:
    """A board at rest: power monitors, zones, over-current counters, GPU and CPU clocks, cooling devices."""
    rails, _, _ = BOARDS[board]
    chips = sorted({address for address, _, _, _ in rails.values()})
    for label, (address, channel, millivolts, milliamperes) in rails.items():
        folder = monitor(root, address, HWMON[jetpack] + chips.index(address))
        put(folder / f"in{channel}_label", label)
        put(folder / f"in{channel}_input", millivolts)
        put(folder / f"curr{channel}_input", milliamperes)
        put(folder / f"in{channel + 3}_input", 12)  # across the shunt
        put(folder / "in7_label", "sum of shunt voltages")
        put(folder / "in7_input", 36)
        put(folder / "curr4_input", 1600)
    if board == "thor":
        put(root / "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon2/power1_input", 19_780_000)
    for number, (kind, milli) in enumerate(zip(ZONES[jetpack], (45_843, 43_406, 45_843), strict=True)):
        zone = root / f"sys/class/thermal/thermal_zone{number}"
        put(zone / "type", kind)
        put(zone / "temp", milli)
        put(zone / "trip_point_0_type", "active")
        put(zone / "trip_point_0_temp", 51_000)
        put(zone / "trip_point_1_type", "passive")
        put(zone / "trip_point_1_temp", 99_000)
    put(root / "sys/class/thermal/thermal_zone9/type", "cv0-thermal")
    (root / "sys/class/thermal/thermal_zone9/temp").mkdir()  # reading it raises OSError, as a zone without power does
    for name, kind, state in ((0, "pwm-fan", 2), (1, "cpufreq-cpu0", 0), (2, "gpu-throttle-alert", 0)):
        put(root / f"sys/class/thermal/cooling_device{name}/type", kind)
        put(root / f"sys/class/thermal/cooling_device{name}/cur_state", state)
    put(root / "sys/class/hwmon/hwmon7/name", "soctherm_oc")
    for alarm in (1, 2, 3):
        put(root / f"sys/class/hwmon/hwmon7/oc{alarm}_event_cnt", 40 + alarm)
    gpu = root / ("sys/class/devfreq/gpu-gpc-0" if board == "thor" else "sys/class/devfreq/17000000.gpu")
    put(gpu / "device/of_node/name", "ga10b\0" if jetpack == 5 else "gpu\0")
    put(gpu / "device/load", 990)
    put(gpu / "cur_freq", 1_020_000_000)
    put(gpu / "max_freq", 1_020_000_000)
    put(root / "sys/class/devfreq/15340000.vic/device/of_node/name", "vic")
    for policy in (0, 4):
        put(root / f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_cur_freq", 1_728_000)
        put(root / f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_max_freq", 1_728_000)
    return root


def monitor(root: Path, address: str, number: int) -> Path:
    return root / f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{number}"


def rail_file(root: Path, label: str) -> Path:
    """The current register of a rail."""
    for file in (root / "sys/bus/i2c/drivers").rglob("in*_label"):
        if file.read_text().strip() == label:
            return file.with_name(f"curr{file.name[2]}_input")
    raise FileNotFoundError(label)


def x86(root: Path, packages: int = 1, dram: bool = True, range_uj: int = 262_143_328_850) -> Path:
    """RAPL domains with their counters just below where they start over."""
    for package in range(packages):
        folder = root / f"sys/class/powercap/intel-rapl:{package}"
        domains = {folder: f"package-{package}", folder.with_name(f"{folder.name}:0"): "core"}
        if dram:
            domains[folder.with_name(f"{folder.name}:1")] = "dram"
        for path, name in domains.items():
            put(path / "name", name)
            put(path / "energy_uj", range_uj - 1_000_000)
            put(path / "max_energy_range_uj", range_uj)
    return root


def spend(root: Path, domain: str, joules: float) -> None:
    """Let a counter go on, over its end if need be: `intel-rapl:0`, `intel-rapl:0:1`."""
    folder = root / f"sys/class/powercap/{domain}"
    span = int((folder / "max_energy_range_uj").read_text())
    put(folder / "energy_uj", (int((folder / "energy_uj").read_text()) + round(joules * 1e6)) % span)
