"""The demonstration: a small real workload, told in sentences as it happens.

It starts a controller and an agent of its own in a temporary directory, as `mass dev` does, and
ends everything it started. The rule: each claim of the summary is checked against what was seen,
and the exit code says whether all of them hold.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mass.units import size_words
from mass.v1 import types_pb2

from controller.cli.address import Address
from controller.cli.children import Child, StopSignals
from controller.cli.client import Client
from controller.cli.dev import answers, end, is_ready, wait_until
from controller.cli.output import print_table
from controller.cli.session import user_name
from controller.cli.story import Life, NotAsTold, Seen, Story
from controller.core.errors import MassError
from controller.core.limits import MIB

NODE = "demo"
ELEMENTS, AT_ONCE = 6, 2
AVAILABLE_MIN_BYTES = 2048 * MIB
PROMISE_MIN_BYTES = 1024 * MIB
NOTICE_SECONDS, TRIES_MAX = 5.0, 3  # for the alert; other programs may spoil a try
SETTLE_SECONDS = 1.5  # until the memory of an ended program is measured as free
HOG_SECONDS = 2.0  # how long it stays when all about it is told
HOG_MIN_BYTES, HOG_MAX_BYTES = 400 * MIB, 1024 * MIB
ALERT = "ForeignMemory"
FIRST_RULES = """\
groups:
- name: demo
  rules:
  - {alert: NodeNearlyFull, expr: mem_percent > 98}
"""
# A number of MiB, so that the value people read is one.
FOREIGN_RULE = f"""\
  - alert: {ALERT}
    expr: mem_foreign / MiB > %d
    annotations: {{summary: "programs that are no tasks use {{{{ $value }}}} MiB there"}}
"""
# Holds its memory until its standard input ends, at the latest with the demonstration.
HOG = """\
import sys
block = bytearray(int(sys.argv[1]))
for at in range(0, len(block), 4096): block[at] = 1
print("holding", flush=True)
sys.stdin.read()
"""
HUNGRY = """\
import time
block = bytearray(300 << 20)
for at in range(0, len(block), 4096): block[at] = 1
time.sleep(3)
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """What was announced, whether it was seen, and with which values."""

    what: str
    holds: bool
    seen: str


def run_demo(
    tell: Callable[[str], None],
    note: Callable[[str], None],
    agent_entry: Sequence[str] = ("-m", "agent.main"),
) -> bool:
    """Run it, at most a minute, and return whether everything went as told.

    Raises:
        MassError: too little memory is available, or something did not happen in time.
    """
    stop = StopSignals()
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mass-demo-")))
        rules = directory / "rules.yaml"
        rules.write_text(FIRST_RULES)
        address = Address("127.0.0.1", _free_port())
        client = Client(address, note, patience_seconds=0.0)
        stack.callback(client.close)
        controller = _start_controller(directory, address, rules)
        stack.callback(end, controller, stop, note)
        if not wait_until(lambda: answers(client), [controller], stop):
            raise KeyboardInterrupt
        watching = Client(address, note)
        stack.callback(watching.close)
        agent = _start_agent(directory, address, agent_entry)
        stack.callback(end, agent, stop, note)
        story = Story(watching, tell, (controller, agent), stop)
        story.say(f"a controller (process {controller.pid}) and an agent (process {agent.pid}) of"
                  f" their own begin in {directory}")  # fmt: skip
        if not wait_until(lambda: is_ready(client, NODE), [controller, agent], stop):
            raise KeyboardInterrupt
        story.until(
            lambda: (
                story.seen.nodes.get(NODE) == "READY" and client.node(NODE).memory_foreign_bytes > 0
            ),
            f"a cycle has seen node {NODE}",
        )
        _introduce(story, client.node(NODE))
        claims = _tasks(story, client)
        claims += _foreign_memory(story, client, controller, rules)
        story.say("that was all; controller and agent end, and their directory goes")
    _print_summary(story.seen, claims)
    return all(claim.holds for claim in claims)


def _start_controller(directory: Path, address: Address, rules: Path) -> Child:
    flags = ["--config", os.devnull, "--listen", str(address), "--rules", str(rules)]
    flags += ["--http", f"127.0.0.1:{_free_port()}", "--data", str(directory / "data")]
    arguments = [sys.executable, "-m", "controller.cli", "controller", *flags]
    return Child("controller", arguments, directory / "controller.log")


def _start_agent(directory: Path, address: Address, entry: Sequence[str]) -> Child:
    flags = ["--config", os.devnull, "--controller", str(address), "--name", NODE]
    flags += ["--work-dir", str(directory / "agent"), "--sample", "200ms"]
    return Child("agent", [sys.executable, *entry, *flags], directory / "agent.log")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _introduce(story: Story, node: types_pb2.Node) -> None:
    """Say what the node is like.

    Raises:
        MassError: the demonstration needs more memory than there is.
    """
    available, promise = node.memory_available_bytes, node.memory_promise_bytes
    if available < AVAILABLE_MIN_BYTES or promise < PROMISE_MIN_BYTES:
        raise MassError(
            f"the demonstration needs {size_words(AVAILABLE_MIN_BYTES)} of available memory, of"
            f" which MASS can promise {size_words(PROMISE_MIN_BYTES)}; here"
            f" {size_words(available)} are available and {size_words(promise)} can be promised",
            available_bytes=available,
            promise_bytes=promise,
        )
    how = (
        "an agent without rights that looks four times a second (the watchdog), so a task may be"
        " over its limit for a moment"
        if node.enforcement == "watchdog"
        else f"the kernel ({node.enforcement})"
    )
    story.say(f"node {NODE} has {size_words(node.memory_total_bytes)}, of which MASS can promise"
              f" {size_words(promise)} now; limits are enforced by {how}")  # fmt: skip


def _tasks(story: Story, client: Client) -> list[Claim]:
    """Run the array, the task that waits for it, and the one that outgrows its limit."""
    story.say(
        f"submitted: 'prepare', an array of {ELEMENTS} tasks, {AT_ONCE} at once; 'combine',"
        " which waits for all of them; 'hungry', limited to 100 MiB, which takes 300 MiB"
    )
    prepare = _spec("prepare", 32, "sleep", "1", key="prepare")
    prepare.array.indexes, prepare.array.running_max = f"1-{ELEMENTS}", AT_ONCE
    combine = _spec("combine", 32, "sleep", "0.5")
    combine.after.add(key="prepare", kind=types_pb2.DEPENDENCY_KIND_OK)
    hungry = _spec("hungry", 100, sys.executable, "-c", HUNGRY)
    hungry.memory_limit_bytes = 100 * MIB  # its own, never raised: else it would come again
    client.submit([prepare, combine, hungry], user_name())
    seen = story.seen
    story.until(
        lambda: len(seen.tasks) >= ELEMENTS + 2 and all(life.end for life in seen.tasks.values()),
        "the array, the task behind it and the hungry one have ended",
        30.0,
    )
    elements, (after,), (oom,) = (seen.named(name) for name in ("prepare", "combine", "hungry"))
    done = sum(1 for life in elements if life.end == "SUCCEEDED")
    most = seen.running_max.get("prepare", 0)
    last_end_ns = max(life.ended_at_ns for life in elements)
    waited = after.end == "SUCCEEDED" and after.started_at_ns >= last_end_ns
    return [
        Claim(
            f"an array of {ELEMENTS} runs, never more than {AT_ONCE} at once",
            done == len(elements) == ELEMENTS and most <= AT_ONCE,
            f"{done} have succeeded, at most {most} at once",
        ),
        Claim("the task behind it begins when all have succeeded", waited,
              f"{after.end}, {(after.started_at_ns - last_end_ns) / 1e6:.0f} ms after them"),
        Claim("the task that outgrows its limit ends, and only it",
              oom.end == "OUT_OF_MEMORY" and done == ELEMENTS, f"{oom.end}: {oom.reason}"),
    ]  # fmt: skip


