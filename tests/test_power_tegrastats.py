"""Every line of tegrastats is read exactly; a damaged one is read as what is left of it, never as something else."""

import random
import re
import threading
import time

import pytest
from svrt.benchmarks.power import NoSensorError, TegrastatsReader, find_reader, parse, rails
from svrt.benchmarks.power.tegrastats import Core, Engine, FreeBlocks, Memory, Power, Stats

NANO = (
    "04-19-2026 01:32:07 RAM 4238/7607MB (lfb 5x2MB) CPU "
    "[8%@1728,0%@1728,0%@1728,0%@1728,0%@1728,0%@1728] EMC_FREQ 73%@3199 GR3D_FREQ 99%@[1006] NVDEC off "
    "NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@54.312C soc2@53.625C soc0@52.625C gpu@57.187C "
    "tj@57.187C soc1@51.25C VDD_IN 21468mW/9900mW VDD_CPU_GPU_CV 9416mW/3540mW VDD_SOC 5934mW/3213mW"
)
NANO_CORES_OFF = (
    "12-23-2024 22:54:11 RAM 3162/7620MB (lfb 4x2MB) SWAP 0/3810MB (cached 0MB) CPU "
    "[1%@729,0%@729,0%@729,0%@729,off,off] GR3D_FREQ 1% cpu@62.843C soc2@61.968C soc0@60.625C gpu@61.687C "
    "tj@62.843C soc1@61.687C VDD_IN 3913mW/3922mW VDD_CPU_GPU_CV 598mW/598 VDD_SOC 1238mW/1237mW"
)
NX = (
    "07-16-2026 13:03:45 RAM 1224/15656MB (lfb 8x4MB) SWAP 0/7828MB (cached 0MB) CPU "
    "[1%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] GR3D_FREQ 0% cv0@41.156C cpu@45.843C "
    "soc2@39.593C soc0@42.562C cv1@42.156C gpu@43.406C tj@45.843C soc1@40.25C cv2@38.593C VDD_IN "
    "4304mW/4304mW VDD_CPU_GPU_CV 573mW/573mW VDD_SOC 1218mW/1218mW"
)
AGX = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) SWAP 126/31390MB (cached 0MB) CPU "
    "[90%@2201,100%@2201] EMC_FREQ 1%@2133 GR3D_FREQ 14%@[407,407] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 "
    "CV0@73.625C CPU@77.281C Tboard@62C SOC2@70C Tdiode@62.25C GPU@69.125C tj@77.281C VDD_GPU_SOC "
    "3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
TWO_TEMPERATURES = "cpu@52.968C/52.968C"
THOR = "GR3D_FREQ @[314,314,314] VIN 19780mW/19780mW"
THOR_WHOLE = (
    "08-01-2026 10:00:00 RAM 9000/125772MB (lfb 3x512kB) CPU [1%@972,off] EMC_FREQ 0%@4266 GR3D_FREQ "
    "@[314,314,314] NVENC0 3%@1000 cpu@52.968C/52.968C tj@53.5C/53.5C VDD_GPU -392mW/0mW VDD_CPU_SOC_MSS "
    "6323mW/6323mW VIN_SYS_5V0 6076mW/6076mW VIN 19780mW/19780mW"
)
LINES = [NANO, NANO_CORES_OFF, NX, AGX, TWO_TEMPERATURES, THOR, THOR_WHOLE]

