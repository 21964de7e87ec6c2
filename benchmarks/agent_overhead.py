"""Measures what one agent costs while its tasks run: share of a core, and memory.

An agent is started on the loopback against a controller that only listens, and samples four times
a second. Each task sleeps, and a few times a second takes or gives back some memory, so that every
look sees growth; every sample is sent, whether it is news or not. Counted are the agent's own
threads; its parked launchers and its tasks are not.

    python benchmarks/agent_overhead.py [--tasks N] [--seconds S] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from _figures import Figure, cpu_seconds, parser, report
from mass.v1 import agent_pb2
from support.cluster import AGENT_ENTRY
from support.fake_controller import FakeController, Stream, assign, duration, welcome

SAMPLE_SECONDS = 0.25
CORE_PERCENT_MAX = 3.0
RSS_MIB_MAX = 60.0
START_SECONDS_MAX = 120.0
SETTLE_SECONDS = 3.0
MIB = 1 << 20
# A C-sized program would be nicer to the machine; this is what is there everywhere.
MOVING = (
    "import mmap, random, time\n"
    "chance = random.Random({seed})\n"
    "while True:\n"
    "    block = mmap.mmap(-1, chance.randint(2, 8) << 20)\n"
    "    for offset in range(0, len(block), 4096): block[offset] = 1\n"
    "    time.sleep(chance.uniform(0.5, 1.5))\n"
    "    block.close()\n"
    "    time.sleep(chance.uniform(0.5, 1.5))\n"
)


def main() -> int:
    """Measure and tell."""
    arguments = parser("Measure what an agent costs.")
    arguments.add_argument("--tasks", type=int, default=50, help="how many run")
    arguments.add_argument("--seconds", type=float, default=20.0, help="how long to look")
    arguments.add_argument("--memory", default="8GiB", help="the node's capacity")
    arguments.add_argument("--guard", default="on", choices=("on", "off"))
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="mass-overhead-") as directory:
        figures = asyncio.run(
            measure(Path(directory), chosen.tasks, chosen.seconds, chosen.memory, chosen.guard)
        )
    return report(
        "agent_overhead", figures, chosen.json, tasks=chosen.tasks, seconds=chosen.seconds,
        guard=chosen.guard,
    )  # fmt: skip


async def measure(
    directory: Path, tasks: int, seconds: float, memory: str, guard: str
) -> list[Figure]:
    """Start an agent and its tasks, wait until all run, and look for so many seconds."""
    controller = FakeController()
    await controller.start()
    flags = ("--name", "overhead", "--work-dir", str(directory), "--memory", memory)
    with (directory / "log").open("wb") as log:
        agent = await asyncio.create_subprocess_exec(
            sys.executable, *AGENT_ENTRY, *flags,
            "--controller", controller.address, "--guard", guard, stderr=log,
        )  # fmt: skip
    try:
        stream = await connected(controller)
        for number in range(1, tasks + 1):
            command = [sys.executable, "-S", "-c", MOVING.format(seed=number)]
            stream.send(assign(number, command=command, memory_elastic=True))
        await started(stream, tasks, directory)
        await asyncio.sleep(SETTLE_SECONDS)
        return await look(agent.pid, stream, tasks, seconds)
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.send_signal(signal.SIGTERM)
        await agent.wait()
        await controller.stop()


async def connected(controller: FakeController) -> Stream:
    """Return the agent's stream, told to sample four times a second."""
    async with asyncio.timeout(START_SECONDS_MAX):
        while True:
            try:
                stream = await controller.stream()
                break
            except TimeoutError:
                continue
    sampling = agent_pb2.Sampling(
        sample_interval=duration(SAMPLE_SECONDS), heartbeat_interval=duration(SAMPLE_SECONDS)
    )
    stream.send(welcome(sampling=sampling))
    return stream


async def started(stream: Stream, tasks: int, directory: Path) -> None:
    """Return when all tasks have started."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while len(reports := stream.reports()) < tasks:
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(reports)} tasks started\n{(directory / 'log').read_text()}")
        await asyncio.sleep(0.1)
    if ended := [report.task_id for report in reports if report.HasField("ended")]:
        raise SystemExit(f"tasks {ended} have ended\n{(directory / 'log').read_text()}")


async def look(pid: int, stream: Stream, tasks: int, seconds: float) -> list[Figure]:
    """Return the figures of so many seconds."""
    samples, steps = len(stream.samples()), len(stream.received)
    cpu_before, began_at = cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    elapsed = time.monotonic() - began_at
    percent = 100 * (cpu_seconds(pid) - cpu_before) / elapsed
    taken = stream.samples()[samples:]
    acted = sum(len(message.guard_steps.steps) for message in stream.received[steps:])
    seen = min((len(sample.task_ids) for sample in taken), default=0)
    if seen < tasks:
        raise SystemExit(f"a sample showed {seen} of {tasks} tasks")
    return [
        Figure("agent's share of a core", percent, "%", CORE_PERCENT_MAX),
        Figure("agent's resident memory", resident_mib(pid), "MiB", RSS_MIB_MAX),
        Figure("samples received", len(taken) / elapsed, "/s", 0.9 / SAMPLE_SECONDS, True),
        Figure("steps of the guard", acted, "", None),
    ]


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


if __name__ == "__main__":
    sys.exit(main())
