"""Power, energy, temperatures and throttling of this machine: one interface over what its sensors can say.

    reader = find_reader()
    with watch() as watching, Recorder(reader) as recorder:
        start = time.monotonic(); ...; stop = time.monotonic()
    energy = recorder.trace.energy(start, stop)

No sensor, no figure: `find_reader` gives None and `why_none` says why in a sentence.
"""

from .condition import Condition, Limits, Watch, judge, snapshot, watch
from .find import find_reader, why_none
from .ina3221 import Ina3221Reader
from .nvml import NvmlReader
from .rapl import RaplReader
from .reading import NoSensorError, Reader, Reading
from .recorder import Recorder
from .tegrastats import Stats, TegrastatsReader, parse
from .trace import Energy, Trace

__all__ = [
    "Condition",
    "Energy",
    "Ina3221Reader",
    "Limits",
    "NoSensorError",
    "NvmlReader",
    "RaplReader",
    "Reader",
    "Reading",
    "Recorder",
    "Stats",
    "TegrastatsReader",
    "Trace",
    "Watch",
    "find_reader",
    "judge",
    "parse",
    "snapshot",
    "watch",
    "why_none",
]
