"""Stories: files of commands and what each of them made the controller save, send and tell.

A line that begins with `> ` is a command; the lines below it, up to an empty one, are what came of
it; other lines are text. `play` runs one and returns the file as it would be written now. Words of
a command are `key=value`, or stand alone.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from mass.units import size_words
from support.builders import rule, size, span, spec
from support.harness import SMALL, Harness

from allocator.pool import Block, PoolExhausted
from controller import views
from controller.core import explain
from controller.core.commands import (
    Command,
    ForgetNode,
    ForgetReservation,
    NoteGuardStep,
    Notify,
    Reply,
    SaveAlert,
    SaveAttempt,
    SaveNode,
    SaveOutput,
    SaveReservation,
    SaveSubmission,
    SaveTask,
    SendAcknowledgement,
    SendAssignment,
    SendFreeze,
    SendStop,
    SendWelcome,
)
from controller.core.errors import MassError
from controller.core.events import GuardActed
from controller.core.explain_memory import step_text
from controller.core.limits import Limits
from controller.core.model import (
    Dependency,
    DependencyKind,
    GuardStep,
    GuardStepKind,
    KnownAttempt,
    MemoryLimits,
    MemoryReservation,
    Node,
    OomCause,
    OutputStream,
    TaskAction,
    TaskState,
)
from controller.core.promise import PRESSURES
from controller.core.rules import Rule
from controller.core.scheduler import Scheduler

Words = dict[str, str]
MARK = "> "
SHOWN_MAX = 16


def play(text: str, wrap: Callable[[Scheduler], Scheduler] | None = None) -> str:
    """Run a story and return it with what came of each command.

    `wrap` may put another scheduler in the place of each one that the story makes.
    """
    lines: list[str] = []
    story = Story(wrap or (lambda scheduler: scheduler))
    skipping = False
    try:
        for line in text.splitlines():
            if line.startswith(MARK):
                lines += [line, *story.run(line.removeprefix(MARK))]
                skipping = True
            elif not skipping or not line:
                lines.append(line)
                skipping = False
    finally:
        story.close()
    return "\n".join(lines) + "\n"


class Story:
    """The world of one story; `limits`, `rule` and `pool` come before anything else."""

    def __init__(self, wrap: Callable[[Scheduler], Scheduler]) -> None:
        self._wrap = wrap
        self._limits = SMALL
        self._rules: list[Rule] = []
        self._pool_bytes = 4 << 20
        self._harness: Harness | None = None
        self._hogs: list[Block] = []

    @property
    def world(self) -> Harness:
        """Return the harness, made at the first need."""
        if self._harness is None:
            self._harness = Harness(self._limits, tuple(self._rules), self._pool_bytes)
            self._harness.scheduler = self._wrap(self._harness.scheduler)
        return self._harness

    def close(self) -> None:
        """Check everything a last time and let go of it."""
        if self._harness is not None:
            self._harness.close()

    def run(self, line: str) -> list[str]:
        """Carry out one command and return what came of it, as lines."""
        name, *rest = shlex.split(line)
        words = {key: value for key, found, value in (w.partition("=") for w in rest) if found}
        plain = [word for word in rest if "=" not in word]
        if self._harness is not None:
            self._harness.commands = []
        try:
            shown = getattr(self, f"_do_{name}")(plain, words)
        except MassError as error:
            shown = [f"refused {error.reason}: {error.message}"]
        if self._harness is not None:
            self._harness.check()
        lines = shown if shown is not None else show(self.world.commands)
        return lines or ["nothing"]

    # --- before the beginning ---

    def _do_limits(self, plain: list[str], words: Words) -> list[str]:
        times = {f.name for f in fields(Limits) if f.name.endswith("_ns")}
        values: dict[str, Any] = {
            key: span(value) if key in times else int(value)
            for key, value in words.items()
            if key != "memory_limits"
        }
        if "memory_limits" in words:
            values["memory_limits"] = MemoryLimits(words["memory_limits"])
        self._limits = replace(self._limits, **values)
        return ["ok"]

    def _do_rule(self, plain: list[str], words: Words) -> list[str]:
        name, *options = plain
        self._rules.append(
            rule(
                name,
                words["if"],
                hold=words.get("for", "0s"),
                keep=words.get("keep", "0s"),
                block="block" in options,
            )
        )
        return ["ok"]

    def _do_pool(self, plain: list[str], words: Words) -> list[str]:
        self._pool_bytes = size(plain[0])
        return ["ok"]

    # --- what happens ---

    def _do_join(self, plain: list[str], words: Words) -> None:
        (node,) = plain
        options: dict[str, Any] = dict(words)
        if "cpus" in words:
            options["cpus"] = float(words["cpus"])
        options["gpus"] = int(words.get("gpus", "0"))
        labels = words.get("labels", "").split(",")
        options["labels"] = dict(label.split(":") for label in labels if label)
        known = [word.split("/") for word in words.get("attempts", "").split(",") if word]
        options["attempts"] = tuple(
            KnownAttempt(int(task), int(number.rstrip("!")), number.endswith("!"))
            for task, number in known
        )
        self.world.join(node, **options)

    def _do_sample(self, plain: list[str], words: Words) -> None:
        (node,) = plain
        tasks: dict[int, str | int] = {int(i): v for i, v in words.items() if i.isdigit()}
        growth = size(words["growth"]) if "growth" in words else None
        self.world.sample(node, used=words.get("used", "0B"), tasks=tasks, growth=growth)

    def _do_guard(self, plain: list[str], words: Words) -> None:
        """A node's guard does something to a task (0: to the node)."""
        node, kind = plain
        task_id = int(words.get("task", "0"))
        step = GuardStep(
            self.world.now_ns,
            GuardStepKind[kind],
            task_id,
            self.world.task(task_id).attempt if task_id else 0,
            size(words.get("used", "0B")),
            size(words.get("limit", "0B")),
            float(size(words.get("growth", "0B"))),
            float(words["full"]) if "full" in words else None,
            None,
            size(words.get("uses", "0B")),
            words.get("reason", ""),
        )
        self.world.turn(GuardActed(self.world.now_ns, node, (step,)))

    def _do_stop_intake(self, plain: list[str], words: Words) -> None:
        """A node's sample says that its guard wants no new task."""
        (node,) = plain
        self.world.sample(node, used=words.get("used", "0B"), intake_stopped=True)

    def _do_leave(self, plain: list[str], words: Words) -> None:
        self.world.leave(plain[0])

    def _do_cordon(self, plain: list[str], words: Words) -> None:
        self.world.cordon(plain[0], words.get("reason", ""))

    def _do_uncordon(self, plain: list[str], words: Words) -> None:
        self.world.uncordon(plain[0])

    def _do_submit(self, plain: list[str], words: Words) -> None:
        options: dict[str, Any] = dict(words)
        count, request_id = int(options.pop("count", "1")), options.pop("id", "")
        user = options.pop("user", "ada")
        options["after"] = _dependencies(options.pop("after", ""))
        for key, kind in (
            ("cpus", float), ("priority", int), ("retries", int), ("gpus", int), ("at_once", int),
        ):  # fmt: skip
            if key in options:
                options[key] = kind(options[key])
        options["time_limit"] = options.pop("time", None)
        wanted = spec(
            requeue="no-requeue" not in plain,
            hold="hold" in plain,
            pack="pack" in plain,
            exact="exact" in plain,
            **options,
        )
        self.world.submit(*[wanted] * count, request_id=request_id, user=user)

    def _do_graph(self, plain: list[str], words: Words) -> None:
        """Submit small tasks in one call, each with what it waits for: -1 is the first."""
        self.world.submit(*[spec("64MiB", after=_dependencies(word)) for word in plain])

    def _do_control(self, plain: list[str], words: Words) -> None:
        action, *ids = plain
        priority = int(words.get("priority", "0"))
        self.world.control(TaskAction(action), *map(int, ids), priority=priority)

    def _do_drain(self, plain: list[str], words: Words) -> None:
        self.world.drain(plain[0], words.get("deadline", 0))

    def _do_forget(self, plain: list[str], words: Words) -> None:
        self.world.forget(plain[0])

    def _do_reserve(self, plain: list[str], words: Words) -> None:
        self.world.reserve(words.pop("mem"), **words)

    def _do_renew(self, plain: list[str], words: Words) -> None:
        self.world.renew(int(plain[0]), words["ttl"])

    def _do_release(self, plain: list[str], words: Words) -> None:
        self.world.release(int(plain[0]))

    def _do_frozen(self, plain: list[str], words: Words) -> None:
        self.world.frozen(int(plain[0]), "paused" in plain)

    def _do_cancel(self, plain: list[str], words: Words) -> None:
        self.world.cancel(*map(int, plain), grace=words.get("grace", "10s"))

    def _do_started(self, plain: list[str], words: Words) -> None:
        self.world.started(
            int(plain[0]),
            node=words.get("node", ""),
            attempt=int(words.get("attempt", "0")),
            stream=int(words["stream"]) if "stream" in words else None,
        )

    def _do_ended(self, plain: list[str], words: Words) -> None:
        task_id, *flags = plain
        self.world.ended(
            int(task_id),
            node=words.get("node", ""),
            attempt=int(words.get("attempt", "0")),
            exit_code=int(words.get("code", "0")),
            signal=int(words["signal"]) if "signal" in words else None,
            peak=words.get("peak", 0),
            oom_kills=int(words.get("kills", "0")),
            cause=OomCause[words.get("cause", "NONE")],
            timed_out="timed-out" in flags,
            stopped="stopped" in flags,
            start_error=words.get("error", ""),
            stdout=words.get("stdout", "").encode(),
            error_text=words.get("says", ""),
            stream=int(words["stream"]) if "stream" in words else None,
        )

    def _do_advance(self, plain: list[str], words: Words) -> None:
        self.world.advance(plain[0])

    def _do_cycle(self, plain: list[str], words: Words) -> None:
        self.world.cycle()

    def _do_restart(self, plain: list[str], words: Words) -> None:
        world = self.world
        self._hogs.clear()
        world.restart()
        world.scheduler = self._wrap(world.scheduler)

    # --- the pool ---

    def _do_fill(self, plain: list[str], words: Words) -> list[str]:
        """Take all of the pool but a little, as if much else lay in it."""
        pool, left = self.world.pool, size(words.get("leave", "0B"))
        for block_bytes in (1 << 20, 1 << 16, 1 << 12, 1 << 8, 64):
            while pool.statistics().largest_free_bytes >= block_bytes + left:
                try:
                    self._hogs.append(pool.allocate(block_bytes))
                except PoolExhausted:
                    break
        return ["ok"]

    def _do_empty(self, plain: list[str], words: Words) -> list[str]:
        for block in self._hogs:
            self.world.pool.free(block)
        self._hogs.clear()
        return ["ok"]

    def _do_output(self, plain: list[str], words: Words) -> list[str]:
        task_id, count = int(plain[0]), size(words["bytes"])
        cluster = self.world.cluster
        attempt = self.world.task(task_id).attempt
        cluster.append_tail(task_id, attempt, OutputStream.STDOUT, b"x" * count)
        return self._do_memory(plain, words)

    def _do_memory(self, plain: list[str], words: Words) -> list[str]:
        cluster = self.world.cluster
        kept = "stopped" if cluster.tails.is_stopped else f"{len(cluster.tails)} kept"
        return [f"histories at level {cluster.history.series.level}, tails {kept}"]

    # --- what is shown ---

    def _do_why(self, plain: list[str], words: Words) -> list[str]:
        world, task = self.world, self.world.task(int(plain[0]))
        results = world.scheduler.displayed
        refusals = explain.node_refusals(world.cluster, results, task)
        return [
            *explain.sentences(world.cluster, results, task, world.now_ns),
            *(f"{refusal.node_id} {refusal.code}: {refusal.reason}" for refusal in refusals),
        ]

    def _do_tasks(self, plain: list[str], words: Words) -> list[str]:
        return [
            f"{task.id} {task.state.value} attempt {task.attempt}"
            + (f" on {task.node_id}" if task.node_id else "")
            for task in self.world.saved.tasks.values()
        ]

    def _do_nodes(self, plain: list[str], words: Words) -> list[str]:
        world = self.world
        results = world.scheduler.displayed
        assert results is not None
        lines = []
        for node_id, record in sorted(world.cluster.nodes.items()):
            view = views.node_view(world.cluster, results, record, world.now_ns)
            kept = record.slot in world.cluster.kept_slots.values()
            pressure = PRESSURES[int(results.promises.pressure[record.slot])]
            lines.append(
                f"{node_id} {record.state.value} {record.node.scheduling.value}"
                f" pressure {pressure.value}, can promise {size_words(view.memory_promise_bytes)},"
                f" foreign {size_words(view.memory_foreign_bytes)},"
                f" reserved {size_words(view.memory_reserved_bytes)}"
                + (", kept free" if kept else "")
            )
        return lines

    def _do_alerts(self, plain: list[str], words: Words) -> list[str]:
        return [
            f"{alert.state.value} {alert.name} on {alert.node_id}"
            for alert in self.world.cluster.alerts.listing()
        ]


