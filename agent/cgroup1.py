"""Holds tasks to their memory with the cgroup v1 memory controller.

Owns the directories `mass-<node>.<life of the agent>/slot-N` below the agent's own memory cgroup,
and their twins in the freezer hierarchy where there is one. The rule kept: the agent itself stays
outside, in the group it was started in, and nothing but tasks is ever limited or killed here.

How memory is counted. Used is anonymous memory plus shared memory (`total_rss + total_shmem`):
what a task cannot give back. Page cache counts for the kernel's limit, which drops it before it
kills, so it is not counted here. The kernel's own peak (`max_usage_in_bytes`) does hold cache: a
task that only reads a large file reaches its limit. Therefore `peak` is that mark less the cache
still charged at the time of asking, and at least the largest `usage` ever read; after a kill for
the limit it is the mark itself, since the kernel gives up all cache before it kills.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from agent.group import EnforcementError, Group, LimitRefused
from agent.proctree import Life, send_signal

LOG = logging.getLogger(__name__)

NO_LIMIT = "-1"
SHARES_PER_CPU = 1_024  # the kernel's default for a group
SHARES_MIN, SHARES_MAX = 2, 262_144  # the kernel's bounds
READ_BYTES = 65_536
CHILDLESS_LINKS = 2  # of a directory without directories below; the kernel counts them here too
SWEEP_SECONDS_MAX = 10.0  # for one leftover; SIGKILL takes milliseconds unless a disk hangs
SLOTS_TRIED_MAX = 1_000  # names skipped because a group of that name could not be removed


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted v1 hierarchy; `own` is this process's directory in it."""

    mount: Path
    own: Path


def find_hierarchy(controller: str) -> Hierarchy:
    """Return where a v1 controller is mounted and where this process is in it.

    Raises:
        EnforcementError: it is not mounted, or this process's group lies outside the mount.
    """
    found = locate(
        controller,
        Path("/proc/self/mountinfo").read_text(encoding="utf-8"),
        Path("/proc/self/cgroup").read_text(encoding="utf-8"),
    )
    if not found.own.is_dir():
        raise EnforcementError(f"own {controller} group {found.own} does not exist")
    return found


def locate(controller: str, mountinfo: str, memberships: str) -> Hierarchy:
    """Return the same from the text of /proc/self/mountinfo and /proc/self/cgroup.

    In a container the mount may show only a part of the tree: a group's directory is the mount
    point plus the group's path minus the mount's root.
    """
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup" and controller in options.split(","):
            root, mount = left.split(" ")[3:5]
            break
    else:
        raise EnforcementError(f"no cgroup v1 {controller} hierarchy is mounted")
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            break
    else:
        raise EnforcementError(f"this process is in no cgroup v1 {controller} group")
    if os.path.commonpath([root, path]) != root or ".." in path.split("/"):
        raise EnforcementError(f"own {controller} group {path} lies outside the mount of {root}")
    return Hierarchy(Path(mount), Path(os.path.normpath(Path(mount, os.path.relpath(path, root)))))


