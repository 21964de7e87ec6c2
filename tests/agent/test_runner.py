"""The runner with real processes, once by cgroup v1 and once by the watchdog."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.processes import (
    MIB,
    eater,
    is_running,
    launch,
    launcher_path,
    until,
    why_no_cgroup1,
)

from agent.cgroup1 import Cgroup1
from agent.enforce import Enforcement
from agent.group import Group, NodeMemory
from agent.guard import NodeView, Step, StepKind
from agent.guarding import Guarding
from agent.memory import MemoryReading
from agent.runner import Exit, Launch, Runner, StartError
from agent.running import Running
from agent.watchdog import Watchdog
from allocator.launch_request import StepFailed
from allocator.launcher import LauncherPool

# A child in a session of its own, with an emptied environment, that ignores SIGTERM and whose
# parent ends at once; it prints its pid. What a daemon does.
DETACHED = (
    "trap '' TERM; "
    "setsid env -i /bin/sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.2; done' & "
)


def make_enforcement(kind: str, node_name: str) -> Enforcement:
    if kind == "watchdog":
        return Watchdog(node_name)
    if why_no_cgroup1():
        pytest.skip(why_no_cgroup1())
    return Cgroup1.probe(node_name)


@pytest.fixture(params=["cgroup1", "watchdog"])
def enforcement(request: pytest.FixtureRequest) -> Iterator[Enforcement]:
    made = make_enforcement(request.param, f"test-{os.getpid()}")
    yield made
    made.close()


@pytest.fixture
def cgroup1() -> Iterator[Enforcement]:
    made = make_enforcement("cgroup1", f"test-{os.getpid()}")
    yield made
    made.close()


class Node:
    """A runner and the ends it reported."""

    def __init__(self, enforcement: Enforcement, parked: int = 1) -> None:
        self.exits: dict[tuple[int, int], Exit] = {}
        self.runner = Runner(
            enforcement, parked=parked, on_exit=self._exited, launcher_path=launcher_path()
        )

    def _exited(self, ended: Exit) -> None:
        assert ended.key not in self.exits, "an end is reported once"
        assert ended.key not in self.runner.running(), "what is reported has ended"
        self.exits[ended.key] = ended

    async def run(self, wanted: Launch) -> Exit:
        """Start an attempt and wait for its end."""
        await self.runner.start(wanted)
        return await self.ended(wanted)

    async def ended(self, wanted: Launch) -> Exit:
        await until(lambda: wanted.key in self.exits)
        return self.exits[wanted.key]


@asynccontextmanager
async def opened(enforcement: Enforcement, parked: int = 1) -> AsyncIterator[Node]:
    node = Node(enforcement, parked)
    await node.runner.open()
    try:
        yield node
    finally:
        await node.runner.close()


def pids_printed(wanted: Launch) -> list[int]:
    path = Path(wanted.stdout_path)
    return [int(word) for word in path.read_text().split()] if path.exists() else []


async def test_exit_says_how_and_when_the_attempt_ended(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    before_ns = time.time_ns()
    async with opened(enforcement) as node:
        ended = await node.run(launch(tmp_path, 1, "sh", "-c", "exit 7", limit_bytes=64 * MIB))
    assert (ended.key, ended.exit_code, ended.signal) == ((1, 1), 7, None)
    assert before_ns < ended.started_at_ns < ended.ended_at_ns < time.time_ns()
    assert (ended.oom_kill_count, ended.memory_limit_bytes) == (0, 64 * MIB)


async def test_attempt_outgrowing_its_limit_is_killed_for_memory(
    cgroup1: Enforcement, tmp_path: Path
) -> None:
    async with opened(cgroup1) as node:
        ended = await node.run(launch(tmp_path, 1, *eater(400, 0), limit_bytes=200 * MIB))
    assert (ended.exit_code, ended.signal) == (None, signal.SIGKILL)
    assert ended.oom_kill_count > 0
    assert ended.memory_peak_bytes == 200 * MIB


class LateWatchdog(Watchdog):
    """Looks only once the task has printed something, and counts its looks."""

    def __init__(self, stdout_path: str) -> None:
        super().__init__("watched")
        self._stdout = Path(stdout_path)
        self.looks = 0

    def poll(self) -> None:
        if self._stdout.exists() and self._stdout.stat().st_size:
            super().poll()
            self.looks += 1


async def test_watchdog_kills_an_attempt_over_its_limit_for_memory(tmp_path: Path) -> None:
    wanted = launch(tmp_path, 1, *eater(100, 100), limit_bytes=50 * MIB)
    async with opened(LateWatchdog(wanted.stdout_path)) as node:
        ended = await node.run(wanted)
    assert (ended.signal, ended.oom_kill_count) == (signal.SIGKILL, 1)
    assert 100 * MIB < ended.memory_peak_bytes < 130 * MIB


async def test_watchdog_counts_memory_shared_by_a_tree_once(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "block = bytearray(60 << 20)\n"
        "block[::4096] = b'x' * len(block[::4096])\n"
        "def stay():\n"
        "    while not os.path.exists('go'): time.sleep(0.01)\n"
        "[os.fork() or stay() or os._exit(0) for _ in range(3)]\n"
        "print('up', flush=True)\n"
        "stay()\n"
    )
    wanted = launch(tmp_path, 1, sys.executable, "-c", code, limit_bytes=150 * MIB)
    watchdog = LateWatchdog(wanted.stdout_path)
    async with opened(watchdog) as node:
        await node.runner.start(wanted)
        await until(lambda: watchdog.looks == 2)
        (tmp_path / "go").touch()
        ended = await node.ended(wanted)
    assert (ended.exit_code, ended.oom_kill_count) == (0, 0)
    assert 60 * MIB < ended.memory_peak_bytes < 150 * MIB


async def test_attempt_that_kills_itself_was_not_killed_for_memory(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    async with opened(enforcement) as node:
        ended = await node.run(launch(tmp_path, 1, "sh", "-c", "kill -9 $$", limit_bytes=MIB * 64))
    assert (ended.signal, ended.oom_kill_count) == (signal.SIGKILL, 0)


async def test_child_killed_for_memory_is_told_although_the_shell_exits_0(
    cgroup1: Enforcement, tmp_path: Path
) -> None:
    program, *rest = eater(400, 0)
    script = '"$0" "$@"; exit 0'
    async with opened(cgroup1) as node:
        wanted = launch(tmp_path, 1, "sh", "-c", script, program, *rest, limit_bytes=64 * MIB)
        ended = await node.run(wanted)
    assert ended.exit_code == 0
    assert ended.oom_kill_count > 0


async def test_reading_a_large_file_is_not_counted_as_memory_used(
    cgroup1: Enforcement, tmp_path: Path
) -> None:
    script = "dd if=/dev/zero of=big bs=1M count=200 2>/dev/null; cat big > /dev/null"
    async with opened(cgroup1) as node:
        ended = await node.run(launch(tmp_path, 1, "sh", "-c", script, limit_bytes=100 * MIB))
    assert (ended.exit_code, ended.oom_kill_count) == (0, 0)
    assert ended.memory_peak_bytes < 20 * MIB


async def test_usage_is_the_memory_of_the_whole_tree(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    program, *rest = eater(40, 100)
    script = '"$0" "$@" & "$0" "$@" & wait'
    async with opened(enforcement) as node:
        wanted = launch(tmp_path, 1, "sh", "-c", script, program, *rest)
        await node.runner.start(wanted)
        await until(lambda: node.runner.usage()[wanted.key] > 80 * MIB)
        assert node.runner.usage()[wanted.key] < 130 * MIB
        assert node.runner.running() == {wanted.key}
    assert node.exits[wanted.key].memory_peak_bytes > 80 * MIB


async def test_kill_ends_grandchildren_that_detached_and_ignore_sigterm(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    async with opened(enforcement) as node:
        wanted = launch(tmp_path, 1, "sh", "-c", DETACHED * 3 + "while :; do sleep 0.2; done")
        main_pid = await node.runner.start(wanted)
        await until(lambda: len(pids_printed(wanted)) == 3)
        node.runner.terminate(wanted.key)
        pids = [main_pid, *pids_printed(wanted)]
        assert all(is_running(pid) for pid in pids)
        node.runner.kill(wanted.key)
        ended = await node.ended(wanted)
        assert not any(is_running(pid) for pid in pids)
    assert (ended.signal, ended.oom_kill_count) == (signal.SIGKILL, 0)


async def test_fork_bomb_is_wholly_gone_after_a_kill(cgroup1: Enforcement, tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "for generation in range(60):\n"
        "    if os.fork() == 0: os.setsid()\n"
        "    time.sleep(0.02)\n"
    )
    async with opened(cgroup1) as node:
        wanted = launch(tmp_path, 1, sys.executable, "-c", code, limit_bytes=600 * MIB)
        await node.runner.start(wanted)
        procs = next(Path("/sys/fs/cgroup/memory").rglob(f"mass-test-{os.getpid()}.*/slot-1"))
        await until(lambda: len((procs / "cgroup.procs").read_text().split()) > 50)
        node.runner.kill(wanted.key)
        await node.ended(wanted)
        assert not procs.exists()


async def test_stragglers_are_killed_before_the_end_is_reported(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    async with opened(enforcement) as node:
        # It lives long enough to be seen by one look of the watchdog.
        wanted = launch(tmp_path, 1, "sh", "-c", DETACHED + "sleep 0.6; exit 3")
        ended = await node.run(wanted)
        (straggler,) = pids_printed(wanted)
        assert not is_running(straggler)
    assert ended.exit_code == 3


async def test_marked_straggler_is_found_without_any_look(tmp_path: Path) -> None:
    script = "setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.05"
    async with opened(Watchdog("watched")) as node:
        wanted = launch(tmp_path, 1, "sh", "-c", script)
        await node.run(wanted)
        (straggler,) = pids_printed(wanted)
        assert not is_running(straggler)


async def test_terminate_reaches_every_process_even_a_stopped_one(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    script = (
        "trap 'echo main' TERM; "
        "sh -c 'trap \"echo child; exit\" TERM; kill -STOP $$; while :; do sleep 0.05; done' & "
        "echo up; while kill -0 $! 2>/dev/null; do sleep 0.05; done; exit 5"
    )
    async with opened(enforcement) as node:
        wanted = launch(tmp_path, 1, "sh", "-c", script)
        pid = await node.runner.start(wanted)
        children = Path(f"/proc/{pid}/task/{pid}/children")

        def child_is_stopped() -> bool:
            pids = children.read_text().split()
            states = [Path(f"/proc/{child}/stat").read_text().split()[2] for child in pids]
            return "T" in states

        await until(child_is_stopped)
        node.runner.terminate(wanted.key)
        ended = await node.ended(wanted)
    assert ended.exit_code == 5
    assert Path(wanted.stdout_path).read_text().split() in (
        ["up", "child", "main"],
        ["up", "main", "child"],
    )


async def test_unknown_attempts_are_neither_terminated_nor_killed(
    enforcement: Enforcement,
) -> None:
    async with opened(enforcement) as node:
        node.runner.terminate((1, 1))
        node.runner.kill((1, 1))
        assert node.runner.running() == frozenset()
        assert node.runner.usage() == {}


@pytest.mark.parametrize(
    ("change", "step", "message"),
    [
        ({"argv": ("/no/such",)}, "exec", "exec /no/such: No such file or directory"),
        ({"argv": ()}, "request", "the command is empty"),
        ({"working_directory": "/no"}, "chdir", "chdir /no: No such file or directory"),
        ({"stdout_path": "/dev/null/x/y"}, "stdout", "stdout /dev/null/x/y: Not a directory"),
        ({"memory_limit_bytes": -5}, "limit", "memory limit -5 bytes: at least 1 is needed"),
    ],
)
async def test_start_error_names_what_failed_and_leaves_nothing(
    enforcement: Enforcement,
    tmp_path: Path,
    change: dict[str, object],
    step: str,
    message: str,
) -> None:
    async with opened(enforcement) as node:
        with pytest.raises(StartError, match=re.escape(message)) as caught:
            await node.runner.start(replace(launch(tmp_path, 1, "true"), **change))  # type: ignore[arg-type]
        assert caught.value.step == step
        assert node.runner.running() == frozenset()
    assert node.exits == {}


@pytest.mark.parametrize(
    ("code", "stalled", "lacked_memory"),
    [
        (errno.ENOMEM, False, True),
        (errno.ENOBUFS, False, True),
        (errno.ETIMEDOUT, True, True),
        (errno.ETIMEDOUT, False, False),
        (errno.ENOENT, True, False),
    ],
)
async def test_start_error_tells_whether_the_node_lacked_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    stalled: bool,
    lacked_memory: bool,
) -> None:
    async def fail(*_: object) -> None:
        raise StepFailed("exec", code, "true")

    node = Node(Watchdog("nobody"))
    monkeypatch.setattr(LauncherPool, "start", fail)
    monkeypatch.setattr(Running, "node_memory", lambda _: NodeMemory(1, 1, stalled))
    with pytest.raises(StartError, match="exec true: ") as caught:
        await node.runner.start(launch(tmp_path, 1, "true"))
    assert (caught.value.errno, caught.value.lacked_memory) == (code, lacked_memory)


async def test_pipe_without_a_reader_holds_its_own_attempt_only(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with opened(enforcement) as node:
        waiting = replace(launch(tmp_path, 1, "echo", "hello"), stdout_path=str(pipe))
        starting = asyncio.create_task(node.runner.start(waiting))
        for task_id in (2, 3):
            assert (await node.run(launch(tmp_path, task_id, "true"))).exit_code == 0
        assert not starting.done()
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        await starting
        assert (await node.ended(waiting)).exit_code == 0
        assert os.read(reader, 100) == b"hello\n"
        os.close(reader)


async def test_directories_of_outputs_are_made_by_the_attempt_itself(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    deep = tmp_path / "a" / "b" / "out"
    async with opened(enforcement) as node:
        wanted = replace(launch(tmp_path, 1, "echo", "hello"), stdout_path=str(deep))
        assert (await node.run(wanted)).exit_code == 0
    assert deep.read_text() == "hello\n"


async def test_attempt_that_runs_is_not_started_again(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    async with opened(enforcement) as node:
        wanted = launch(tmp_path, 1, "sleep", "1000")
        await node.runner.start(wanted)
        with pytest.raises(StartError, match="task 1 attempt 1 is already running here"):
            await node.runner.start(wanted)
        assert node.runner.running() == {wanted.key}


async def test_close_kills_and_reports_everything(enforcement: Enforcement, tmp_path: Path) -> None:
    async with opened(enforcement, parked=2) as node:
        for task_id in range(1, 6):
            await node.runner.start(launch(tmp_path, task_id, "sleep", "1000"))
    assert {key[0] for key in node.exits} == {1, 2, 3, 4, 5}
    assert {ended.signal for ended in node.exits.values()} == {signal.SIGKILL}
    with pytest.raises(StartError, match="closing"):
        await node.runner.start(launch(tmp_path, 6, "true"))


@pytest.mark.parametrize("kind", ["cgroup1", "watchdog"])
async def test_leftovers_of_a_killed_agent_are_swept(kind: str, tmp_path: Path) -> None:
    node_name = f"fallen-{os.getpid()}"
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "sys.path[:0] = sys.argv[4:]\n"
        "import test_runner as t\n"
        "async def main():\n"
        "    node = t.Node(t.make_enforcement(sys.argv[1], sys.argv[2]))\n"
        "    await node.runner.open()\n"
        "    script = 'setsid sleep 1000 & echo $!; wait'\n"
        "    wanted = t.launch(Path(sys.argv[3]), 1, 'sh', '-c', script)\n"
        "    await node.runner.start(wanted)\n"
        "    await t.until(lambda: len(t.pids_printed(wanted)) == 1)\n"
        "    print(*t.pids_printed(wanted), flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    make_enforcement(kind, node_name).close()
    here = Path(__file__).resolve()
    folders = [str(here.parent), str(here.parents[1]), str(here.parents[2])]
    command = [sys.executable, "-c", code, kind, node_name, str(tmp_path), *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        grandchild = int(agent.stdout.readline())
        other = make_enforcement(kind, node_name)
        assert other.sweep() == (), "a living agent's tasks are not leftovers"
        agent.kill()
    assert is_running(grandchild), "it does not die by itself, or this test shows nothing"
    async with opened(other) as node:
        await until(lambda: not is_running(grandchild))
        wanted = launch(tmp_path, 2, "true")
        assert (await node.run(wanted)).exit_code == 0
    # Not by glob, which fails when other tests remove their groups while it looks.
    names = (name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    assert not [name for name in names if name.startswith(f"mass-{node_name}.")]


async def test_start_on_a_parked_launcher_takes_milliseconds(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    async with opened(enforcement, parked=2) as node:
        took: list[float] = []
        for task_id in range(1, 16):
            await until(lambda: node.runner._pool.parked_count == 2)
            wanted = launch(tmp_path, task_id, "true", limit_bytes=64 * MIB)
            began = time.perf_counter()
            await node.runner.start(wanted)
            took.append(time.perf_counter() - began)
            await node.ended(wanted)
    # 2 ms is the aim on a quiet machine; joining a group on this path would show as 15.
    assert sorted(took)[len(took) // 2] < 0.008


async def test_end_is_told_though_its_group_cannot_be_read_at_first(
    enforcement: Enforcement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.runner.FINISH_PAUSE_SECONDS", 0.01)
    read, refusals = enforcement.oom_kills, [OSError(errno.EMFILE, "Too many open files")]

    def oom_kills(group: Group) -> int:
        if refusals:
            raise refusals.pop()
        return read(group)

    monkeypatch.setattr(enforcement, "oom_kills", oom_kills)
    async with opened(enforcement) as node:
        ended = await node.run(launch(tmp_path, 1, "sh", "-c", "exit 7"))
    assert (ended.exit_code, refusals) == (7, [])


async def test_group_that_cannot_be_reached_once_is_ended_nevertheless(
    enforcement: Enforcement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.runner.FINISH_PAUSE_SECONDS", 0.01)
    kill, refusals = enforcement.kill, 2

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    def kill_later(group: Group) -> int:
        nonlocal refusals
        refusals -= 1
        return refuse() if refusals >= 0 else kill(group)

    monkeypatch.setattr(enforcement, "signal", refuse)
    monkeypatch.setattr(enforcement, "freeze", refuse)
    async with opened(enforcement) as node:
        wanted = launch(tmp_path, 1, "sleep", "60")
        await node.runner.start(wanted)
        node.runner.terminate(wanted.key)
        node.runner.freeze(wanted.key, True)
        if enforcement.name == "cgroup1":  # the watchdog's kill is a signal, too
            monkeypatch.setattr(enforcement, "kill", kill_later)
        else:
            monkeypatch.undo()
        node.runner.kill(wanted.key)
        ended = await node.ended(wanted)
    assert ended.signal == signal.SIGKILL


class AtRandom:
    """A guard that freezes, thaws, asks and kills whomever it sees, at each look something else."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.steps = 0

    def look(self, view: NodeView) -> tuple[Step, ...]:
        kinds = (StepKind.FREEZE, StepKind.FREEZE, StepKind.THAW, StepKind.ASK, StepKind.KILL)
        victims = [task for task in view.tasks if self.chance.random() < 0.5]
        self.steps += len(victims)
        return tuple(
            Step(self.chance.choice(kinds), task.key, 0, 1, 0.0, None, None, 0, "by chance")
            for task in victims
        )

    def next_look_ns(self, view: NodeView) -> int:
        return 10_000_000


async def test_a_guard_at_random_beside_a_busy_runner_leaves_every_attempt_one_end(
    enforcement: Enforcement, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = AtRandom(1)
    reading = MemoryReading(16 << 30, 8 << 30, 0, 0)
    wanted = [
        launch(tmp_path, task_id, "sh", "-c", "sleep 0.1 & sleep 0.05; wait")
        for task_id in range(1, 41)
    ]
    async with opened(enforcement, parked=4) as node:
        attempts = node.runner.attempts
        guarding = Guarding(guard, attempts, lambda: reading, lambda step: None)
        guarding.start()
        try:
            for one in wanted:
                await node.runner.start(one)
                node.runner.usage()
                node.runner.freeze(one.key, bool(guard.chance.getrandbits(1)))
            # Nobody is left frozen but at the user's word, and the guard kills those some time.
            await until(lambda: len(node.exits) == len(wanted))
        finally:
            guarding.stop()
        assert attempts.known() == ()
    assert guard.steps > len(wanted) // 2
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == []
