"""A controller and agents as real processes on the loopback, with a directory of their own.

Owns the processes it starts and ends every one of them, by its process id. The rule kept: tests
wait for conditions with a bound, and a wait that fails shows the ends of the logs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mass.v1 import task_pb2, types_pb2

from controller.cli.address import parse_address
from controller.cli.client import Client
from controller.cli.exits import Unreachable
from controller.cli.records import ENDED_STATES, task_state
from controller.core.errors import MassError

WAIT_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0
CLOSE_SECONDS_MAX = 5.0
PAUSE_SECONDS = 0.01
LOG_BYTES_SHOWN = 4_000
MIB = 1 << 20
GIB = 1 << 30
# Below the range from which the kernel takes the ports of outgoing connections, so that the port
# of a controller that was killed is still free for the next one.
PORT_FIRST, PORT_LAST = 20_000, 32_000
ENTRY = ("-m", "controller")
AGENT_ENTRY = ("-m", "agent.main")

Value = TypeVar("Value")

# Touches argv[1] MiB and sleeps argv[2] seconds.
EATER = (
    "import sys, time\n"
    "block = bytearray(int(sys.argv[1]) << 20)\n"
    "for at in range(0, len(block), 4096): block[at] = 1\n"
    "print('ate', flush=True)\n"
    "time.sleep(float(sys.argv[2]))\n"
)


def eater(size_mib: int, sleep_seconds: float = 0.0) -> list[str]:
    """Return the command of a program that touches that much memory and then sleeps."""
    return [sys.executable, "-c", EATER, str(size_mib), str(sleep_seconds)]


def free_port() -> int:
    """Return a port of the loopback that nobody has now, and no outgoing connection takes."""
    for port in random.sample(range(PORT_FIRST, PORT_LAST), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("100 ports in a row are taken")


@dataclass
class Daemon:
    """One process and its log, which goes on when the process is started again."""

    name: str
    arguments: Sequence[str]
    log_path: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, arguments: Sequence[str] = (), **environment: str) -> None:
        """Start it, with other arguments or more environment where given."""
        assert not self.is_running(), f"{self.name} runs already"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(arguments or self.arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log_path.parent,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    **self.environment,
                    **environment,
                },
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def is_running(self) -> bool:
        """Tell whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def wait(self, seconds_max: float = STOP_SECONDS_MAX) -> int:
        """Return its exit code once it has ended; fail when it does not."""
        assert self.process is not None
        try:
            return self.process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended\n{self.log_end()}") from None

    def terminate(self) -> int:
        """SIGTERM, and return its exit code."""
        self.ask_to_end()
        return self.wait()

    def ask_to_end(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        self.process.terminate()

    def log(self) -> str:
        """Return all it has written."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_end(self) -> str:
        """Return the end of its log under a heading."""
        return f"--- {self.name} ---\n{self.log()[-LOG_BYTES_SHOWN:]}"


class Cluster:
    """A controller, its agents, a client and the CLI. Close it."""

    def __init__(
        self, directory: Path, *controller_flags: str, entry: Sequence[str] = ENTRY
    ) -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        self.data = directory / "data"
        self.controller = Daemon(
            "controller",
            [*entry, "--listen", self.address, "--http", self.http, "--data", str(self.data),
             *controller_flags],
            directory / "controller.log",
        )  # fmt: skip
        self.agents: dict[str, Daemon] = {}
        self.client = Client(parse_address(self.address), note=lambda _: None)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process that still runs: agents first, which take their groups away."""
        self.client.close()
        agents = [agent for agent in self.agents.values() if agent.is_running()]
        for agent in agents:
            agent.ask_to_end()
        deadline = time.monotonic() + CLOSE_SECONDS_MAX
        while any(agent.is_running() for agent in agents) and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
        for daemon in (*self.agents.values(), self.controller):
            daemon.kill()

    # Processes.

    def start_controller(self, **environment: str) -> None:
        """Start the controller and wait until it answers."""
        self.controller.start(**environment)
        self.until(self.answers, "the controller answers")

    def answers(self) -> bool:
        """Tell whether the controller answers."""
        assert self.controller.is_running(), self.logs()
        try:
            with socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2])), 1):
                pass
            self.client.pool()
        except (OSError, Unreachable):
            return False
        return True

    def start_agent(
        self, name: str = "node-1", *flags: str, entry: Sequence[str] = AGENT_ENTRY
    ) -> Daemon:
        """Start an agent; `wait_ready` waits for it."""
        where = ("--controller", self.address, "--work-dir", str(self.directory / f"agent-{name}"))
        agent = Daemon(
            f"agent {name}",
            [*entry, "--name", name, *where, *flags],
            self.directory / f"agent-{name}.log",
        )
        self.agents[name] = agent
        agent.start()
        return agent

    def wait_ready(self, *names: str) -> None:
        """Wait until these nodes (all agents', where none is named) take tasks."""
        wanted = set(names or self.agents)

        def ready() -> bool:
            for name in wanted:
                assert self.agents[name].is_running(), self.logs()
            # A node is ready at its first sample; what it promises comes with the cycle behind it.
            return wanted <= {
                node.id
                for node in self.client.nodes()
                if node.state == types_pb2.NODE_STATE_READY and node.memory_promise_bytes > 0
            }

        self.until(ready, f"{', '.join(sorted(wanted))} ready")

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(d.log_end() for d in (self.controller, *self.agents.values()))

    # Waiting.

    def until(
        self,
        condition: Callable[[], Value | None],
        what: str,
        seconds_max: float = WAIT_SECONDS_MAX,
    ) -> Value:
        """Return the condition's value once it holds; fail when it does not in time."""
        deadline = time.monotonic() + seconds_max
        while not (value := condition()):
            assert time.monotonic() < deadline, (
                f"not within {seconds_max:g} s: {what}\n{self.logs()}"
            )
            time.sleep(PAUSE_SECONDS)
        return value

    def wait_state(
        self, task_id: str, *states: str, seconds_max: float = WAIT_SECONDS_MAX
    ) -> types_pb2.Task:
        """Return a task once it is in one of the states."""
        last = types_pb2.Task()

        def reached() -> bool:
            last.CopyFrom(self.client.task(task_id))
            return task_state(last) in states

        try:
            self.until(reached, f"task {task_id} is {' or '.join(states)}", seconds_max)
        except AssertionError as error:
            raise AssertionError(f"{error}\nthe task is\n{last}") from None
        return last

    def wait_ended(
        self, task_ids: Iterable[str], seconds_max: float = WAIT_SECONDS_MAX
    ) -> list[types_pb2.Task]:
        """Return the tasks, in the order given, once all have ended."""
        ids = list(task_ids)
        deadline = time.monotonic() + seconds_max
        ended: dict[str, types_pb2.Task] = {}
        while len(ended) < len(ids):
            for task_id in ids:
                if task_id in ended:
                    continue
                task = self.client.task(task_id)
                if task.state in ENDED_STATES:
                    ended[task_id] = task
            assert len(ended) == len(ids) or time.monotonic() < deadline, (
                f"{len(ids) - len(ended)} of {len(ids)} tasks have not ended:"
                f" {[self.client.task(i) for i in ids if i not in ended][:1]}\n{self.logs()}"
            )
            time.sleep(PAUSE_SECONDS)
        return [ended[task_id] for task_id in ids]

    # What people do.

    def submit(self, *command: str, count: int = 1, **fields: Any) -> list[str]:
        """Submit that many equal tasks in one call; fields are those of TaskSpec."""
        fields.setdefault("memory_request_bytes", 32 * MIB)
        fields.setdefault("cpus", 0.01)
        specs = [types_pb2.TaskSpec(command=command, **fields) for _ in range(count)]
        return self.client.submit(specs, "tester")

    def submit_one(self, *command: str, **fields: Any) -> str:
        """Submit a task and return its id."""
        (task_id,) = self.submit(*command, **fields)
        return task_id

    def run(self, *command: str, **fields: Any) -> types_pb2.Task:
        """Submit a task and return it once it has ended."""
        (task,) = self.wait_ended(self.submit(*command, **fields))
        return task

    def output(self, task_id: str, **fields: Any) -> tuple[bytes, list[str]]:
        """Return a task's output and the notes beside it."""
        request = task_pb2.ReadTaskLogRequest(id=task_id, **fields)
        parts = list(self.client.read_log(request))
        return b"".join(data for data, _ in parts), [note for _, note in parts if note]

    def mass_process(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start the CLI; the caller waits for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "controller.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MASS_CONTROLLER": self.address},
            **options,
        )

    def mass(self, *words: str) -> Ran:
        """Run the CLI to its end."""
        with self.mass_process(*words) as process:
            out, err = process.communicate(timeout=WAIT_SECONDS_MAX)
        return Ran(process.returncode, out, err)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run of the CLI gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed on stdout, read as JSON."""
        return json.loads(self.out)


def reason_of(call: Callable[[], object]) -> MassError:
    """Return the error that a call must raise."""
    try:
        value = call()
    except MassError as error:
        return error
    raise AssertionError(f"nothing was refused, but {value!r} returned")


def interrupt(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C."""
    process.send_signal(signal.SIGINT)