class Cgroup1:
    """Enforcement by the kernel; see `agent.enforce.Enforcement` for the contract."""

    name = "cgroup1"
    poll_interval_ns = None

    def __init__(
        self,
        node_name: str,
        base: Path,
        freezer: Path | None,
        search: list[Path],
        cpu: Path | None = None,
    ):
        """Take over `base` (made by `probe`) and its twins; sweep looks below `search`."""
        self._node_name = node_name
        self._base = base
        self._freezer = freezer
        self._cpu = cpu
        self._twins = [twin for twin in (freezer, cpu) if twin is not None]
        self._search = search
        self._counts_swap = (base / "memory.memsw.limit_in_bytes").exists()
        self._slot_count = 0
        self._peaks: dict[str, int] = {}
        self._limits: dict[str, int | None] = {}

    @classmethod
    def probe(cls, node_name: str, parent: Path | None = None) -> Cgroup1:
        """Return it when this process may really make and limit groups, by doing so.

        Raises:
            EnforcementError: with what failed, in words.
        """
        memory = find_hierarchy("memory")
        base = (parent or memory.own) / f"{_prefix(node_name)}{Life.mine()}"
        search = [parent or memory.mount]
        try:
            base.mkdir(exist_ok=True)
            try:
                if _read_int(base / "memory.use_hierarchy") != 1:
                    raise EnforcementError(f"{base}: memory.use_hierarchy is off")
                _write(base / "memory.limit_in_bytes", NO_LIMIT)
            except BaseException:
                base.rmdir()
                raise
        except OSError as error:
            raise EnforcementError(f"cannot make groups at {base}: {error.strerror}") from error
        # Wanted, but not needed: for atomic kills, and to share the processors by what was asked.
        freezer = cls._make_twin("freezer", base.name, search)
        cpu = cls._make_twin("cpu", base.name, search)
        return cls(node_name, base, freezer, search, cpu)

    @staticmethod
    def _make_twin(controller: str, name: str, search: list[Path]) -> Path | None:
        """Return the twin in another hierarchy, and have sweep look there; None without it."""
        try:
            hierarchy = find_hierarchy(controller)
            twin = hierarchy.own / name
            twin.mkdir(exist_ok=True)
        except (EnforcementError, OSError) as error:
            LOG.info("no groups of the %s controller: %s", controller, error)
            return None
        search.append(hierarchy.mount)
        return twin

    def describe(self) -> dict[str, bool | str]:
        """Return what it can and cannot do."""
        return {
            "kernel_limit": True,
            "limit_covers_swap": self._counts_swap,
            "oom_counter": True,
            "kernel_peak": True,
            "atomic_kill": self._freezer is not None,
            "cpu_shares": self._cpu is not None,
            "caveat": "the limit holds page cache too; the kernel drops it before it kills",
        }

    def prepare(self) -> Group:
        """Make an empty group; 0.2 ms. Raises EnforcementError."""
        for _ in range(SLOTS_TRIED_MAX):
            self._slot_count += 1
            name = f"slot-{self._slot_count}"
            try:
                (self._base / name).mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                message = f"cannot make group {self._base / name}: {error.strerror}"
                raise EnforcementError(message) from error
            break
        else:
            raise EnforcementError(f"{self._base}: {SLOTS_TRIED_MAX} groups cannot be reused")
        paths = [self._base / name]
        for twin in self._twins:
            (twin / name).mkdir(exist_ok=True)
            paths.append(twin / name)
        self._peaks[name] = 0
        self._limits[name] = None
        return Group(name, tuple(str(path / "cgroup.procs") for path in paths))

    def set_limit(self, group: Group, limit_bytes: int | None) -> None:
        """Set memory and memory + swap to the limit, so that a task cannot flee into swap.

        The kernel keeps memory <= memory + swap at every moment, hence the order.
        """
        path = self._base / group.name
        text = NO_LIMIT if limit_bytes is None else str(limit_bytes)
        files = ["memory.limit_in_bytes"]
        if self._counts_swap:
            files.append("memory.memsw.limit_in_bytes")
        old_bytes = self._limits[group.name]
        if limit_bytes is None or (old_bytes is not None and limit_bytes > old_bytes):
            files.reverse()
        try:
            for file in files:
                _write(path / file, text)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise LimitRefused(
                    f"group {group.name} uses {self.usage(group)} bytes, "
                    f"its limit cannot be lowered to {text}"
                ) from error
            raise EnforcementError(
                f"group {group.name}: limit {text} refused: {error.strerror}"
            ) from error
        self._limits[group.name] = limit_bytes

    def share_cpus(self, group: Group, cpus: float) -> None:
        """Let the group have that many parts of the processors when they do not suffice for all.

        Idle processors are anyone's: a share is no limit.
        """
        if self._cpu is None:
            return
        shares = min(max(round(cpus * SHARES_PER_CPU), SHARES_MIN), SHARES_MAX)
        try:
            _write(self._cpu / group.name / "cpu.shares", str(shares))
        except OSError as error:
            raise EnforcementError(
                f"group {group.name}: cpu.shares {shares} refused: {error.strerror}"
            ) from error

    def started(self, group: Group, pid: int) -> None:
        """Nothing to learn: the kernel knows who is in the group."""

    def usage(self, group: Group) -> int:
        """Return anonymous plus shared memory of the whole group; about 50 us."""
        statistics = self._statistics(group)
        used_bytes = statistics.get("total_rss", 0) + statistics.get("total_shmem", 0)
        self._peaks[group.name] = max(self._peaks[group.name], used_bytes)
        return used_bytes

    def peak(self, group: Group) -> int:
        """Return the best lower bound on the most memory used; the module says how."""
        path = self._base / group.name
        statistics = self._statistics(group)
        used_bytes = statistics.get("total_rss", 0) + statistics.get("total_shmem", 0)
        sampled_bytes = max(self._peaks[group.name], used_bytes)
        try:
            mark_bytes = _read_int(path / "memory.max_usage_in_bytes")
            limit_bytes = _read_int(path / "memory.limit_in_bytes")
        except FileNotFoundError:
            return sampled_bytes  # someone else removed the empty group
        mark_bytes = min(mark_bytes, limit_bytes)
        if self.oom_kills(group):
            return mark_bytes
        cache_bytes = statistics.get("total_cache", 0) - statistics.get("total_shmem", 0)
        return min(mark_bytes, max(sampled_bytes, mark_bytes - cache_bytes))

    def oom_kills(self, group: Group) -> int:
        """Return the kernel's counter, child groups that the task made included."""
        return sum(
            _read_pairs(path / "memory.oom_control").get("oom_kill", 0)
            for path in _tree(self._base / group.name)
        )

    def signal(self, group: Group, number: int) -> int:
        """Signal every process of the group once; one that forks meanwhile may be missed."""
        return send_signal(_processes(self._base / group.name), number)

    def freeze(self, group: Group, paused: bool) -> None:
        """Pause the group, by the freezer where there is one: processes cannot tell."""
        if self._freezer is None:
            self.signal(group, signal.SIGSTOP if paused else signal.SIGCONT)
            return
        state = self._freezer / group.name / "freezer.state"
        try:
            _write(state, "FROZEN" if paused else "THAWED")
        except FileNotFoundError:
            return  # the group is empty and gone

    def kill(self, group: Group) -> int:
        """Kill what is in the group: frozen where possible, so that nothing forks away."""
        path = self._base / group.name
        pids = _processes(path)
        if not pids:
            return 0
        if self._freezer is None:
            return send_signal(pids, signal.SIGKILL)
        state = self._freezer / group.name / "freezer.state"
        try:
            _write(state, "FROZEN")
            return send_signal(_processes(path), signal.SIGKILL)
        finally:
            _write(state, "THAWED")

    def remove(self, group: Group) -> None:
        """Remove the empty group from both hierarchies. Raises EnforcementError."""
        for parent in (*self._twins, self._base):
            _remove_tree(parent / group.name)
        self._peaks.pop(group.name, None)
        self._limits.pop(group.name, None)

    def poll(self) -> None:
        """Nothing to do: the kernel enforces by itself."""

    def sweep(self) -> tuple[str, ...]:
        """Kill and remove the groups of this node name whose agent has ended.

        They are looked for in the whole hierarchy, since an agent may come back in another
        group (another session, another container) than the one that died.
        """
        swept: dict[str, None] = {}
        for path in [leftover for root in self._search for leftover in self._leftovers(root)]:
            _kill_tree(path)
            _remove_tree(path)
            swept[path.name] = None
        return tuple(swept)

    def close(self) -> None:
        """Remove the agent's directories. Raises EnforcementError when groups are left."""
        for parent in (*self._twins, self._base):
            _remove_empty(parent)

    def _leftovers(self, root: Path) -> Iterator[Path]:
        pattern = re.compile(re.escape(_prefix(self._node_name)) + r"(\d+-\d+)")
        for directory, names, _ in os.walk(root):
            for name in list(names):
                match = pattern.fullmatch(name)
                life = Life.parse(match[1]) if match else None
                if life is not None:
                    names.remove(name)
                    if life.is_over:
                        yield Path(directory, name)

    def _statistics(self, group: Group) -> dict[str, int]:
        try:
            return _read_pairs(self._base / group.name / "memory.stat")
        except FileNotFoundError:
            return {}  # someone else removed it, which the kernel allows only when it is empty


