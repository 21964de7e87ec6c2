"""Measures what a sample costs the controller, beside a handler that only parses the same bytes.

A generator process opens a connection for each node and sends one sample a message at a steady
rate. It drives the controller, and in turns with it a bare gRPC server with the same transport
options whose handler counts. Each server's CPU time is taken from outside over the same span; lag
is from the instant a sample was due, in the generator, to its handling.

    python benchmarks/ingest.py [--connections N] [--rate N] [--seconds S] [--json FILE]
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import uvloop
from _figures import Figure, cpu_seconds, median_of, parser, percentiles, report
from mass.v1 import agent_pb2
from support.cluster import free_port

from controller import main as controller_main
from controller import wire
from controller.config import Settings
from controller.core.limits import PROTOCOL_VERSION
from controller.rulefile import default_rules

CONNECT = "/mass.v1.AgentService/Connect"
GIB = 1 << 30
TASKS = 8  # readings in each sample
RATIO_TARGET, LAG_TARGET_MS = 1.3, 10.0
OPENING_MAX = 50  # streams opened at once
READY_SECONDS_MAX = 60.0
BARE_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_535),
)


def main() -> int:
    """Measure and tell; with --role be one of the processes that takes part."""
    arguments = parser("Measure the cost of samples.")
    arguments.add_argument("--connections", type=int, default=1_000)
    arguments.add_argument("--rate", type=float, default=2_000.0, help="messages per second")
    arguments.add_argument("--seconds", type=float, default=6.0, help="of each measured span")
    arguments.add_argument("--rounds", type=int, default=2, help="spans of each server")
    arguments.add_argument("--settle", type=float, default=2.0, help="seconds before each span")
    arguments.add_argument("--role", choices=("bare", "controller", "generator"))
    arguments.add_argument("--port", type=int)
    arguments.add_argument("--lags", type=Path)
    chosen = arguments.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    match chosen.role:
        case "bare":
            uvloop.run(serve_bare(chosen.port, chosen.lags))
        case "controller":
            uvloop.run(serve_controller(chosen.port, chosen.lags, chosen.connections))
        case "generator":
            uvloop.run(generate(chosen.port, chosen.connections, chosen.rate))
        case _:
            return measure(chosen)
    return 0


def measure(chosen: Any) -> int:
    """Let both servers take turns and tell their figures."""
    roles = ("bare", "controller")
    us: dict[str, list[float]] = {role: [] for role in roles}
    lags: dict[str, list[float]] = {role: [] for role in roles}
    with tempfile.TemporaryDirectory(prefix="mass-ingest-") as directory:
        for _ in range(chosen.rounds):
            for role in roles:
                cost, found = span(role, chosen, Path(directory) / "lags.json")
                us[role].append(cost)
                lags[role] += found
    bare, ours = (median_of(us[role]) for role in roles)
    late_bare, late = percentiles(lags["bare"]), percentiles(lags["controller"])
    figures = [
        Figure("bare handler", bare, "us CPU/message"),
        Figure("controller", ours, "us CPU/message"),
        Figure("controller / bare handler", ours / bare, "times", RATIO_TARGET),
        Figure("bare handler lag p50", late_bare["p50"], "ms"),
        Figure("bare handler lag p99", late_bare["p99"], "ms"),
        Figure("controller lag p50", late["p50"], "ms"),
        Figure("controller lag p99", late["p99"], "ms", LAG_TARGET_MS),
    ]
    return report(
        "ingest", figures, chosen.json, connections=chosen.connections, rate=chosen.rate,
        seconds=chosen.seconds, rounds=chosen.rounds,
    )  # fmt: skip


def span(role: str, chosen: Any, lags: Path) -> tuple[float, list[float]]:
    """Return a server's CPU microseconds per message over one span, and the lags in ms."""
    port = free_port()
    with (
        _process("--role", role, "--port", str(port), "--lags", str(lags),
                 "--connections", str(chosen.connections)) as server,
        _process("--role", "generator", "--port", str(port), "--rate", str(chosen.rate),
                 "--connections", str(chosen.connections)) as generator,
    ):  # fmt: skip
        try:
            assert generator.stdout is not None
            if generator.stdout.readline().strip() != "sending":
                raise SystemExit(f"the generator could not reach the {role} server")
            time.sleep(chosen.settle)
            server.send_signal(signal.SIGUSR1)  # count from here
            cpu = cpu_seconds(server.pid)
            time.sleep(chosen.seconds)
            cpu = cpu_seconds(server.pid) - cpu
            server.send_signal(signal.SIGUSR2)  # to here
            _wait_written(lags)
        finally:
            for process in (generator, server):
                process.terminate()
    late = json.loads(lags.read_text(encoding="utf-8"))
    lags.unlink()
    return cpu * 1e6 / len(late), late


def _process(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )  # fmt: skip


