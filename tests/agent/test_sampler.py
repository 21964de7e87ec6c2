"""Memory as a container sees it, from trees of files in the place of /proc and /sys."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from agent.memory import Memory, MemoryUnreadable, SystemPaths, memory_groups
from agent.sampler import SPACING_NS, Sampler, boot_id, machine_id, slope, usable_cpus

GIB = 1 << 30
NO_LIMIT_V1 = "9223372036854771712"
SECOND_NS = 1_000_000_000
MOUNT_V1 = "35 31 0:32 {root} {point} rw,relatime - cgroup cgroup rw,memory"
MOUNT_V2 = "41 31 0:38 {root} {point} rw,relatime - cgroup2 cgroup2 rw"


class Machine:
    """A fake machine below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = SystemPaths(root)

    def write(self, path: str, content: str) -> None:
        """Write one file; its directories are made, an open file sees the new content."""
        target = self.paths.at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)

    def host(self, total_bytes: int, available_bytes: int, swap_bytes: int = 0) -> None:
        """Write /proc/meminfo."""
        self.write(
            "/proc/meminfo",
            f"MemTotal:       {total_bytes >> 10} kB\nMemFree:        1 kB\n"
            f"MemAvailable:   {available_bytes >> 10} kB\nSwapCached:        0 kB\n"
            f"SwapTotal:      {swap_bytes >> 10} kB\nSwapFree:       {swap_bytes >> 11} kB\n",
        )

    def mounted(self, own: str, version: int, root: str = "/", point: str = "/sys/fs/m") -> None:
        """Say where the own group is and what is mounted where."""
        line = f"4:memory:{own}\n0::/\n" if version == 1 else f"0::{own}\n"
        self.write("/proc/self/cgroup", line)
        mount = MOUNT_V1 if version == 1 else MOUNT_V2
        self.write("/proc/self/mountinfo", mount.format(root=root, point=point) + "\n")

    def group1(self, path: str, limit: str, usage: int, active: int, inactive: int) -> None:
        """Write a v1 group; its own numbers without children are a tenth."""
        self.write(f"{path}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{path}/memory.usage_in_bytes", f"{usage}\n")
        self.write(
            f"{path}/memory.stat",
            f"cache 1\nactive_file {active // 10}\ninactive_file {inactive // 10}\n"
            f"total_cache 2\ntotal_active_file {active}\ntotal_inactive_file {inactive}\n",
        )

    def group2(self, path: str, limit: str, usage: int, active: int, inactive: int) -> None:
        """Write a v2 group."""
        self.write(f"{path}/memory.max", f"{limit}\n")
        self.write(f"{path}/memory.current", f"{usage}\n")
        self.write(
            f"{path}/memory.stat", f"anon 1\nactive_file {active}\ninactive_file {inactive}\n"
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.host(16 * GIB, 12 * GIB)
    return made


def test_without_groups_the_host_is_the_limit(machine: Machine) -> None:
    machine.host(16 * GIB, 12 * GIB, swap_bytes=4 * GIB)
    reading = Memory(machine.paths).read()
    assert (reading.total_bytes, reading.available_bytes) == (16 * GIB, 12 * GIB)
    assert (reading.swap_total_bytes, reading.swap_used_bytes) == (4 * GIB, 2 * GIB)


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_of_all_levels_counts_and_page_cache_does_not(
    machine: Machine, version: int
) -> None:
    machine.mounted("/a/b", version)
    group = machine.group1 if version == 1 else machine.group2
    none = NO_LIMIT_V1 if version == 1 else "max"
    group("/sys/fs/m", none, 0, 0, 0)
    group("/sys/fs/m/a", str(8 * GIB), 7 * GIB, 1 * GIB, 3 * GIB)
    group("/sys/fs/m/a/b", str(6 * GIB), 1 * GIB, 0, 0)
    memory = Memory(machine.paths)
    reading = memory.read()
    assert memory.level_count == 3
    assert reading.total_bytes == 6 * GIB
    assert reading.available_bytes == 5 * GIB  # 8 - (7 - 4) and 6 - 1, both
    group("/sys/fs/m/a", str(8 * GIB), 7 * GIB, 0, 0)
    assert memory.read().available_bytes == 1 * GIB


def test_a_full_host_bounds_a_container_that_is_empty(machine: Machine) -> None:
    machine.mounted("/", 2)
    machine.group2("/sys/fs/m", str(8 * GIB), 0, 0, 0)
    machine.host(16 * GIB, 1 * GIB)
    reading = Memory(machine.paths).read()
    assert (reading.total_bytes, reading.available_bytes) == (8 * GIB, 1 * GIB)


def test_a_group_beyond_its_limit_has_nothing_available(machine: Machine) -> None:
    machine.mounted("/", 2)
    machine.group2("/sys/fs/m", str(1 * GIB), 2 * GIB, 0, 0)
    assert Memory(machine.paths).read().available_bytes == 0


def test_a_limit_that_changes_is_seen_at_the_next_reading(machine: Machine) -> None:
    machine.mounted("/", 2)
    machine.group2("/sys/fs/m", "max", 0, 0, 0)
    memory = Memory(machine.paths)
    assert memory.read().total_bytes == 16 * GIB
    machine.group2("/sys/fs/m", str(2 * GIB), 0, 0, 0)
    assert memory.read().total_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("own", "root", "relative"),
    [
        ("/docker/abc", "/docker/abc", ""),
        ("/docker/abc/inner", "/docker/abc", "inner"),
        ("/docker/abcdef", "/docker/abc", ""),
        ("/elsewhere", "/docker/abc", ""),
        ("/../other", "/", ""),
        ("/plain", "/", "plain"),
    ],
)
def test_a_group_lies_below_its_mount_without_the_mounts_root(
    machine: Machine, own: str, root: str, relative: str
) -> None:
    machine.mounted(own, 1, root)
    version, directories = memory_groups(machine.paths)
    assert version == 1
    assert directories[0] == machine.root / "sys/fs/m" / relative