def _prefix(node_name: str) -> str:
    return f"mass-{quote(node_name, safe='')}."


def _read_int(path: Path) -> int:
    return int(_read(path))


def _read_pairs(path: Path) -> dict[str, int]:
    lines = _read(path).splitlines()
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}


def _read(path: str | Path) -> str:
    # As the kernel gives it, without a file object: these files are read with every task.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while part := os.read(descriptor, READ_BYTES):
            text += part
        return text.decode("ascii")
    finally:
        os.close(descriptor)


def _write(path: Path, text: str) -> None:
    # One write of the whole value: the kernel takes each write as a complete command.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _tree(path: Path) -> Iterator[Path]:
    """Yield the group and the groups a task made below it, deepest first."""
    try:
        childless = os.stat(path).st_nlink == CHILDLESS_LINKS
    except FileNotFoundError:
        return
    if childless:  # nearly always: a walk would look at each of the group's files
        yield path
        return
    for directory, _, _ in os.walk(path, topdown=False):
        yield Path(directory)


def _processes(path: Path) -> set[int]:
    pids: set[int] = set()
    for directory in _tree(path):
        try:
            text = _read(directory / "cgroup.procs")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            continue  # removed while we walked: nobody was in it
        pids.update(int(pid) for pid in text.split())
    pids.discard(0)  # a process of another pid namespace, which nobody here can signal
    return pids


def _kill_tree(path: Path) -> None:
    """Kill everything below a leftover group, in whichever hierarchy it is."""
    deadline = time.monotonic() + SWEEP_SECONDS_MAX
    while True:
        for directory in _tree(path):
            state = directory / "freezer.state"
            if state.exists():
                _write(state, "THAWED")  # its agent may have died in the middle of a kill
        pids = _processes(path)
        if not pids:
            return
        if time.monotonic() > deadline:
            raise EnforcementError(
                f"leftover group {path} still holds processes {sorted(pids)[:10]} "
                f"{SWEEP_SECONDS_MAX:g} s after SIGKILL"
            )
        send_signal(pids, signal.SIGKILL)
        time.sleep(0.005)


def _remove_tree(path: Path) -> None:
    for directory in _tree(path):
        _remove_empty(directory)


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return  # gone already, as wanted
    except OSError as error:
        raise EnforcementError(f"cannot remove group {path}: {error.strerror}") from error
