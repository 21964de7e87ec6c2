"""Reads the machine's memory and load into one sample.

Owns what is measured of the machine and how memory's growth is told. The rules kept: a value that
this machine does not offer is absent, never 0; reading takes well under a millisecond and starts
no process or thread.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from agent.attempt import Key
from agent.memory import KeptFile, Memory, MemoryReading, SystemPaths, memory_groups

# The slope is taken over the last seconds: shorter is noise, longer hides the last turn.
GROWTH_WINDOW_NS = 5_000_000_000
GROWTH_POINTS_MAX = 32
# An agent's own start would look like a machine that is full in a minute.
GROWTH_SPAN_MIN_NS = 2_000_000_000
# Samples may be asked for at any moment: closer ones add noise to the slope, and to the processor
# time, which the kernel counts in steps of 10 ms.
SPACING_NS = 160_000_000
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement; None was not measured. `tasks` are memory_used_bytes of running attempts."""

    taken_at_unix_ns: int
    memory: MemoryReading
    psi_some_percent: float | None = None
    psi_full_percent: float | None = None
    cpu_percent: float | None = None
    load1: float | None = None
    load5: float | None = None
    load15: float | None = None
    disk_percent: float | None = None
    memory_growth_bytes_per_second: float | None = None
    oom_kills: int = 0
    tasks: Mapping[Key, int] = field(default_factory=dict)
    custom: Mapping[str, float] = field(default_factory=dict)  # metrics of one's own
    intake_stopped: bool = False  # the guard wants no new attempt for now

    @property
    def memory_used_bytes(self) -> int:
        """Measured: limit minus available, page cache not counted."""
        return self.memory.total_bytes - self.memory.available_bytes

    @property
    def memory_percent(self) -> float:
        """The used share of the limit, 0 to 100."""
        return 100.0 * self.memory_used_bytes / self.memory.total_bytes