def _foreign_memory(story: Story, client: Client, controller: Child, rules: Path) -> list[Claim]:
    """Let a program that is no task take memory: an alert fires, a task has to wait for it."""
    story.until(lambda: client.node(NODE).memory_reserved_bytes == 0, "nothing is reserved")
    for _ in range(TRIES_MAX):
        before = client.node(NODE)
        hog_bytes = min(max(before.memory_available_bytes // 8, HOG_MIN_BYTES), HOG_MAX_BYTES)
        bound_mib = (before.memory_foreign_bytes + hog_bytes // 2) // MIB
        _reload_rules(story, controller, rules, bound_mib)
        story.say(f"a new rule fires alert {ALERT} above {size_words(bound_mib * MIB)} of foreign"
                  f" memory; {size_words(before.memory_foreign_bytes)} are used now")  # fmt: skip
        with _hog(hog_bytes) as hog:
            taken = size_words(hog_bytes)
            story.say(f"a program that is no task (process {hog.pid}) takes {taken}")
            if _is_noticed(story, client, before.memory_foreign_bytes + hog_bytes * 3 // 4):
                large, why = _wait_for_memory(story, client, hog_bytes)
                freed_at_ns = time.time_ns()
                break
        # The bound was measured while others used more: it cannot be passed any more.
        story.say("other programs have freed memory meanwhile; once more, from what is used now")
        story.watch(SETTLE_SECONDS)
    else:
        raise NotAsTold(f"alert {ALERT} has not fired: other programs free too much memory")
    story.say("that program has ended and its memory is free again")
    alerts, life = story.seen.alerts[ALERT], story.seen.tasks[large]
    story.until(
        lambda: alerts[-1] == "RESOLVED" and bool(life.end),
        f"alert {ALERT} is resolved and the large task has run",
    )
    return [
        Claim(f"alert {ALERT} fires and is resolved", alerts[-2:] == ["FIRING", "RESOLVED"],
              ", ".join(alerts)),
        Claim("a task waits for memory that a program outside MASS uses", "foreign_used" in why,
              "told with the numbers, see above" if "foreign_used" in why else why),
        Claim("it runs when enough memory is free again", life.end == "SUCCEEDED",
              f"{life.end}, {_begin(life, freed_at_ns)}"),
    ]  # fmt: skip


def _begin(life: Life, freed_at_ns: int) -> str:
    """Say when the task began, which other programs of the machine may have brought about."""
    after_ms = (life.started_at_ns - freed_at_ns) / 1e6
    if after_ms >= 0:
        return f"begun {after_ms:.0f} ms after that program's end"
    return f"begun {-after_ms:.0f} ms before that program's end: others freed memory"


def _reload_rules(story: Story, controller: Child, rules: Path, bound_mib: int) -> None:
    count = len(story.seen.reloads)
    rules.write_text(FIRST_RULES + FOREIGN_RULE % bound_mib)
    os.kill(controller.pid, signal.SIGHUP)
    story.until(lambda: len(story.seen.reloads) > count, "the controller reads its rules again")


def _is_noticed(story: Story, client: Client, foreign_bytes: int) -> bool:
    """Say whether so much is soon seen as foreign, and the alert on it fires."""

    def noticed() -> bool:
        alerts = story.seen.alerts.get(ALERT, [""])
        return alerts[-1] == "FIRING" and client.node(NODE).memory_foreign_bytes >= foreign_bytes

    try:
        story.until(noticed, f"alert {ALERT} fires", NOTICE_SECONDS)
    except NotAsTold:
        return False
    return True


def _wait_for_memory(story: Story, client: Client, hog_bytes: int) -> tuple[str, str]:
    """Submit a task that must wait until that much is free again; return its id and why."""
    # More than can be promised now, less than when that program has gone.
    asked_bytes = client.node(NODE).memory_promise_bytes + hog_bytes // 2
    spec = _spec("large", asked_bytes // MIB, "sleep", "0.5")
    spec.memory_exact = True  # else only a part of it would be set aside
    (large,) = client.submit([spec], user_name())
    story.say(f"submitted: 'large', task {large}, which asks for {size_words(asked_bytes)}")
    why = _refusal(story, client, large)
    story.say(f"mass task why {large} says: {why}")
    story.watch(HOG_SECONDS)
    return large, why


def _spec(name: str, request_mib: int, *command: str, key: str = "") -> types_pb2.TaskSpec:
    return types_pb2.TaskSpec(
        name=name, memory_request_bytes=request_mib * MIB, cpus=0.1, command=command, key=key
    )


@contextmanager
def _hog(size_bytes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Let a program use that much memory in this block; it holds all of it when the block begins.

    Raises:
        MassError: it could not get its memory.
    """
    with subprocess.Popen(
        [sys.executable, "-c", HOG, str(size_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C is for the demonstration, which ends it
    ) as hog:
        try:
            assert hog.stdout is not None
            if hog.stdout.readline() != b"holding\n":
                raise MassError(f"no program could take {size_words(size_bytes)} of memory")
            yield hog
        finally:
            hog.kill()


def _refusal(story: Story, client: Client, task_id: str) -> str:
    """Return the sentence that says why a task waits, once the controller has looked at it."""
    found: list[str] = []

    def refused() -> bool:
        answer = client.explain(task_id)
        found[:] = [answer.task.reason or answer.sentences[0]]
        return answer.task.reason_code != "WAITING"

    story.until(refused, f"the controller has looked at task {task_id}")
    return found[0]


def _print_summary(seen: Seen, claims: Sequence[Claim]) -> None:
    print("\nWhat was told, and what was seen:\n")
    print_table(
        ("", "TOLD", "SEEN"),
        [("ok" if claim.holds else "NOT", claim.what, claim.seen) for claim in claims],
    )
    print()
    print_table(("TASK", "NAME", "END", "RAN"), [_row(*item) for item in seen.tasks.items()])


def _row(label: str, life: Life) -> tuple[str, str, str, str]:
    ran_s = (life.ended_at_ns - life.started_at_ns) / 1e9 if life.started_at_ns else 0.0
    return label, life.name, life.end, f"{ran_s:.1f} s"