def _dependencies(text: str) -> tuple[Dependency, ...]:
    """Return what "3,-1:any" says; "none" says nothing."""
    found = []
    for part in text.split(","):
        number, _, kind = part.partition(":")
        if number not in ("", "none"):
            found.append(Dependency(int(number), DependencyKind(kind or "ok")))
    return tuple(found)


def show(commands: list[Command]) -> list[str]:
    """Return commands as lines, in their order; very many are only counted."""
    if len(commands) <= SHOWN_MAX:
        return [_line(command) for command in commands]
    counts = Counter(_kind(command) for command in commands)
    return [f"{count} x {kind}" for kind, count in counts.items()]


def _kind(command: Command) -> str:
    kind = type(command).__name__
    return f"{kind} {command.task.state.value}" if isinstance(command, SaveTask) else kind


def _line(command: Command) -> str:
    match command:
        case SaveTask(task):
            where = f" attempt {task.attempt} on {task.node_id}" if task.node_id else ""
            code = f" {task.reason_code}: {task.reason}" if task.reason_code else ""
            if task.ended and task.exit_code is not None:
                where += f" exit code {task.exit_code}"
            return f"saved task {task.id} {task.state.value}{where}{code}"
        case SaveAttempt(attempt):
            why = f": {attempt.reason}" if attempt.reason else ""
            return f"saved attempt {attempt.task_id}/{attempt.number} {attempt.outcome.value}{why}"
        case SaveOutput(task_id, number, stream, data):
            return f"saved output {task_id}/{number} {stream.value} {len(data)} bytes"
        case SaveNode(node):
            return f"saved node {node.id} {node.scheduling.value}"
        case ForgetNode(node_id):
            return f"forgot node {node_id}"
        case SaveReservation(reservation):
            return (
                f"saved reservation {reservation.id} of {size_words(reservation.memory_bytes)}"
                f" on {reservation.node_id}"
            )
        case ForgetReservation(reservation_id):
            return f"forgot reservation {reservation_id}"
        case SaveSubmission(known):
            return f"saved submission {known.request_id} {known.first_task_id} x {known.count}"
        case SaveAlert(alert):
            return f"saved alert {alert.name} on {alert.node_id} {alert.state.value}"
        case Notify(alert):
            summary = alert.annotations["summary"]
            return f"told {alert.state.value} {alert.name}: {summary}"
        case _:
            return _sent(command)


