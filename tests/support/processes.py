"""Real processes for tests: a freshly compiled launcher, programs that eat, waits with a bound."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.cgroup1 import Cgroup1
from agent.group import EnforcementError
from agent.runner import Launch

MIB = 1024 * 1024
WAIT_SECONDS_MAX = 20.0
SOURCE = Path(__file__).resolve().parents[2] / "allocator" / "launcher.c"
STRICT = ["-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-std=c11"]

# Touches argv[1] MiB, says so, and sleeps argv[2] seconds.
EATER = (
    "import sys, time\n"
    "block = bytearray(int(sys.argv[1]) << 20)\n"
    "block[::4096] = b'x' * len(block[::4096])\n"
    "print('ate', flush=True)\n"
    "time.sleep(float(sys.argv[2]))\n"
)


@functools.cache
def launcher_path() -> str:
    """Return a launcher compiled from the source as it is now, every warning an error."""
    directory = tempfile.mkdtemp(prefix="mass-launcher-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = os.path.join(directory, "mass-launcher")
    subprocess.run(["gcc", *STRICT, "-D_GNU_SOURCE", "-o", path, str(SOURCE)], check=True)
    return path


@functools.cache
def why_no_cgroup1() -> str:
    """Return why this machine cannot enforce by cgroup v1, empty when it can."""
    try:
        Cgroup1.probe(f"probe-{os.getpid()}").close()
    except EnforcementError as error:
        return str(error)
    return ""


def eater(size_mib: int, sleep_seconds: float) -> tuple[str, ...]:
    """Return the command of a program that touches that much memory and then sleeps."""
    return (sys.executable, "-c", EATER, str(size_mib), str(sleep_seconds))


def launch(
    directory: Path, task_id: int, *argv: str, limit_bytes: int | None = None, **environment: str
) -> Launch:
    """Return the launch of a first attempt with its files below the directory."""
    outputs = directory / str(task_id)
    return Launch(
        key=(task_id, 1),
        argv=argv,
        environment={"PATH": "/usr/bin:/bin", **environment},
        working_directory=str(directory),
        stdout_path=str(outputs / "stdout"),
        stderr_path=str(outputs / "stderr"),
        memory_limit_bytes=limit_bytes,
        cpus=1.0,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        await asyncio.sleep(0.002)


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