def test_a_mount_point_with_a_space_is_found(machine: Machine) -> None:
    machine.mounted("/a", 1, point="/sys/fs/my\\040groups")
    assert memory_groups(machine.paths)[1][0] == machine.root / "sys/fs/my groups/a"


def test_unreadable_memory_is_an_error_and_never_zero(machine: Machine) -> None:
    memory = Memory(machine.paths)
    machine.write("/proc/meminfo", "nonsense\n")
    with pytest.raises(MemoryUnreadable, match="MemTotal"):
        memory.read()
    with pytest.raises(MemoryUnreadable, match="No such file"):
        Memory(SystemPaths(machine.root / "nowhere"))


def test_a_sample_has_what_the_machine_offers(machine: Machine, tmp_path: Path) -> None:
    machine.write("/proc/stat", "cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1 2\n")
    machine.write("/proc/loadavg", "0.50 1.25 2.00 1/200 999\n")
    machine.write(
        "/proc/pressure/memory",
        "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n"
        "full avg10=0.25 avg60=0.00 avg300=0.00 total=9\n",
    )
    sampler = Sampler(tmp_path, machine.paths)
    first = sampler.read(now_unix_ns=5, monotonic_ns=0, tasks={(1, 1): 7}, oom_kills=3)
    assert (first.psi_some_percent, first.psi_full_percent) == (1.5, 0.25)
    assert (first.load1, first.load5, first.load15) == (0.5, 1.25, 2.0)
    assert (first.taken_at_unix_ns, first.oom_kills, first.tasks) == (5, 3, {(1, 1): 7})
    assert first.memory_percent == 25.0
    assert first.cpu_percent is None
    machine.write("/proc/stat", "cpu  40 0 10 130 20 0 0 0 0 0\n")
    second = sampler.read(now_unix_ns=6, monotonic_ns=SECOND_NS, tasks={}, oom_kills=3)
    assert second.cpu_percent == pytest.approx(30.0)
    sampler.close()


def test_what_the_machine_does_not_offer_is_absent(machine: Machine, tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, machine.paths)
    sample = sampler.read(now_unix_ns=5, monotonic_ns=0, tasks={}, oom_kills=0)
    assert (sample.cpu_percent, sample.load1, sample.psi_some_percent) == (None, None, None)
    assert sample.memory_growth_bytes_per_second is None
    sampler.close()


def test_growth_is_the_slope_of_the_last_seconds(machine: Machine, tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, machine.paths)
    growth = None
    for second in range(12):
        falling = second < 6
        used = (6 - second) * GIB if falling else (second - 6) * GIB // 2
        machine.host(16 * GIB, 16 * GIB - used)
        growth = sampler.read(
            now_unix_ns=0, monotonic_ns=second * SECOND_NS, tasks={}, oom_kills=0
        ).memory_growth_bytes_per_second
    assert growth == pytest.approx(GIB / 2)
    sampler.close()


def test_growth_is_not_told_from_less_than_two_seconds(machine: Machine, tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, machine.paths)
    told = []
    for second in range(4):
        machine.host(16 * GIB, (12 - second) * GIB)
        told.append(
            sampler.read(
                now_unix_ns=0, monotonic_ns=second * SECOND_NS, tasks={}, oom_kills=0
            ).memory_growth_bytes_per_second
        )
    assert told == [None, None, pytest.approx(GIB), pytest.approx(GIB)]
    sampler.close()


def test_samples_close_together_do_not_disturb_the_slope(machine: Machine, tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, machine.paths)
    for at_ns in (0, 2 * SECOND_NS):
        sampler.read(now_unix_ns=0, monotonic_ns=at_ns, tasks={}, oom_kills=0)
    machine.host(16 * GIB, 11 * GIB)
    near = sampler.read(
        now_unix_ns=0, monotonic_ns=2 * SECOND_NS + SPACING_NS - 1, tasks={}, oom_kills=0
    )
    assert near.memory_growth_bytes_per_second == 0.0
    assert near.memory_used_bytes == 5 * GIB
    sampler.close()


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], None),
        ([(0, 5)], None),
        ([(7, 5), (7, 9)], None),
        ([(0, 0), (SECOND_NS, 10)], 10.0),
        ([(0, 0), (SECOND_NS, 0), (2 * SECOND_NS, 30)], 15.0),
    ],
)
def test_the_slope_is_least_squares(points: list[tuple[int, int]], expected: float | None) -> None:
    assert slope(deque(points)) == expected


def test_the_boot_id_stands_in_for_a_missing_machine_id(machine: Machine) -> None:
    machine.write("/proc/sys/kernel/random/boot_id", "boot-1\n")
    assert machine_id(machine.paths) == "boot-1"
    machine.write("/etc/machine-id", "machine-1\n")
    assert machine_id(machine.paths) == "machine-1"
    assert boot_id(machine.paths) == "boot-1"


def test_a_cpu_quota_bounds_the_usable_cores(machine: Machine) -> None:
    machine.mounted("/a", 2)
    assert usable_cpus(machine.paths) >= 1
    machine.write("/sys/fs/m/a/cpu.max", "max 100000\n")
    machine.write("/sys/fs/m/cpu.max", "50000 100000\n")
    assert usable_cpus(machine.paths) == 0.5


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path)
    sample = sampler.read(now_unix_ns=0, monotonic_ns=0, tasks={}, oom_kills=0)
    assert 0 < sample.memory.available_bytes <= sample.memory.total_bytes
    assert sample.disk_percent is not None
    assert machine_id()
    sampler.close()