def _sent(command: Command) -> str:
    match command:
        case SendWelcome(node_id, sequence, forget):
            gone = "".join(f", forget {known.task_id}/{known.attempt}" for known in forget)
            return f"sent {node_id} welcome, acknowledged {sequence}{gone}"
        case SendAssignment(node_id, task):
            assert task.state is TaskState.ASSIGNED
            limit = f"limit {size_words(task.memory_limit_bytes or 0)}"
            if task.memory_elastic:
                own = f", {limit}" if task.memory_limit_bytes else ""
                peak = size_words(task.memory_expected_peak_bytes)
                size_text = size_words(task.memory_size_bytes)
                limit = f"elastic {size_text}, expected peak {peak}{own}"
            return f"sent {node_id} assign {task.id}/{task.attempt} {limit}"
        case SendStop(node_id, task_id, number, grace_ns):
            return f"sent {node_id} stop {task_id}/{number} grace {grace_ns / 1e9:g} s"
        case SendFreeze(node_id, task_id, number, paused):
            return f"sent {node_id} {'pause' if paused else 'resume'} {task_id}/{number}"
        case SendAcknowledgement(node_id, sequence):
            return f"sent {node_id} acknowledge {sequence}"
        case NoteGuardStep(node_id, step):
            return f"noted guard of {node_id}: {step_text(step)}"
        case Reply(value):
            named = isinstance(value, Node | MemoryReservation)
            return f"replied {value.id if named else value}"  # type: ignore[attr-defined]
    raise AssertionError(command)