class Sampler:
    """Reads samples; keeps files open and the last seconds of used memory."""

    def __init__(self, work_dir: Path, paths: SystemPaths | None = None) -> None:
        """Open what this machine offers.

        Raises:
            MemoryUnreadable: without the memory's state there is nothing to schedule by.
        """
        paths = paths or SystemPaths()
        self._memory = Memory(paths)
        self._stat = _kept(paths.at("/proc/stat"))
        self._load = _kept(paths.at("/proc/loadavg"))
        self._pressure = _kept(paths.at("/proc/pressure/memory"))
        self._work_dir = work_dir
        self._busy_before: tuple[int, int] | None = None
        self._busy_at_ns = 0
        self._busy_percent: float | None = None
        self._used: deque[tuple[int, int]] = deque(maxlen=GROWTH_POINTS_MAX)

    def memory(self) -> MemoryReading:
        """Return the memory alone; a few microseconds outside of limited groups."""
        return self._memory.read()

    def read(
        self,
        *,
        now_unix_ns: int,
        monotonic_ns: int,
        tasks: Mapping[Key, int],
        oom_kills: int,
        custom: Mapping[str, float] = MappingProxyType({}),
    ) -> Sample:
        """Return a sample taken now.

        Raises:
            MemoryUnreadable: the memory's state cannot be read now.
        """
        reading = self._memory.read()
        if not self._used or monotonic_ns - self._used[-1][0] >= SPACING_NS:
            self._used.append((monotonic_ns, reading.total_bytes - reading.available_bytes))
        while monotonic_ns - self._used[0][0] > GROWTH_WINDOW_NS:
            self._used.popleft()
        some, full = self._pressures()
        load1, load5, load15 = self._loads()
        return Sample(
            taken_at_unix_ns=now_unix_ns,
            memory=reading,
            psi_some_percent=some,
            psi_full_percent=full,
            cpu_percent=self._cpu_percent(monotonic_ns),
            load1=load1,
            load5=load5,
            load15=load15,
            disk_percent=self._disk_percent(),
            memory_growth_bytes_per_second=self._growth(),
            oom_kills=oom_kills,
            tasks=tasks,
            custom=custom,
        )

    def close(self) -> None:
        """Close every file."""
        self._memory.close()
        for file in (self._stat, self._load, self._pressure):
            if file is not None:
                file.close()

    def _growth(self) -> float | None:
        """Return the slope of used memory, None while too little of it was seen."""
        if self._used[-1][0] - self._used[0][0] < GROWTH_SPAN_MIN_NS:
            return None
        return slope(self._used)

    def _cpu_percent(self, monotonic_ns: int) -> float | None:
        """Return the use of all cores since the last reading, None at the first."""
        if self._stat is None:
            return None
        if self._busy_before is not None and monotonic_ns - self._busy_at_ns < SPACING_NS:
            return self._busy_percent
        fields = [int(value) for value in self._stat.read().split(b"\n", 1)[0].split()[1:9]]
        total, idle = sum(fields), fields[3] + fields[4]
        before, self._busy_before = self._busy_before, (total, idle)
        self._busy_at_ns = monotonic_ns
        if before is not None and total > before[0]:
            # The kernel's idle counters may step back a little.
            percent = 100.0 * (1 - (idle - before[1]) / (total - before[0]))
            self._busy_percent = min(100.0, max(0.0, percent))
        return self._busy_percent

    def _loads(self) -> tuple[float | None, float | None, float | None]:
        if self._load is None:
            return None, None, None
        one, five, fifteen = self._load.read().split()[:3]
        return float(one), float(five), float(fifteen)

    def _pressures(self) -> tuple[float | None, float | None]:
        """Return "some avg10" and "full avg10"; a kernel may have PSI built in but switched off."""
        if self._pressure is None:
            return None, None
        try:
            content = self._pressure.read()
        except OSError:
            self._pressure.close()
            self._pressure = None
            return None, None
        values = {line[:4]: float(line.split()[1][6:]) for line in content.splitlines()}
        return values.get(b"some"), values.get(b"full")

    def _disk_percent(self) -> float | None:
        """Return the used share as df shows it: blocks kept for root count neither way."""
        try:
            status = os.statvfs(self._work_dir)
        except OSError:
            return None  # somebody removed the directory: the start of tasks tells it in words
        used = status.f_blocks - status.f_bfree
        usable = used + status.f_bavail
        return 100.0 * used / usable if usable else None


def _kept(path: Path) -> KeptFile | None:
    try:
        return KeptFile(path)
    except OSError:
        return None  # this kernel has no such file: its values are absent


def slope(points: deque[tuple[int, int]]) -> float | None:
    """Return the least-squares slope of (nanoseconds, bytes) in bytes per second.

    None with fewer than two instants.
    """
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    origin_ns, origin_bytes = points[0]
    seconds = [(at_ns - origin_ns) / SECOND_NS for at_ns, _ in points]
    sizes = [float(size - origin_bytes) for _, size in points]
    mean_seconds, mean_size = math.fsum(seconds) / len(points), math.fsum(sizes) / len(points)
    spread = math.fsum((second - mean_seconds) ** 2 for second in seconds)
    product = math.fsum(
        (second - mean_seconds) * (size - mean_size)
        for second, size in zip(seconds, sizes, strict=True)
    )
    return product / spread


def machine_id(paths: SystemPaths | None = None) -> str:
    """Return an id that agents on one machine share: /etc/machine-id, else the boot id."""
    paths = paths or SystemPaths()
    return _word(paths.at("/etc/machine-id")) or boot_id(paths)


def boot_id(paths: SystemPaths | None = None) -> str:
    """Return an id that is new each time the machine starts, empty where there is none."""
    return _word((paths or SystemPaths()).at("/proc/sys/kernel/random/boot_id"))


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def usable_cpus(paths: SystemPaths | None = None) -> float:
    """Return the cores this process may use: its affinity, and the quotas of its v2 groups."""
    cores = float(len(os.sched_getaffinity(0)))
    version, directories = memory_groups(paths or SystemPaths())
    for directory in directories if version == 2 else ():
        quota, _, period = _word(directory / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            cores = min(cores, int(quota) / int(period))
    return cores
