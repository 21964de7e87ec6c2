"""Enforcement in tests: each way that works here, programs in its groups, dead lives."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.processes import MIB, WAIT_SECONDS_MAX

from agent.cgroup1 import Cgroup1
from agent.cgroup2 import Cgroup2
from agent.cgroupfs import name_prefix, read_pairs
from agent.enforce import Enforcement, Group
from agent.group import EnforcementError
from agent.hierarchy import UNIFIED, find_hierarchy
from agent.proctree import Life
from agent.watchdog import Watchdog

NODE = f"held-{os.getpid()}"
DEAD = Life(4_194_304, 1)  # above the largest pid
WAYS = {way.name: way for way in (Cgroup2, Cgroup1, Watchdog)}

HOLDER = Path(__file__).with_name("holder.c")


@functools.cache
def holder_path() -> str:
    """Return the compiled program that holds memory; its source says how.

    Compiling takes ten seconds in the virtual machine, which is therefore told where it is.
    """
    if told := os.environ.get("MASS_TEST_HOLDER"):
        return told
    made = tempfile.mkdtemp(prefix="mass-holder-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    path = os.path.join(made, "holder")
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", path, str(HOLDER)], check=True)
    return path


@functools.cache
def why_not(way: str) -> str:
    """Return why this machine cannot enforce that way, empty when it can."""
    if way == Watchdog.name:
        return ""
    try:
        make(way, f"probe-{os.getpid()}").close()
    except EnforcementError as error:
        return str(error)
    return ""


def kernel_way() -> str:
    """Return the way in which the kernel can hold tasks here, as an agent would choose it; or none.

    With cgroup v2 this process may move into a leaf of its group, as an agent does.
    """
    return next((way for way in (Cgroup2.name, Cgroup1.name) if not why_not(way)), "")


def why_no_groups() -> str:
    """Return why the kernel cannot hold tasks here, empty when it can."""
    return "" if kernel_way() else f"no memory groups: {why_not('cgroup2')}; {why_not('cgroup1')}"


@dataclass(frozen=True, slots=True)
class Container:
    """A group with a limit to run an agent in, and one inside it for programs that are no tasks."""

    agent: Path
    others: Path


@contextlib.contextmanager
def container(limit_mib: int) -> Iterator[Container]:
    """Give a group of that limit, as a container is one."""
    way = kernel_way()
    with outer_group(way, limit_mib) as outer:
        # With v2 a group has members or groups with limits below it, not both.
        others = outer / "others" if way == Cgroup2.name else outer
        others.mkdir(exist_ok=True)
        yield Container(outer, others)
        for inner in outer.glob("*/"):
            inner.rmdir()


def make(way: str, node_name: str = NODE, parent: Path | None = None) -> Enforcement:
    """Return the way of that name. Raises EnforcementError."""
    if way == Cgroup2.name:
        return Cgroup2.probe(node_name, parent)
    if way == Cgroup1.name:
        return Cgroup1.probe(node_name, parent)
    return Watchdog(node_name)


def directory(group: Group) -> Path:
    """Return the directory of a group of the kernel that holds it to its memory."""
    return Path(group.join_paths[0]).parent


def node_kill_count(group: Group) -> int:
    """Return how many processes the kernel killed for the memory of the node's own group."""
    node = directory(group).parent
    if (node / "memory.events.local").exists():
        return read_pairs(node / "memory.events.local")["oom"]
    return read_pairs(node / "memory.oom_control")["oom_kill"]


class Program:
    """One holder of memory inside a group."""

    def __init__(self, enforcement: Enforcement, group: Group) -> None:
        """Start it and return once it is up."""
        self._enforcement = enforcement
        joins = "".join(f"echo 0 > '{path}'; " for path in group.join_paths)
        self.process = subprocess.Popen(
            ["sh", "-c", f'{joins}exec "$0"', holder_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **dict(group.variables)},
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.answers = b""
        until(lambda: self.answered("up"), enforcement)
        enforcement.started(group, self.process.pid)

    def ask(self, size_mib: int) -> None:
        """Have it take more; `answered` tells when it has."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"%d\n" % size_mib)
        self.process.stdin.flush()

    def answered(self, word: str | int) -> bool:
        """Tell whether it has said the word."""
        assert self.process.stdout is not None
        self.answers += self.process.stdout.read() or b""
        return str(word).encode() in self.answers.split()

    def grow(self, size_mib: int) -> None:
        """Have it take more and return when it has."""
        self.ask(size_mib)
        until(lambda: self.answered(size_mib), self._enforcement)

    @property
    def runs(self) -> bool:
        """Tell whether it has not ended."""
        return self.process.poll() is None

    def end(self) -> None:
        """Kill it where it still runs, and collect it."""
        self.process.kill()
        self.process.wait(WAIT_SECONDS_MAX)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def until(condition: Callable[[], bool], enforcement: Enforcement) -> None:
    """Look as an agent does until the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        enforcement.poll()
        enforcement.node_memory()
        time.sleep(0.005)


def empty(enforcement: Enforcement, group: Group) -> None:
    """Kill what is in the group and return when nothing is."""
    until(lambda: enforcement.kill(group) == 0, enforcement)


@contextlib.contextmanager
def programs(enforcement: Enforcement, *groups: Group) -> Iterator[list[Program]]:
    """Give one program in each of the groups; in the end all are gone and the groups removed."""
    started: list[Program] = []
    try:
        for group in groups:
            started.append(Program(enforcement, group))
        yield started
    finally:
        enforcement.set_capacity(None)
        for group in set(groups):
            empty(enforcement, group)
            enforcement.remove(group)
        for program in started:
            program.end()


@contextlib.contextmanager
def outer_group(way: str, limit_mib: int) -> Iterator[Path]:
    """Give a group of that limit to make the node's below, as a container is one."""
    version = 2 if way == Cgroup2.name else 1
    above = find_hierarchy(UNIFIED if version == 2 else "memory").own
    path = above / f"outer-{os.getpid()}"
    path.mkdir()
    try:
        if version == 2:
            (path / "memory.swap.max").write_text("0")
        names = ("memory.max",) if version == 2 else LIMITS1
        for name in names:
            (path / name).write_text(str(limit_mib * MIB))
        yield path
    finally:
        path.rmdir()


LIMITS1 = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")


def dead_life(way: str) -> Enforcement:
    """Return enforcement over the directory of a life that has ended, to leave something in."""
    name = f"{name_prefix(NODE)}{DEAD}"
    if way == Cgroup2.name:
        hierarchy = find_hierarchy(UNIFIED)
        base = hierarchy.own / name
        base.mkdir()
        (base / "cgroup.subtree_control").write_text("+memory")
        return Cgroup2(NODE, base, hierarchy.mount)
    base, freezer = (find_hierarchy(each).own / name for each in ("memory", "freezer"))
    base.mkdir()
    freezer.mkdir()
    return Cgroup1(NODE, base, freezer, [])
