"""Ways of enforcement: what each group is held to, and whom a sweep may touch."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import MIB, eater, is_running, why_no_cgroup1

from agent.cgroup1 import Cgroup1
from agent.enforce import Group, detect
from agent.group import EnforcementError, LimitRefused
from agent.hierarchy import Hierarchy, find_hierarchy, locate
from agent.proctree import Life, read_process, read_processes
from agent.watchdog import MARK, Watchdog

NODE = f"enforced-{os.getpid()}"
needs_cgroup1 = pytest.mark.skipif(bool(why_no_cgroup1()), reason=why_no_cgroup1() or "available")


@pytest.fixture
def cgroup1() -> Iterator[Cgroup1]:
    if why_no_cgroup1():
        pytest.skip(why_no_cgroup1())
    made = Cgroup1.probe(NODE)
    yield made
    made.close()


@pytest.fixture
def group(cgroup1: Cgroup1) -> Iterator[Group]:
    made = cgroup1.prepare()
    yield made
    wait_until_empty(cgroup1, made)
    cgroup1.remove(made)


def wait_until_empty(enforcement: Cgroup1 | Watchdog, group: Group) -> None:
    deadline = time.monotonic() + 20
    while enforcement.kill(group):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def directory(group: Group) -> Path:
    return Path(group.join_paths[0]).parent


def spawn_in(path: Path, *argv: str) -> subprocess.Popen[str]:
    """Start a program inside a group and return once it printed a line."""
    script = f'echo 0 > "{path}/cgroup.procs"; exec "$@"'
    child = subprocess.Popen(["sh", "-c", script, "sh", *argv], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline()
    return child


def read_limits(group: Group) -> list[int]:
    files = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    return [int((directory(group) / file).read_text()) for file in files]


def end(child: subprocess.Popen[str]) -> int:
    with child:
        child.kill()
    return child.returncode


@needs_cgroup1
def test_best_available_way_is_chosen_and_better_ones_are_explained() -> None:
    found = detect(NODE)
    found.enforcement.close()
    assert found.enforcement.name == "cgroup1"
    assert list(found.refused) == ["cgroup2"]
    assert found.enforcement.describe()["kernel_limit"] is True


def test_watchdog_is_chosen_where_groups_cannot_be_made(tmp_path: Path) -> None:
    found = detect(NODE, parent=tmp_path / "not-there")
    assert found.enforcement.name == "watchdog"
    assert list(found.refused) == ["cgroup2", "cgroup1", "scope"]
    assert "No such file or directory" in found.refused["cgroup1"] or why_no_cgroup1()
    assert found.enforcement.describe()["kernel_limit"] is False


def test_own_group_is_found_below_the_root_of_a_containers_mount() -> None:
    mountinfo = (
        "30 20 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "31 20 0:26 /docker/abc /sys/fs/cgroup/memory rw shared:7 - cgroup cgroup rw,memory\n"
    )
    memory = Path("/sys/fs/cgroup/memory")
    found = locate("memory", mountinfo, "3:memory:/docker/abc/inner\n1:cpu,cpuacct:/docker/abc\n")
    assert found == Hierarchy(memory, memory / "inner")
    assert locate("memory", mountinfo, "3:memory:/docker/abc\n") == Hierarchy(memory, memory)


def test_mount_over_another_one_is_the_one_that_is_seen() -> None:
    mountinfo = (
        "30 24 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
        "90 30 0:26 /node /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
    )
    found = locate("memory", mountinfo, "3:memory:/node/agent\n")
    memory = Path("/sys/fs/cgroup/memory")
    assert found == Hierarchy(memory, memory / "agent")


@pytest.mark.parametrize(
    ("mountinfo", "memberships", "message"),
    [
        ("30 2 0:25 / /cg rw - cgroup2 cgroup2 rw", "0::/a", "no cgroup v1 memory hierarchy"),
        ("30 2 0:25 / /cg rw - cgroup c rw,memory", "0::/a", "in no cgroup v1 memory group"),
        ("30 2 0:25 /d/a /cg rw - cgroup c rw,memory", "3:memory:/d/ab", "lies outside the mount"),
        ("30 2 0:25 / /cg rw - cgroup c rw,memory", "3:memory:/../b", "lies outside the mount"),
    ],
)
def test_unusable_hierarchy_is_refused_in_words(
    mountinfo: str, memberships: str, message: str
) -> None:
    with pytest.raises(EnforcementError, match=message):
        locate("memory", mountinfo, memberships)


def test_limit_is_raised_lowered_and_lifted(cgroup1: Cgroup1, group: Group) -> None:
    unlimited = read_limits(group)
    for limit_bytes in (64 * MIB, 128 * MIB, 32 * MIB):
        cgroup1.set_limit(group, limit_bytes)
        assert read_limits(group) == [limit_bytes, limit_bytes]
    cgroup1.set_limit(group, None)
    assert read_limits(group) == unlimited


def test_limit_below_what_is_used_is_refused_and_the_old_one_stays(
    cgroup1: Cgroup1, group: Group
) -> None:
    cgroup1.set_limit(group, 128 * MIB)
    child = spawn_in(directory(group), *eater(60, 100))
    with pytest.raises(LimitRefused, match=rf"uses 6\d{{7}} bytes.*lowered to {30 * MIB}"):
        cgroup1.set_limit(group, 30 * MIB)
    assert read_limits(group) == [128 * MIB, 128 * MIB]
    assert end(child) == -signal.SIGKILL


def test_groups_made_by_a_task_belong_to_it(cgroup1: Cgroup1) -> None:
    group = cgroup1.prepare()
    cgroup1.set_limit(group, 60 * MIB)
    inner = directory(group) / "inner" / "most"
    inner.mkdir(parents=True)
    child = spawn_in(inner, *eater(30, 100))
    assert cgroup1.usage(group) > 30 * MIB
    program, *rest = eater(100, 0)
    script = f'echo 0 > "{inner}/cgroup.procs"; exec "$0" "$@"'
    eaten = subprocess.run(["sh", "-c", script, program, *rest], check=False)
    assert eaten.returncode == -signal.SIGKILL
    assert cgroup1.oom_kills(group) > 0
    wait_until_empty(cgroup1, group)
    with child:
        assert child.wait(20) == -signal.SIGKILL
    cgroup1.remove(group)
    assert not directory(group).exists()


def test_group_that_is_not_empty_is_not_removed(cgroup1: Cgroup1, group: Group) -> None:
    child = spawn_in(directory(group), "sh", "-c", "echo up; exec sleep 1000")
    with pytest.raises(EnforcementError, match="cannot remove group"):
        cgroup1.remove(group)
    assert end(child) == -signal.SIGKILL


def test_tree_is_killed_without_a_freezer_too(cgroup1: Cgroup1) -> None:
    plain = Cgroup1(NODE, directory_of(cgroup1), None, [])
    assert plain.describe()["atomic_kill"] is False
    group = plain.prepare()
    assert len(group.join_paths) == 1
    child = spawn_in(directory(group), "sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait")
    assert plain.kill(group) == 3
    wait_until_empty(plain, group)
    with child:
        assert child.wait(20) == -signal.SIGKILL
    plain.remove(group)
    plain.close()


def directory_of(cgroup1: Cgroup1) -> Path:
    probe = cgroup1.prepare()
    cgroup1.remove(probe)
    return directory(probe).parent


def leftover(node_name: str, life: Life) -> tuple[Path, subprocess.Popen[str]]:
    """Make what a dead agent of that name would leave, with a process in it."""
    path = find_hierarchy("memory").own / f"mass-{node_name}.{life}"
    (path / "slot-1").mkdir(parents=True)
    return path, spawn_in(path / "slot-1", "sh", "-c", "echo up; exec sleep 1000")


@needs_cgroup1
def test_sweep_ends_only_ended_lives_of_its_own_name(cgroup1: Cgroup1) -> None:
    over = Life(4_194_304, 1)  # above the largest pid
    mine, ours = leftover(NODE, over)
    other, theirs = leftover(f"{NODE}.5-6", over)
    living, working = leftover(NODE, Life.mine().__class__(*init_identity()))
    try:
        assert cgroup1.sweep() == (mine.name,)
        with ours:
            assert ours.wait(20) == -signal.SIGKILL
        assert not mine.exists()
        assert theirs.poll() is None
        assert working.poll() is None
    finally:
        end(theirs)
        end(working)
        for path in (other, living):
            (path / "slot-1").rmdir()
            path.rmdir()


def init_identity() -> tuple[int, int]:
    """Return the identity of a process that lives on: our parent."""
    entry = read_process(os.getppid())
    assert entry is not None
    return entry.identity


@needs_cgroup1
def test_leftover_frozen_by_a_dying_agent_is_swept(cgroup1: Cgroup1) -> None:
    try:
        frozen = find_hierarchy("freezer").own / f"mass-{NODE}.4194304-1"
        frozen.mkdir()
    except (EnforcementError, OSError) as error:
        pytest.skip(f"no freezer: {error}")
    child = spawn_in(frozen, "sh", "-c", "echo up; exec sleep 1000")
    (frozen / "freezer.state").write_text("FROZEN")
    assert cgroup1.sweep() == (frozen.name,)
    with child:
        assert child.wait(20) == -signal.SIGKILL
    assert not frozen.exists()


def test_life_is_over_when_another_process_has_its_pid() -> None:
    mine = Life.mine()
    assert not mine.is_over
    assert Life(mine.pid, mine.start_ticks + 1).is_over
    assert Life.parse(str(mine)) == mine
    assert Life.parse("12-") is Life.parse("a-1") is Life.parse("") is None


def test_process_name_cannot_confuse_the_process_table(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "1000"]) as child:
        deadline = time.monotonic() + 20
        while "a) R 1" not in Path(f"/proc/{child.pid}/stat").read_text():
            assert time.monotonic() < deadline
        # Right after its exec it has its name already, and no memory yet.
        while (entry := read_processes()[child.pid]).rss_bytes == 0:
            assert time.monotonic() < deadline
        child.kill()
    assert entry.parent_pid == os.getpid()
    assert read_process(child.pid) is None


def test_watchdog_keeps_a_process_it_saw_however_it_detaches() -> None:
    watchdog = Watchdog(NODE)
    group = watchdog.prepare()
    # A fifo holds the daemon back until it has been looked at once in its father's tree.
    daemon = "echo $$; read go; exec setsid env -i sleep 1000"
    command = ["sh", "-c", f"exec 3<&0; sh -c '{daemon}' <&3 & wait"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as main:  # type: ignore[call-overload]
        pid = int(main.stdout.readline())
        watchdog.started(group, main.pid)
        watchdog.poll()
        assert watchdog.usage(group) > 0
        main.kill()
        main.wait()
        main.stdin.write("go\n")
        main.stdin.flush()
        wait_until_empty(watchdog, group)
        assert not is_running(pid)
    watchdog.remove(group)


@pytest.mark.parametrize("collected", [True, False])
def test_process_that_ends_during_a_look_is_not_over_a_limit(
    collected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = Watchdog(NODE)
    group = watchdog.prepare()
    watchdog.set_limit(group, 50 * MIB)
    with subprocess.Popen(eater(100, 1000), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        watchdog.started(group, child.pid)
        seen = read_processes()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        if collected:
            child.wait()
        monkeypatch.setattr("agent.watchdog.read_processes", lambda: seen)
        watchdog.poll()
    assert (watchdog.usage(group), watchdog.oom_kills(group)) == (0, 0)


def test_process_that_is_slow_to_die_is_killed_for_memory_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watchdog = Watchdog(NODE)
    group = watchdog.prepare()
    watchdog.set_limit(group, 50 * MIB)
    with subprocess.Popen(eater(100, 1000), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        watchdog.started(group, child.pid)
        monkeypatch.setattr("agent.watchdog.send_signal", lambda pids, number: len(list(pids)))
        watchdog.poll()
        watchdog.poll()
        child.kill()
    assert watchdog.oom_kills(group) == 1


def test_watchdog_sweeps_only_ended_lives_of_its_own_name() -> None:
    marks = {
        "ours": f"{NODE}:4194304-1:1",
        "other node": f"{NODE}:x:4194304-1:1",
        "living": f"{NODE}:{Life(*init_identity())}:1",
        "broken": "nonsense",
    }
    children = {
        name: subprocess.Popen(["sleep", "1000"], env={MARK: mark}) for name, mark in marks.items()
    }
    try:
        assert Watchdog(NODE).sweep() == (marks["ours"],)
        assert children["ours"].wait(20) == -signal.SIGKILL
        assert [name for name, child in children.items() if child.poll() is None] == [
            "other node",
            "living",
            "broken",
        ]
    finally:
        for child in children.values():
            with child:
                child.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_user_without_rights_gets_the_watchdog() -> None:
    code = (
        "import os; from agent.enforce import detect\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "found = detect('n'); print(found.enforcement.name, found.refused)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert ended.stdout.startswith("watchdog ")
    assert "cgroup1" in ended.stdout


def test_cpus_weigh_a_group_against_others(cgroup1: Cgroup1) -> None:
    if not cgroup1.describe()["cpu_shares"]:
        pytest.skip("no groups of the cpu controller can be made here")
    group = cgroup1.prepare()
    try:
        shares = Path(group.join_paths[-1]).parent / "cpu.shares"
        for cpus, expected in ((1.0, 1024), (2.5, 2560), (0.0001, 2), (4096.0, 262_144)):
            cgroup1.share_cpus(group, cpus)
            assert int(shares.read_text()) == expected
    finally:
        cgroup1.remove(group)
    assert not shares.exists()


def test_frozen_group_stands_still_and_goes_on(cgroup1: Cgroup1) -> None:
    group = cgroup1.prepare()
    try:
        state = next(p for p in group.join_paths if "freezer" in p)
        for paused, word in ((True, "FROZEN"), (True, "FROZEN"), (False, "THAWED")):
            cgroup1.freeze(group, paused)
            assert (Path(state).parent / "freezer.state").read_text().strip() == word
    finally:
        cgroup1.remove(group)
    cgroup1.freeze(group, True)  # one that is gone is no error


def test_system_call_that_was_refused_memory_is_known_though_nothing_stalls(
    cgroup1: Cgroup1, group: Group, tmp_path: Path
) -> None:
    cgroup1.set_capacity(96 * MIB)
    writer = (
        "import os, sys, tempfile\n"
        "block = bytearray(40 << 20)\n"
        "block[::4096] = b'x' * len(block[::4096])\n"
        "print('full', flush=True)\n"
        "sys.stdin.readline()\n"
        "with tempfile.TemporaryFile(dir='/dev/shm', buffering=0) as file:\n"
        "    try:\n"
        "        for _ in range(100): file.write(bytes(1 << 20))\n"
        "    except OSError as error: print(error.errno, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    script = f'echo 0 > "{directory(group)}/cgroup.procs"; exec "$@"'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", sys.executable, "-c", writer],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "full\n"
        assert cgroup1.node_memory().refused_at_ns is None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == f"{errno.ENOMEM}\n"
        memory = cgroup1.node_memory()
        assert not memory.stalled
        assert memory.refused_at_ns is not None
        end(child)
    wait_until_empty(cgroup1, group)
    last_ns = cgroup1.node_memory().refused_at_ns
    assert last_ns == cgroup1.node_memory().refused_at_ns  # remembered, and not told anew


def test_page_cache_at_the_end_of_the_capacity_refuses_nobody(
    cgroup1: Cgroup1, group: Group, tmp_path: Path
) -> None:
    cgroup1.set_capacity(64 * MIB)
    script = f'echo 0 > "{directory(group)}/cgroup.procs"; exec "$@"'
    wanted = ["dd", "if=/dev/zero", f"of={tmp_path}/cached", "bs=1M", "count=100"]
    subprocess.run(["sh", "-c", script, "sh", *wanted], check=True, stderr=subprocess.DEVNULL)
    highest = directory(group).parent / "memory.max_usage_in_bytes"
    assert int(highest.read_text()) >= 63 * MIB
    assert cgroup1.node_memory().refused_at_ns is None
