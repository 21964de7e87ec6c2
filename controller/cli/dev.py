"""Runs a controller and an agent as two processes on this machine, with the live view.

The rule: they are the same programs that run elsewhere, started with flags; if one of them dies,
the other is ended and its log is shown.
"""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mass.v1 import types_pb2

from controller.cli.address import DEFAULT_HTTP_PORT, Address, parse_address
from controller.cli.children import Child, StopSignals
from controller.cli.client import Client
from controller.cli.exits import Unreachable
from controller.cli.view import LiveScreen, PlainScreen, Screen, display_results, take_snapshot
from controller.core.errors import MassError

READY_SECONDS = 30.0
FRAME_SECONDS = 0.5
NODE_NAME_DEFAULT = "local"


@dataclass(frozen=True, slots=True)
class DevSettings:
    """How to start the two processes."""

    listen: str
    http: str
    data: Path
    controller_flags: tuple[str, ...]
    node_name: str | None
    agent_flags: tuple[str, ...]
    plain: bool


class NotReady(MassError):
    """A process was started and does not become ready."""

    reason = "NOT_READY"


def run_dev(settings: DevSettings, note: Callable[[str], None]) -> None:
    """Run both until the user stops them.

    Raises:
        MassError: a port is in use, a process died, or it does not become ready.
    """
    address = parse_address(settings.listen, "--listen")
    check_port_is_free(address, "--listen")
    check_port_is_free(parse_address(settings.http, "--http", DEFAULT_HTTP_PORT), "--http")
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    stop = StopSignals()
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        client = Client(address, note, patience_seconds=0.0)
        stack.callback(client.close)
        controller = _start_controller(settings)
        stack.callback(end, controller, stop, note)
        note(f"controller on {address}, log in {controller.log_path}")
        name = settings.node_name or host_name()
        # Both at once: the agent loads while the controller does, and knocks until it is let in.
        agent = _start_agent(settings, address, name)
        # Leaves first, so that the controller still hears how the agent's tasks ended.
        stack.callback(end, agent, stop, note)
        note(f"agent {name}, log in {agent.log_path}")
        if not wait_until(lambda: answers(client), [controller, agent], stop):
            return
        if not wait_until(lambda: is_ready(client, name), [controller, agent], stop):
            return
        note("both are ready; Ctrl-C ends them")
        screen = stack.enter_context(_screen(settings, address))
        while not stop.wait(FRAME_SECONDS):
            _check(controller, agent)
            try:
                display_results(take_snapshot(client), screen)
            except Unreachable:
                # A dead controller is told from a slow one by the check of the next round.
                continue


def check_port_is_free(address: Address, flag: str) -> None:
    """Return when nobody listens there.

    Raises:
        MassError: the port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: an old connection that still lingers there is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise MassError(
                f"port {address.port} of {address.host} cannot be used ({error.strerror}); "
                f"end who has it, or choose another with {flag}",
                port=address.port,
            ) from error


def host_name() -> str:
    """Return this machine's short name as a node's name, or `local` where it has no usable one."""
    name = socket.gethostname().partition(".")[0]
    return name if re.fullmatch(r"[A-Za-z0-9._-]{1,63}", name) else NODE_NAME_DEFAULT


def _start_controller(settings: DevSettings) -> Child:
    arguments = [sys.executable, "-m", "controller.cli", "controller", *settings.controller_flags]
    return Child("controller", arguments, settings.data / "controller.log")


def _start_agent(settings: DevSettings, address: Address, name: str) -> Child:
    arguments = [sys.executable, "-m", "agent.main", "--controller", str(address), "--name", name]
    arguments += ["--work-dir", str(settings.data / f"agent-{name}"), *settings.agent_flags]
    return Child("agent", arguments, settings.data / "agent.log")


@contextmanager
def _screen(settings: DevSettings, address: Address) -> Iterator[Screen]:
    if settings.plain or not sys.stdout.isatty():
        yield PlainScreen(lambda line: print(line, flush=True))
        return
    from rich.console import Console

    with LiveScreen(Console(), f"MASS  controller {address}  data {settings.data}") as screen:
        yield screen


def wait_until(ready: Callable[[], bool], children: list[Child], stop: StopSignals) -> bool:
    """Return True once ready, False when the user stops the waiting."""
    give_up_at = time.monotonic() + READY_SECONDS
    while not ready():
        _check(*children)
        if time.monotonic() > give_up_at:
            child = children[-1]
            raise NotReady(
                f"the {child.name} is not ready after {READY_SECONDS:.0f} s; see {child.log_path}"
            )
        if stop.wait(0.1):
            return False
    return True


def answers(client: Client) -> bool:
    """Say whether the controller answers."""
    try:
        client.pool()
    except Unreachable:
        return False
    return True


def is_ready(client: Client, node_id: str) -> bool:
    """Say whether a node takes tasks."""
    try:
        nodes = client.nodes()
    except Unreachable:
        return False
    return any(node.id == node_id and node.state == types_pb2.NODE_STATE_READY for node in nodes)


def _check(*children: Child) -> None:
    for child in children:
        child.check()


def end(child: Child, stop: StopSignals, note: Callable[[str], None]) -> None:
    """Ask a process to end and wait for it; say when it had to be killed."""
    child.terminate()
    if not child.wait(stop):
        note(f"the {child.name} did not end when asked and was killed; see {child.log_path}")
