"""The `mass-agent` command as a real process with real tasks."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from mass.v1 import agent_pb2, types_pb2
from support.fake_controller import FakeController, Stream, acknowledge, assign, stop
from support.processes import MIB, eater, is_running, until, why_no_cgroup1

from agent.enforce import detect
from agent.main import EXIT_REFUSED, main
from allocator.launcher import default_executable

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 20.0
NODE_ID = f"test-{os.getpid()}"
needs_launcher = pytest.mark.skipif(
    not Path(default_executable()).exists(), reason="mass-launcher is not built: run `make env`"
)


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    fake = FakeController()
    await fake.start()
    yield fake
    await fake.stop()


@asynccontextmanager
async def agent_process(
    controller: FakeController, work_dir: Path, *flags: str, interpreter: tuple[str, ...] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run an agent; kill it at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *interpreter,
        "-m",
        "agent.main",
        "--controller",
        controller.address,
        "--name",
        NODE_ID,
        "--work-dir",
        str(work_dir),
        *flags,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"},
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        left = detect(NODE_ID).enforcement
        left.sweep()
        left.close()


async def exit_of(process: asyncio.subprocess.Process) -> tuple[int, str]:
    """Return the exit code and what was said on standard error."""
    async with asyncio.timeout(SECONDS_MAX):
        _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def ends(stream: Stream) -> dict[int, agent_pb2.AttemptEnded]:
    return {report.task_id: report.ended for report in stream.reports() if report.HasField("ended")}


def pid_of(stream: Stream, task_id: int) -> int:
    """Return the pid of a started task."""
    return next(report.started.pid for report in stream.reports() if report.task_id == task_id)


@needs_launcher
async def test_tasks_run_and_their_ends_say_how(controller: FakeController, tmp_path: Path) -> None:
    async with agent_process(controller, tmp_path, "--memory", "4GiB", "--cpus", "3") as process:
        stream = await controller.welcomed()
        hello = stream.hello()
        assert (hello.memory_capacity_bytes, hello.cpus) == (4 << 30, 3.0)
        script = 'echo "$MASS_TASK_ID in $PWD"; echo problem >&2; exit 3'
        stream.send(
            assign(1, command=["sh", "-c", script]),
            assign(2, command=["/no/such"]),
            assign(3, command=["sleep", "60"]),
        )
        await stream.until(lambda: {1, 2} <= ends(stream).keys() and len(stream.reports()) >= 4)
        first, second = ends(stream)[1], ends(stream)[2]
        assert first.exit_code == 3
        assert first.stdout_tail.decode() == f"1 in {tmp_path}/tasks/1/1\n"
        assert first.stderr_tail == b"problem\n"
        assert first.started_at.ToNanoseconds() <= first.ended_at.ToNanoseconds()
        assert second.start_error == "exec /no/such: No such file or directory"
        stream.send(stop(3, 5.0))
        await stream.until(lambda: 3 in ends(stream))
        assert (ends(stream)[3].signal, ends(stream)[3].stopped) == (signal.SIGTERM, True)
        process.terminate()
        stream.send(acknowledge(len(stream.reports())))
        await stream.until(lambda: stream.received[-1].HasField("goodbye"))
        stream.end()
        code, said = await exit_of(process)
        assert code == 0, said


@needs_launcher
@pytest.mark.skipif(bool(why_no_cgroup1()), reason=f"no cgroup v1: {why_no_cgroup1()}")
async def test_a_task_that_outgrows_its_limit_is_told_apart_from_one_that_kills_itself(
    controller: FakeController, tmp_path: Path
) -> None:
    async with agent_process(controller, tmp_path):
        stream = await controller.welcomed()
        stream.send(
            assign(1, command=list(eater(200, 0)), memory_limit_bytes=50 * MIB),
            assign(2, command=["sh", "-c", "kill -9 $$"], memory_limit_bytes=50 * MIB),
        )
        await stream.until(lambda: {1, 2} <= ends(stream).keys())
        eaten, killed = ends(stream)[1], ends(stream)[2]
        assert eaten.oom_cause == types_pb2.OOM_CAUSE_OWN_LIMIT
        assert eaten.oom_kill_count > 0
        assert 45 * MIB <= eaten.memory_peak_bytes <= 50 * MIB
        assert (killed.signal, killed.oom_kill_count) == (signal.SIGKILL, 0)
        assert killed.oom_cause == types_pb2.OOM_CAUSE_UNSPECIFIED
        told = len(stream.samples())  # the next one may have been measured before the end
        stream.send(assign(3, command=list(eater(200, 1))))  # while nothing moves none is sent
        await stream.until(lambda: len(stream.samples()) >= told + 2)
        assert not any(sample.oom_kills for sample in stream.samples())


@needs_launcher
async def test_an_agent_has_more_tasks_than_files_and_they_get_the_limit_it_was_given(
    controller: FakeController, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))
    try:
        async with agent_process(controller, tmp_path):
            stream = await controller.welcomed()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            stream.send(assign(*range(1, 49), command=["sleep", "60"]))
            stream.send(assign(49, command=["sh", "-c", "ulimit -Sn; ulimit -Hn"]))
            await stream.until(lambda: 49 in ends(stream))
            assert ends(stream).keys() == {49}
            assert ends(stream)[49].stdout_tail == b"48\n%d\n" % hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@needs_launcher
async def test_a_terminated_agent_takes_its_tasks_along_and_keeps_their_ends(
    controller: FakeController, tmp_path: Path
) -> None:
    async with agent_process(controller, tmp_path) as process:
        stream = await controller.welcomed()
        stream.send(assign(1, command=["sleep", "60"]))
        await stream.until_reports(1)
        pid = pid_of(stream, 1)
        process.terminate()
        await stream.until(lambda: 1 in ends(stream))
        assert ends(stream)[1].stopped
        await controller.stop()
        code, said = await exit_of(process)
        assert code == 0, said
    assert not is_running(pid)
    assert (tmp_path / "reports" / "ends").read_bytes().startswith(b"[1, 1, ")


@needs_launcher
async def test_tasks_die_with_a_killed_agent_and_known_ends_come_back(
    controller: FakeController, tmp_path: Path
) -> None:
    async with agent_process(controller, tmp_path) as process:
        stream = await controller.welcomed()
        stream.send(assign(1, command=["sleep", "60"]), assign(2, command=["false"]))
        await stream.until(lambda: 2 in ends(stream) and len(stream.reports()) == 3)
        pid = pid_of(stream, 1)
        process.kill()
        await until(lambda: not is_running(pid))
    async with agent_process(controller, tmp_path):
        stream = await controller.welcomed()
        assert [(k.task_id, k.ended) for k in stream.hello().attempts] == [(2, True)]
        await stream.until(lambda: 2 in ends(stream))
        assert ends(stream)[2].exit_code == 1


@needs_launcher
async def test_a_refused_agent_ends_with_the_controllers_sentence(
    controller: FakeController, tmp_path: Path
) -> None:
    async with agent_process(controller, tmp_path) as process:
        stream = await controller.stream()
        stream.end(grpc.StatusCode.FAILED_PRECONDITION, "install the same version on both")
        code, said = await exit_of(process)
    assert code == EXIT_REFUSED
    assert said.endswith("mass-agent: install the same version on both\n")


async def test_a_second_agent_on_a_work_directory_is_refused(
    controller: FakeController, tmp_path: Path
) -> None:
    async with agent_process(controller, tmp_path) as first:
        await controller.stream()
        async with agent_process(controller, tmp_path) as second:
            code, said = await exit_of(second)
        assert code == EXIT_REFUSED
        assert f"is used by another agent (process {first.pid})" in said


async def test_an_agent_without_asserts_is_refused(
    controller: FakeController, tmp_path: Path
) -> None:
    async with agent_process(controller, tmp_path, interpreter=("-O",)) as process:
        code, said = await exit_of(process)
    assert code == EXIT_REFUSED
    assert said == "mass-agent: asserts are part of MASS: do not run Python with -O\n"


def test_a_refused_setting_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--memory", "8"]) == EXIT_REFUSED
    assert capsys.readouterr().err == "mass-agent: --memory '8' has no unit; write 8MiB or 8MB\n"
