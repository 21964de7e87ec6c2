"""The launcher: what a parked process becomes, and every way that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.processes import SOURCE, is_running, launcher_path, until

from allocator.children import ExitStatus
from allocator.launch_request import (
    REQUEST_MAGIC,
    LauncherDied,
    LauncherMissing,
    Request,
    RequestRefused,
    StepFailed,
)
from allocator.launcher import ForkServer, LauncherPool, ParkedLauncher

# Prints what a task finds itself to be.
PORTRAIT = """
import json, os, resource, signal, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "arguments": sys.argv[1:], "environment": dict(os.environ), "directory": os.getcwd(),
    "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "stdin": os.readlink("/proc/self/fd/0"), "blocked": int(status["SigBlk"], 16),
    "ignored": int(status["SigIgn"], 16), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "oom_score_adj": int(open("/proc/self/oom_score_adj").read()),
}))
"""
# Python itself ignores these, in the task too.
PYTHON_IGNORES = (1 << (signal.SIGPIPE - 1)) | (1 << (signal.SIGXFSZ - 1))


@dataclass(frozen=True, slots=True)
class Nowhere:
    """A place that needs no joining."""

    join_paths: tuple[str, ...] = ()


class Places:
    """Hands out places and remembers what came back."""

    def __init__(self) -> None:
        self.discarded_count = 0

    def discard(self, place: Nowhere) -> None:
        self.discarded_count += 1

    def pool(self, parked: int = 1, executable: str | None = None) -> LauncherPool[Nowhere]:
        executable = executable or launcher_path()
        return LauncherPool(Nowhere, self.discard, parked=parked, executable=executable)


@pytest.fixture
def request_true(tmp_path: Path) -> Request:
    return Request(
        argv=("true",),
        environment={"PATH": "/usr/bin:/bin"},
        working_directory=str(tmp_path),
        stdout_path=str(tmp_path / "out"),
        stderr_path=str(tmp_path / "err"),
    )


async def run(pool: LauncherPool[Nowhere], request: Request) -> ExitStatus:
    """Start the request and wait for its end."""
    process, _ = await pool.start(lambda _: request)
    ended = asyncio.Event()
    process.on_end(ended.set)
    await asyncio.wait_for(ended.wait(), 20)
    return process.collect()


async def run_once(request: Request) -> ExitStatus:
    pool = Places().pool()
    await pool.open()
    try:
        return await run(pool, request)
    finally:
        await pool.close()


async def test_task_is_what_was_asked_and_inherits_nothing(
    request_true: Request, tmp_path: Path
) -> None:
    # An agent's worst inheritance: an ignored and a blocked signal, an open inheritable file.
    inheritable = os.dup(2)
    os.set_inheritable(inheritable, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        request = replace(
            request_true,
            argv=(sys.executable, "-c", PORTRAIT, "one", "", "drei ü"),
            environment={"PATH": "/nowhere", "NAME": "a=b\nc"},
            rlimits=((resource.RLIMIT_NOFILE, 100, 200),),
        )
        assert await run_once(request) == ExitStatus(0, None)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.close(inheritable)
    portrait = json.loads((tmp_path / "out").read_text())
    ignored = portrait.pop("ignored")
    environment = portrait.pop("environment")
    environment.pop("LC_CTYPE", None)  # Python's own doing
    assert environment == {"PATH": "/nowhere", "NAME": "a=b\nc"}
    assert ignored & ~PYTHON_IGNORES == 0, hex(ignored)
    assert portrait == {
        "arguments": ["one", "", "drei ü"],
        "directory": str(tmp_path),
        "session": True,
        "group": True,
        "descriptors": [0, 1, 2],
        "stdin": "/dev/null",
        "blocked": 0,
        "files": [100, 200],
        "oom_score_adj": max(0, int(Path("/proc/self/oom_score_adj").read_text())),
    }


async def test_sigpipe_ends_a_task_as_in_any_shell(request_true: Request) -> None:
    request = replace(request_true, argv=("sh", "-c", "kill -PIPE $$"))
    assert await run_once(request) == ExitStatus(None, signal.SIGPIPE)


def may_lower_oom_score() -> bool:
    code = "from pathlib import Path; Path('/proc/self/oom_score_adj').write_text('-500')"
    ended = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL)
    return ended.returncode == 0


@pytest.mark.skipif(not may_lower_oom_score(), reason="this user may not lower its oom score")
def test_task_of_a_protected_agent_has_the_normal_oom_score(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "Path('/proc/self/oom_score_adj').write_text('-500')\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "import test_launcher as t\n"
        "r = t.Request(('cat', '/proc/self/oom_score_adj'), {}, '/', *[sys.argv[1] + '/out'] * 2)\n"
        "asyncio.run(t.run_once(r))\n"
    )
    here = Path(__file__).resolve()
    folders = [str(here.parent), str(here.parents[1]), str(here.parents[2])]
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *folders], check=True)
    assert (tmp_path / "out").read_text() == "0\n"


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", ExitStatus(0, None)),
        ("exit 7", ExitStatus(7, None)),
        ("exit 137", ExitStatus(137, None)),
        ("kill -9 $$", ExitStatus(None, signal.SIGKILL)),
        ("kill -TERM $$", ExitStatus(None, signal.SIGTERM)),
    ],
)
async def test_exit_code_and_signal_are_told_apart(
    request_true: Request, script: str, status: ExitStatus
) -> None:
    assert await run_once(replace(request_true, argv=("sh", "-c", script))) == status


async def test_same_output_path_twice_is_one_file_in_the_order_written(
    request_true: Request, tmp_path: Path
) -> None:
    path = str(tmp_path / "both")
    argv = ("sh", "-c", "echo one; echo two >&2; echo three")
    await run_once(replace(request_true, argv=argv, stdout_path=path, stderr_path=path))
    assert Path(path).read_text() == "one\ntwo\nthree\n"


async def test_output_is_appended_to_what_is_there(request_true: Request, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before\n")
    await run_once(replace(request_true, argv=("echo", "after")))
    assert (tmp_path / "out").read_text() == "before\nafter\n"


@pytest.mark.parametrize(
    ("change", "step", "message"),
    [
        ({"argv": ("/no/such",)}, "exec", "exec /no/such: No such file or directory"),
        ({"argv": ("no-such",)}, "exec", "exec no-such: No such file or directory"),
        ({"argv": ("/etc/passwd",)}, "exec", "exec /etc/passwd: Permission denied"),
        ({"working_directory": "/no"}, "chdir", "chdir /no: No such file or directory"),
        (
            {"stdout_path": "/proc/no/out"},
            "stdout",
            "stdout /proc/no/out: No such file or directory",
        ),
        ({"stderr_path": "/"}, "stderr", "stderr /: Is a directory"),
        ({"rlimits": ((7, 9, 3),)}, "rlimit", "rlimit: Invalid argument"),
        ({"argv": ("true", "x" * 200_000)}, "exec", "exec true: Argument list too long"),
    ],
)
async def test_failed_step_is_named_with_its_thing_and_reason(
    request_true: Request, change: dict[str, object], step: str, message: str
) -> None:
    with pytest.raises(StepFailed) as caught:
        await run_once(replace(request_true, **change))  # type: ignore[arg-type]
    assert (caught.value.step, str(caught.value)) == (step, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"argv": ()}, "the command is empty"),
        ({"argv": ("a\0b",)}, "contains a NUL byte"),
        ({"environment": {"A=B": "c"}}, "'A=B' is empty or contains '='"),
        ({"argv": ("true",) * 70_000}, "70001 arguments and variables, at most 65536"),
        ({"environment": {"A": "x" * 2_200_000}}, "at most 2097152 are allowed"),
        ({"rlimits": ((7, 1, 1),) * 17}, "17 rlimits, at most 16"),
    ],
)
async def test_request_beyond_a_bound_is_refused_with_the_bound(
    request_true: Request, change: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestRefused, match=message):
        await run_once(replace(request_true, **change))  # type: ignore[arg-type]


async def test_large_environment_within_the_bound_arrives_whole(
    request_true: Request, tmp_path: Path
) -> None:
    variables = {f"V{number}": "x" * 100_000 for number in range(15)}
    request = replace(
        request_true,
        argv=("sh", "-c", "env | wc -c"),
        environment={**request_true.environment, **variables},
    )
    await run_once(request)
    assert int((tmp_path / "out").read_text()) > 1_500_000


def talk(said: bytes, executable: str = "") -> tuple[bytes, int]:
    """Say something to a launcher without a pool; return its answer and exit code."""
    server = ForkServer(executable or launcher_path())
    process, ours = server.fork(())
    with ours:
        ours.setblocking(True)
        assert ours.recv(1) == b"R"
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        answer = b""
        # A launcher that leaves without reading everything resets the connection.
        with contextlib.suppress(ConnectionResetError):
            while chunk := ours.recv(4096):
                answer += chunk
    server.close()
    ended = process.collect()
    return answer, ended.exit_code if ended.exit_code is not None else -(ended.signal or 0)


@pytest.mark.parametrize(
    "said",
    [
        struct.pack("=II", 0, 12) + b"\0" * 12,
        struct.pack("=II", REQUEST_MAGIC, 2**32 - 1),
        struct.pack("=II", REQUEST_MAGIC, 4) + b"\0" * 4,
        struct.pack("=IIIII", REQUEST_MAGIC, 12, 0, 0, 0),
        struct.pack("=IIIII", REQUEST_MAGIC, 12, 2**31, 2**31, 0),
        struct.pack("=IIIII", REQUEST_MAGIC, 12, 1, 0, 17),
        struct.pack("=IIIIII", REQUEST_MAGIC, 16, 1, 0, 0, 2**32 - 1),
        struct.pack("=IIIIII", REQUEST_MAGIC, 17, 1, 0, 0, 1) + b"x",
        struct.pack("=IIIIII", REQUEST_MAGIC, 18, 1, 0, 0, 1) + b"xy",
        struct.pack("=II", REQUEST_MAGIC, 100) + b"cut off",
        b"half",
    ],
    ids=bytes.hex,
)
def test_unsound_request_is_refused_without_running_anything(said: bytes) -> None:
    answer, exit_code = talk(said)
    assert answer.startswith(b"F")
    assert answer[5:] in (b"request", b"receive")
    assert exit_code == 126


def test_damaged_requests_never_make_the_launcher_touch_foreign_memory(
    request_true: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = str(tmp_path / "checked-launcher")
    flags = ["-g", "-O1", "-D_GNU_SOURCE", "-fsanitize=address,undefined"]
    command = ["gcc", *flags, "-fno-sanitize-recover=all", "-o", checked, str(SOURCE)]
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("gcc has no sanitizers here")
    # The launcher makes the directories of outputs: damage must not lead out of this one.
    monkeypatch.chdir(tmp_path)
    inside = replace(request_true, stdout_path="some/where/out", stderr_path="some/where/err")
    sound = replace(inside, argv=("/bin/true", "word")).encode()
    chance = random.Random(20)
    for _ in range(150):
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 0x7F, 0xFF))
        answer, exit_code = talk(bytes(damaged), checked)
        # A sanitizer's finding ends it with 1, a crash with a signal.
        assert exit_code in (0, 126, 127), (damaged, answer)
        assert answer == b"E" or b"F" in answer[:2], (damaged, answer)


def test_dismissed_launcher_ends_quietly() -> None:
    assert talk(b"") == (b"", 0)


async def test_group_that_cannot_be_joined_is_named() -> None:
    server = ForkServer(launcher_path())
    launcher = ParkedLauncher.fork(Nowhere(("/no/cgroup.procs",)), server)
    with pytest.raises(StepFailed, match=r"join /no/cgroup\.procs: No such file"):
        await launcher.ready()
    gone = asyncio.Event()
    launcher.dismiss(gone.set)
    await asyncio.wait_for(gone.wait(), 20)
    server.close()


async def test_launcher_killed_while_parked_says_that_nothing_ran(request_true: Request) -> None:
    server = ForkServer(launcher_path())
    launcher = ParkedLauncher.fork(Nowhere(), server)
    await launcher.ready()
    launcher.process.send_signal(signal.SIGKILL)
    await until(lambda: not is_running(launcher.process.pid))
    with pytest.raises(LauncherDied):
        await launcher.start(request_true)
    launcher.dismiss(lambda: None)
    await asyncio.sleep(0.01)
    server.close()


async def test_fork_server_that_died_is_replaced_and_nothing_is_lost(
    request_true: Request,
) -> None:
    pool = Places().pool(parked=2)
    await pool.open()
    server = pool._server._process
    assert server is not None
    server.send_signal(signal.SIGKILL)
    await until(lambda: not is_running(server.pid))
    statuses = [await run(pool, request_true) for _ in range(5)]  # more than were parked
    assert statuses == [ExitStatus(0, None)] * 5
    await pool.close()
    assert not is_running(server.pid)


def test_server_that_dies_before_its_answer_leaves_no_two_launchers_at_one_socket() -> None:
    server = ForkServer(launcher_path())
    ended, ours = server.fork(())
    with ours:
        ours.setblocking(True)
        assert ours.recv(1) == b"R"
    ended.collect()
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGSTOP)  # it has the order, and then dies
    assert server._channel is not None
    process = server._process
    asked: list[int] = []
    real = server._ask

    def ask(order: bytes, theirs: socket.socket) -> int:
        asked.append(theirs.fileno())
        if len(asked) == 1:
            process.send_signal(signal.SIGKILL)
        return real(order, theirs)

    server._ask = ask  # type: ignore[method-assign]
    launcher, channel = server.fork(())
    with channel:
        channel.setblocking(True)
        assert len(asked) == 2
        assert channel.recv(16) == b"R"  # of one launcher only
    assert launcher.collect() == ExitStatus(0, None)
    server.close()


def test_order_that_is_not_sound_is_refused_and_the_server_goes_on() -> None:
    server = ForkServer(launcher_path())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for order in (b"X", b"Pno end", b"P" + b"x" * 40_000 + b"\0"):
            assert server._ask(order, theirs) == -errno.EBADMSG
    process, channel = server.fork(())
    with channel:
        channel.setblocking(True)
        assert channel.recv(1) == b"R"
    server.close()
    assert process.collect() == ExitStatus(0, None)


def test_fork_that_the_kernel_refuses_names_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ForkServer(launcher_path())
    monkeypatch.setattr(server, "_ask", lambda *_: -errno.ENOMEM)
    with pytest.raises(StepFailed, match="fork: Cannot allocate memory") as caught:
        server.fork(())
    assert caught.value.code == errno.ENOMEM


async def test_missing_launcher_is_named() -> None:
    places = Places()
    with pytest.raises(LauncherMissing, match="/no/such/launcher cannot be run"):
        await places.pool(executable="/no/such/launcher").open()
    assert places.discarded_count == 1


async def test_pool_replaces_each_launcher_that_is_used(request_true: Request) -> None:
    pool = Places().pool(parked=2)
    await pool.open()
    for _ in range(3):
        await until(lambda: pool.parked_count == 2)
        assert await run(pool, request_true) == ExitStatus(0, None)
    await pool.close()


async def test_pool_replaces_a_launcher_that_dies_parked(request_true: Request) -> None:
    places = Places()
    pool = places.pool()
    await pool.open()
    pool._parked[0].process.send_signal(signal.SIGKILL)
    await until(lambda: pool.parked_count == 0)
    assert await run(pool, request_true) == ExitStatus(0, None)
    await until(lambda: pool.parked_count == 1)
    assert places.discarded_count == 1
    await pool.close()


async def test_pool_parks_again_after_no_place_could_be_made(request_true: Request) -> None:
    failures = [OSError("no room for a group")]

    def prepare() -> Nowhere:
        if failures and pool.parked_count == 0 and opened.is_set():
            raise failures.pop()
        return Nowhere()

    opened = asyncio.Event()
    pool = LauncherPool(prepare, lambda _: None, parked=1, executable=launcher_path())
    await pool.open()
    opened.set()
    assert await run(pool, request_true) == ExitStatus(0, None)
    await until(lambda: not failures)
    await until(lambda: pool.parked_count == 1)
    await pool.close()


async def test_more_starts_than_parked_launchers_all_run(request_true: Request) -> None:
    pool = Places().pool(parked=1)
    await pool.open()
    statuses = await asyncio.gather(*(run(pool, request_true) for _ in range(10)))
    assert statuses == [ExitStatus(0, None)] * 10
    await pool.close()


async def test_cancelled_start_leaves_nothing_behind(request_true: Request) -> None:
    places = Places()
    pool = places.pool(parked=1)
    await pool.open()
    process = pool._parked[0].process
    process.send_signal(signal.SIGSTOP)  # so that the start cannot be done before it is cancelled
    request = replace(request_true, argv=("sleep", "1000"))
    starting = asyncio.create_task(pool.start(lambda _: request))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    await until(lambda: not is_running(process.pid))
    await pool.close()
    assert places.discarded_count >= 1


async def test_closed_pool_has_no_process_left() -> None:
    places = Places()
    pool = places.pool(parked=3)
    await pool.open()
    pids = [launcher.process.pid for launcher in pool._parked]
    await pool.close()
    assert not any(is_running(pid) for pid in pids)
    assert places.discarded_count == 3


def test_parked_launcher_and_running_task_end_with_their_agent(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "import test_launcher as t\n"
        "async def main():\n"
        "    pool = t.Places().pool(parked=1)\n"
        "    await pool.open()\n"
        "    r = t.Request(('sleep', '1000'), {'PATH': '/bin'}, '/', *[sys.argv[1] + '/out'] * 2)\n"
        "    process, _ = await pool.start(lambda _: r)\n"
        "    await t.until(lambda: pool.parked_count == 1)\n"
        "    print(process.pid, pool._parked[0].process.pid, flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    here = Path(__file__).resolve()
    folders = [str(here.parent), str(here.parents[1]), str(here.parents[2])]
    command = [sys.executable, "-c", code, str(tmp_path), *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        pids = [int(word) for word in agent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
        agent.kill()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.002)