EXPECTED = {
    NANO: Stats(
        time="04-19-2026 01:32:07",
        ram=Memory(4238, 7607),
        blocks=FreeBlocks(5, 2048),
        cores=(Core(8, 1728), *[Core(0, 1728)] * 5),
        engines={
            "EMC_FREQ": Engine(73, (3199,)),
            "GR3D_FREQ": Engine(99, (1006,)),
            **dict.fromkeys(("NVDEC", "NVJPG", "NVJPG1", "VIC", "OFA")),
            "APE": Engine(None, (200,)),
        },
        temperatures_c={"cpu": 54.312, "soc2": 53.625, "soc0": 52.625, "gpu": 57.187, "tj": 57.187, "soc1": 51.25},
        rails={"VDD_IN": Power(21468, 9900), "VDD_CPU_GPU_CV": Power(9416, 3540), "VDD_SOC": Power(5934, 3213)},
    ),
    NANO_CORES_OFF: Stats(
        time="12-23-2024 22:54:11",
        ram=Memory(3162, 7620),
        blocks=FreeBlocks(4, 2048),
        swap=Memory(0, 3810),
        swap_cached_mb=0,
        cores=(Core(1, 729), *[Core(0, 729)] * 3, None, None),
        engines={"GR3D_FREQ": Engine(1, ())},
        temperatures_c={"cpu": 62.843, "soc2": 61.968, "soc0": 60.625, "gpu": 61.687, "tj": 62.843, "soc1": 61.687},
        rails={"VDD_IN": Power(3913, 3922), "VDD_CPU_GPU_CV": Power(598, 598), "VDD_SOC": Power(1238, 1237)},
    ),
    NX: Stats(
        time="07-16-2026 13:03:45",
        ram=Memory(1224, 15656),
        blocks=FreeBlocks(8, 4096),
        swap=Memory(0, 7828),
        swap_cached_mb=0,
        cores=(Core(1, 729), *[Core(0, 729)] * 7),
        engines={"GR3D_FREQ": Engine(0, ())},
        temperatures_c={
            "cv0": 41.156, "cpu": 45.843, "soc2": 39.593, "soc0": 42.562, "cv1": 42.156, "gpu": 43.406, "tj": 45.843,
            "soc1": 40.25, "cv2": 38.593,
        },
        rails={"VDD_IN": Power(4304, 4304), "VDD_CPU_GPU_CV": Power(573, 573), "VDD_SOC": Power(1218, 1218)},
    ),
    AGX: Stats(
        time="11-21-2025 08:49:48",
        ram=Memory(13983, 62780),
        blocks=FreeBlocks(424, 4096),
        swap=Memory(126, 31390),
        swap_cached_mb=0,
        cores=(Core(90, 2201), Core(100, 2201)),
        engines={
            "EMC_FREQ": Engine(1, (2133,)),
            "GR3D_FREQ": Engine(14, (407, 407)),
            "VIC_FREQ": Engine(None, (115,)),
            "NVDLA0_FREQ": Engine(None, (1600,)),
            "APE": Engine(None, (174,)),
        },
        temperatures_c={
            "CV0": 73.625, "CPU": 77.281, "Tboard": 62.0, "SOC2": 70.0, "Tdiode": 62.25, "GPU": 69.125, "tj": 77.281,
        },
        rails={
            "VDD_GPU_SOC": Power(3150, 2971),
            "VDD_CPU_CV": Power(14312, 12415),
            "VIN_SYS_5V0": Power(4968, 5048),
            "VDDQ_VDD2_1V8AO": Power(1091, 1091),
        },
    ),
    TWO_TEMPERATURES: Stats(temperatures_c={"cpu": 52.968}),
    THOR: Stats(engines={"GR3D_FREQ": Engine(None, (314, 314, 314))}, rails={"VIN": Power(19780, 19780)}),
    THOR_WHOLE: Stats(
        time="08-01-2026 10:00:00",
        ram=Memory(9000, 125772),
        blocks=FreeBlocks(3, 512),
        cores=(Core(1, 972), None),
        engines={
            "EMC_FREQ": Engine(0, (4266,)),
            "GR3D_FREQ": Engine(None, (314, 314, 314)),
            "NVENC0": Engine(3, (1000,)),
        },
        temperatures_c={"cpu": 52.968, "tj": 53.5},
        rails={
            "VDD_GPU": Power(-392, 0),
            "VDD_CPU_SOC_MSS": Power(6323, 6323),
            "VIN_SYS_5V0": Power(6076, 6076),
            "VIN": Power(19780, 19780),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "line", LINES, ids=["nano", "cores-off", "nx", "agx", "two-temperatures", "thor", "thor-whole"]
)
def test_a_line_is_read_exactly(line):
    assert parse(line) == EXPECTED[line]
    assert parse(f"  {line}\n") == EXPECTED[line]


@pytest.mark.parametrize(
    ("words", "engines"),
    [
        ("GR3D_FREQ 5%", {"GR3D_FREQ": Engine(5, ())}),
        ("GR3D_FREQ 5%@918", {"GR3D_FREQ": Engine(5, (918,))}),
        ("GR3D_FREQ 5%@[918]", {"GR3D_FREQ": Engine(5, (918,))}),
        ("GR3D_FREQ 5%@[918,0]", {"GR3D_FREQ": Engine(5, (918, 0))}),
        ("GR3D_FREQ @[0,1,2]", {"GR3D_FREQ": Engine(None, (0, 1, 2))}),
        ("GR3D_FREQ 5%@918 GR3D2_FREQ 6%@918", {"GR3D_FREQ": Engine(5, (918,)), "GR3D2_FREQ": Engine(6, (918,))}),
        ("NVENC off", {"NVENC": None}),
        ("NVENC @0", {"NVENC": Engine(None, (0,))}),
        ("GR3D_FREQ 14%407", {}),
        ("GR3D_FREQ", {}),
        ("VDD_IN 2146", {}),
        ("VIN_SYS_5V0 off", {}),
    ],
)
def test_an_engine_in_every_form(words, engines):
    assert parse(words) == Stats(engines=engines)


@pytest.mark.parametrize("line", [NANO, NX, AGX])
def test_a_line_cut_off_anywhere_gives_no_figure_that_the_whole_line_does_not_give(line):
    whole = EXPECTED[line]
    for length in range(len(line)):
        cut = parse(line[:length])
        for name, power in cut.rails.items():
            assert power.now_mw == whole.rails[name].now_mw
        assert cut.temperatures_c.items() <= whole.temperatures_c.items()
        assert cut.cores in (None, whole.cores)
        assert cut.ram in (None, whole.ram)


def is_in(line, stats):
    """Whether each figure stands in the line in so many words: an oracle that searches where the parser walks."""
    line = " ".join(line.split())
    found = []
    for name, power in stats.rails.items():
        sign = "-" if power.now_mw < 0 else "-?" if power.now_mw == 0 else ""
        found.append(rf"(^| ){name} {sign}0*{abs(power.now_mw)}mW/-?0*{abs(power.average_mw)}")
    for name, celsius in stats.temperatures_c.items():
        said = re.findall(rf"(?:^| ){re.escape(name)}@(-?[0-9]+(?:[.][0-9]+)?)C", line)
        if not any(float(value) == celsius for value in said):
            return False
    for memory, unit in ((stats.ram, "RAM"), (stats.swap, "SWAP")):
        if memory is not None:
            found.append(f"{unit} 0*{memory.used_mb}/0*{memory.total_mb}MB")
    for core in stats.cores or ():
        found.append("off" if core is None else f"0*{core.percent}%@0*{core.mhz}")
    for name, engine in stats.engines.items():
        if engine is None:
            found.append(f"{name} off")
        elif engine.percent is not None:
            found.append(f"{name} 0*{engine.percent}%")
        else:
            found.append(rf"{name} @?\[?0*{engine.mhz[0]}")
    if stats.blocks is not None:
        found.append(f"lfb 0*{stats.blocks.count}x")
    if stats.swap_cached_mb is not None:
        found.append(f"cached 0*{stats.swap_cached_mb}MB")
    return all(re.search(pattern, line) for pattern in found)


ODD = "0123456789@%[]/(),.-CmWM \t\0\n\u0663\u00b2\ud800é_xk"


def mutated(line, rng):
    """One to four injuries: characters changed, lost or added, parts lost, doubled or moved, lines joined."""
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(8), rng.randrange(len(line) + 1)
        to = min(len(line), at + rng.randint(1, 12))
        if kind == 0:
            line = line[:at] + rng.choice(ODD) + line[at + 1 :]
        elif kind == 1:
            line = line[:at] + rng.choice(ODD) + line[at:]
        elif kind == 2:
            line = line[:at] + line[to:]
        elif kind == 3:
            line = line[:at] + line[at:to] + line[at:]
        elif kind == 4:
            line = line[:at]
        elif kind == 5:
            line = line[:at] + rng.choice(LINES)[rng.randrange(60) :]
        elif kind == 6:
            words = line.split(" ")
            rng.shuffle(words)
            line = " ".join(words)
        else:
            line = line[:at] + "9" * rng.choice((1, 12, 400)) + line[at:]
    return line


def check_mutated_lines(count, seed):
    print(f"{count} mutated lines, seed {seed}")
    rng = random.Random(seed)
    totals = 0
    for _ in range(count):
        line = mutated(rng.choice(LINES), rng)
        stats = parse(line)
        assert is_in(line[:4096], stats), (line, stats)
        names = rails.total_of(stats.rails)
        if names is not None:
            watts = rails.add_up({name: power.now_mw / 1000 for name, power in stats.rails.items()}, names)
            assert watts is None or watts > 0
            totals += watts is not None
    assert totals > count / 10  # most injuries leave the power whole: otherwise nothing was tried
    return totals


def test_mutated_lines_do_no_harm_and_give_no_figure_that_is_not_in_them():
    check_mutated_lines(20_000, seed=random.SystemRandom().randrange(2**32))


@pytest.mark.full
def test_a_million_mutated_lines_do_no_harm():
    check_mutated_lines(1_000_000, seed=random.SystemRandom().randrange(2**32))


def test_the_oracle_sees_a_figure_that_is_not_in_the_line():
    for wrong in (
        Stats(rails={"VDD_IN": Power(0, 9900)}),
        Stats(temperatures_c={"cpu": 0.0}),
        Stats(ram=Memory(0, 7607)),
        Stats(engines={"APE": Engine(None, (0,))}),
        Stats(cores=(Core(8, 0),)),
    ):
        assert not is_in(NANO, wrong)


def take(reader):
    """The next reading, waited for."""
    for _ in range(2000):
        if (reading := reader.read()) is not None:
            return reading
        time.sleep(0.005)
    raise AssertionError("no reading")


@pytest.mark.parametrize(
    ("line", "rail", "watts"),
    [
        (NANO, "VDD_IN", 21.468),
        (NX, "VDD_IN", 4.304),
        (AGX, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO", 3.150 + 14.312 + 4.968 + 1.091),
        (THOR_WHOLE, "VIN", 19.78),
    ],
)
def test_a_boards_total_is_named_and_right(line, rail, watts):
    reader = TegrastatsReader([line], clock=lambda: 7.0)
    reading = take(reader)
    assert (reader.method, reader.rail) == ("tegrastats", rail)
    assert reading.watts == pytest.approx(watts, abs=1e-9)
    assert reading.seconds == 7.0
    assert reading.temperatures_c == EXPECTED[line].temperatures_c
    assert reader.read() is None  # a line is given once


def test_a_line_that_lacks_one_rail_of_the_total_gives_no_total():
    shown = threading.Event()

    def lines():
        yield AGX
        shown.wait()
        yield AGX.replace("VIN_SYS_5V0 4968mW", "VIN_SYS_5V0 49x68mW")

    reader = TegrastatsReader(lines())
    assert take(reader).watts is not None
    shown.set()
    second = take(reader)
    assert second.watts is None
    assert set(second.parts) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VDDQ_VDD2_1V8AO"}


@pytest.mark.parametrize("lines", [[], ["RAM 1/2MB"], ["VDD_SOC 5934mW/3213mW"], ["\0" * 10_000]])
def test_a_stream_without_a_total_is_no_sensor(lines):
    with pytest.raises(NoSensorError, match="tegrastats"):
        TegrastatsReader(lines)


def test_the_program_is_started_at_the_period_followed_and_ended(tmp_path):
    program = tmp_path / "usr/bin/tegrastats"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nwhile true; do echo "{NX}"; sleep 0.02; done\n')
    program.chmod(0o755)
    reader = find_reader(tmp_path, period_s=0.25)
    assert reader is not None and reader.method == "tegrastats"
    assert (tmp_path / "asked").read_text().split() == ["--interval", "250"]
    assert take(reader).watts == take(reader).watts == 4.304
    reader.close()
    for _ in range(400):  # lines already in the pipe may still come
        if reader.read() is None:
            break
        time.sleep(0.005)
    time.sleep(0.1)
    assert reader.read() is None


def test_a_program_that_does_not_run_is_no_sensor(tmp_path):
    program = tmp_path / "usr/bin/tegrastats"
    program.parent.mkdir(parents=True)
    program.write_text("no program\n")
    program.chmod(0o755)
    assert find_reader(tmp_path) is None