def _wait_written(path: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not path.exists():
        if time.monotonic() > deadline:
            raise SystemExit("the server has not told its lags")
        time.sleep(0.01)


class Lags:
    """The lags of a span in milliseconds, between SIGUSR1 and SIGUSR2."""

    def __init__(self, path: Path) -> None:
        """Listen to the signals; to be called in the running loop."""
        self._path = path
        self._found: list[float] = []
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._found.clear)
        loop.add_signal_handler(signal.SIGUSR2, self._write)

    def note(self, batch: agent_pb2.SampleBatch) -> None:
        """Note that a message is being handled."""
        self._found.append((time.time_ns() - batch.samples[0].taken_at_unix_ns) / 1e6)

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._found), encoding="utf-8")
        new.rename(self._path)


async def serve_bare(port: int, path: Path) -> None:
    """Serve streams whose messages are parsed and counted, and nothing else."""
    lags = Lags(path)

    async def connect(messages: AsyncIterator[agent_pb2.AgentMessage], context: Any) -> None:
        await context.write(b"")
        async for message in messages:
            if message.WhichOneof("body") == "samples":
                lags.note(message.samples)

    server = grpc.aio.server(options=BARE_OPTIONS)
    method: Any = grpc.stream_stream_rpc_method_handler(connect, agent_pb2.AgentMessage.FromString)
    handler = grpc.method_handlers_generic_handler("mass.v1.AgentService", {"Connect": method})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    gc.collect()
    gc.freeze()
    await server.wait_for_termination()


async def serve_controller(port: int, path: Path, connections: int) -> None:
    """Serve as the controller does, noting the lag of each message."""
    lags, write_samples = Lags(path), wire.write_samples

    def noting(cluster: Any, record: Any, batch: agent_pb2.SampleBatch, now_ns: int) -> None:
        lags.note(batch)
        write_samples(cluster, record, batch, now_ns)

    wire.write_samples = noting
    with tempfile.TemporaryDirectory(prefix="mass-ingest-data-") as data:
        settings = Settings(
            listen=f"127.0.0.1:{port}",
            http=f"127.0.0.1:{free_port()}",
            data=Path(data),
            nodes_max=connections,
        )
        await controller_main.serve(settings, default_rules())


async def generate(port: int, connections: int, rate: float) -> None:
    """Open all connections, say so, and send until the end of the process."""
    opening = asyncio.Semaphore(OPENING_MAX)
    opened = asyncio.Event()
    nodes = [Node(number, port, connections / rate) for number in range(connections)]
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not _accepts(port):
        if time.monotonic() > deadline:
            raise SystemExit("nobody listens")
        await asyncio.sleep(0.05)

    async def open_one(node: Node) -> None:
        async with opening:
            await node.open()

    await asyncio.gather(*(open_one(node) for node in nodes))
    sending = [asyncio.create_task(node.send(opened)) for node in nodes]
    print("sending", flush=True)
    opened.set()
    await asyncio.gather(*sending)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Node:
    """One agent's stream, at its own phase."""

    def __init__(self, number: int, port: int, interval_seconds: float) -> None:
        self._number = number
        self._interval_seconds = interval_seconds
        self._chance = random.Random(number)
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0))
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)
        self._call: Any = None

    async def open(self) -> None:
        """Say hello and wait for the welcome."""
        self._call = self._channel.stream_stream(
            CONNECT, request_serializer=agent_pb2.AgentMessage.SerializeToString
        )()
        number = self._number
        hello = agent_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            node_id=f"node-{number}",
            instance_id=f"instance-{number}",
            machine_id=f"machine-{number}",
            boot_id="boot",
            agent_version="bench",
            memory_total_bytes=64 * GIB,
            cpus=16.0,
            enforcement="cgroup1",
        )
        await self._call.write(agent_pb2.AgentMessage(hello=hello))
        await self._call.read()

    async def send(self, opened: asyncio.Event) -> None:
        """Send a sample each interval."""
        await opened.wait()
        chance = self._chance.random
        message = _sample(self._number)
        (sample,) = message.samples.samples
        due = time.time() + chance() * self._interval_seconds
        while True:
            await asyncio.sleep(max(0.0, due - time.time()))
            sample.taken_at_unix_ns = int(due * 1e9)
            sample.memory_available_bytes = int((0.3 + 0.2 * chance()) * 64 * GIB)
            await self._call.write(message)
            due += self._interval_seconds


def _sample(number: int) -> agent_pb2.AgentMessage:
    sample = agent_pb2.Sample(
        memory_total_bytes=64 * GIB,
        swap_total_bytes=GIB,
        swap_used_bytes=0,
        psi_some_percent=0.5,
        psi_full_percent=0.1,
        cpu_percent=40.0,
        load1=3.0,
        load5=2.0,
        load15=1.0,
        disk_percent=50.0,
        memory_growth_bytes_per_second=1e6,
        oom_kills=0,
        task_ids=range(number * TASKS + 1, number * TASKS + TASKS + 1),
        task_attempts=[1] * TASKS,
        task_memory_used_bytes=[GIB] * TASKS,
    )
    return agent_pb2.AgentMessage(samples=agent_pb2.SampleBatch(samples=[sample]))


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.exit(main())
