"""A real scheduler over a real small pool, a hand clock, and a memory of what was saved.

Each call is one turn of the engine: an event, then the cycle where it is wanted. What Save
commands said is kept like a store would, so that `restart` begins from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mass.v1 import agent_pb2
from support.builders import size, span

from allocator.pool import Pool
from controller import wire
from controller.core.cluster import Cluster
from controller.core.commands import (
    Command,
    ForgetNode,
    ForgetReservation,
    Reply,
    SaveAlert,
    SaveAttempt,
    SaveNode,
    SaveOutput,
    SaveReservation,
    SaveSubmission,
    SaveTask,
    SendAcknowledgement,
    SendWelcome,
)
from controller.core.events import (
    AttemptEnded,
    AttemptFrozen,
    AttemptStarted,
    Event,
    NodeCordoned,
    NodeDrained,
    NodeForgotten,
    NodeJoined,
    NodeLeft,
    NodeUncordoned,
    ReservationAsked,
    ReservationReleased,
    ReservationRenewed,
    TasksCancelled,
    TasksControlled,
    TasksSubmitted,
    Tick,
)
from controller.core.limits import Limits
from controller.core.model import (
    Alert,
    AlertState,
    Attempt,
    KnownAttempt,
    MemoryLimits,
    MemoryReservation,
    Node,
    OomCause,
    OutputStream,
    Submission,
    Task,
    TaskAction,
    TaskSpec,
    TaskState,
)
from controller.core.rules import Rule, RuleSet
from controller.core.scheduler import Scheduler

START_NS = 1_800_000_000_000_000_000
# Strict limits keep what a test declares as what is set aside; those about elastic ones say so.
SMALL = Limits(
    nodes_max=16,
    tasks_running_max=64,
    tasks_open_max=1_000,
    memory_limits=MemoryLimits.STRICT,
)
POOL_BYTES = 4 << 20


@dataclass(slots=True)
class Saved:
    """What a store would have after the Save commands so far."""

    tasks: dict[int, Task] = field(default_factory=dict)
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    outputs: dict[tuple[int, int, OutputStream], bytes] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    submissions: dict[str, Submission] = field(default_factory=dict)
    reservations: dict[int, MemoryReservation] = field(default_factory=dict)
    reservation_ids: set[int] = field(default_factory=set)  # of all there ever were
    alerts: dict[tuple[str, str, int], Alert] = field(default_factory=dict)

    def keep(self, command: Command) -> None:
        """Keep what a command says is to be saved."""
        match command:
            case SaveTask(task):
                before = self.tasks.get(task.id)
                assert before is None or not before.ended, f"task {task.id} ended twice"
                self.tasks[task.id] = task
            case SaveAttempt(attempt):
                key = (attempt.task_id, attempt.number)
                assert key not in self.attempts, f"attempt {key} ended twice"
                self.attempts[key] = attempt
            case SaveOutput(task_id, number, stream, data):
                self.outputs[task_id, number, stream] = data
            case SaveNode(node):
                self.nodes[node.id] = node
            case ForgetNode(node_id):
                del self.nodes[node_id]
            case SaveReservation(reservation):
                self.reservations[reservation.id] = reservation
                self.reservation_ids.add(reservation.id)
            case ForgetReservation(reservation_id):
                del self.reservations[reservation_id]
            case SaveSubmission(submission):
                self.submissions[submission.request_id] = submission
            case SaveAlert(alert) if alert.state is AlertState.INACTIVE:
                self.alerts.pop(alert.key, None)
            case SaveAlert(alert):
                self.alerts[alert.key] = alert


@dataclass(slots=True)
class Agent:
    """What the harness remembers of an agent: its last hello, and its count of reports."""

    hello: NodeJoined
    sequence: int = 0


class Harness:
    """A controller's core without its shells. Close it, or use it in a `with`."""

    def __init__(
        self,
        limits: Limits = SMALL,
        rules: tuple[Rule, ...] = (),
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        self.limits = limits
        self.rules = RuleSet(rules)
        self.pool_bytes = pool_bytes
        self.now_ns = START_NS
        self.saved = Saved()
        self.agents: dict[str, Agent] = {}
        self.commands: list[Command] = []  # of the last call
        self.everything: list[tuple[Command, ...]] = []  # of all calls
        self._streams = 0
        self._last_cycle_ns = 0
        self._begin()

    def _begin(self) -> None:
        self.pool = Pool(self.pool_bytes)
        self.cluster = Cluster(self.limits, self.rules, self.pool)
        self.scheduler = Scheduler(self.cluster)

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.check()
        self.close()

    def close(self) -> None:
        """Give the pool back."""
        self.cluster.close()
        self.pool.close()

    def check(self) -> None:
        """Assert every invariant, and that the store could begin from what is saved."""
        self.cluster.check()
        still_open = {i: task for i, task in self.saved.tasks.items() if not task.ended}
        assert still_open == self.cluster.tasks, "what is saved is what is known"
        assert {i: r.node for i, r in self.cluster.nodes.items()} == self.saved.nodes
        assert self.cluster.memory_reservations == self.saved.reservations

    # --- turns ---

    def turn(self, *events: Event) -> list[Command]:
        """Handle events and then run the cycle where it is wanted; return what was asked for.

        Raises:
            MassError: an event was refused, which changes nothing.
        """
        self.commands = []
        for event in events:
            self._carry_out(self.scheduler.handle(event))
        late = self.now_ns - self._last_cycle_ns >= self.limits.interval_ns
        if self.scheduler.cycle_wanted or late:
            self.run_cycle()
        self.everything.append(tuple(self.commands))
        return self.commands

    def run_cycle(self) -> None:
        """Run the cycle now."""
        self._last_cycle_ns = self.now_ns
        self._carry_out(self.scheduler.run_cycle(self.now_ns))

    def cycle(self) -> list[Command]:
        """Run the cycle as a turn of its own."""
        self.commands = []
        self.run_cycle()
        self.everything.append(tuple(self.commands))
        return self.commands

    def _carry_out(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            self.saved.keep(command)
        self.commands += commands

    def advance(self, time: str | int) -> list[Command]:
        """Let time pass and tick once at its end."""
        self.now_ns += span(time)
        return self.turn(Tick(self.now_ns))

    def restart(self) -> list[Command]:
        """End this controller and begin another from what is saved; all streams are gone."""
        self.close()
        self._begin()
        saved = self.saved
        self.cluster.restore(
            tasks=tuple(saved.tasks[i] for i in sorted(saved.tasks) if not saved.tasks[i].ended),
            nodes=tuple(saved.nodes[i] for i in sorted(saved.nodes)),
            alerts=tuple(saved.alerts[key] for key in sorted(saved.alerts)),
            submissions=tuple(saved.submissions.values()),
            next_task_id=max(saved.tasks, default=0) + 1,
            now_ns=self.now_ns,
            reservations=tuple(saved.reservations[i] for i in sorted(saved.reservations)),
            next_reservation_id=max(saved.reservation_ids, default=0) + 1,
        )
        self.cluster.learn(
            sorted(saved.attempts.values(), key=lambda a: (a.ended_at_ns, a.task_id, a.number))
        )
        return self.cycle()

    # --- nodes ---

    def join(
        self,
        node: str,
        *,
        total: str | int = "8GiB",
        capacity: str | int | None = None,
        cpus: float = 8.0,
        machine: str = "",
        instance: str = "i1",
        attempts: tuple[KnownAttempt, ...] = (),
        labels: Mapping[str, str] | None = None,
        gpus: int = 0,
        cluster_id: str = "",
        holds_ahead: bool = False,
    ) -> list[Command]:
        """Say hello as an agent; the stream of one that ran here before has ended by then."""
        record = self.cluster.nodes.get(node)
        if record is not None and record.stream is not None:
            same_machine = record.node.machine_id == (machine or f"machine-of-{node}")
            if same_machine and record.node.instance_id != instance:
                self.leave(node)
        self._streams += 1
        event = NodeJoined(
            at_ns=self.now_ns,
            node_id=node,
            instance_id=instance,
            machine_id=machine or f"machine-of-{node}",
            boot_id="boot",
            agent_version="1",
            memory_total_bytes=size(total),
            memory_declared_bytes=None if capacity is None else size(capacity),
            cpus=cpus,
            enforcement="watchdog",
            attempts=attempts,
            stream=self._streams,
            labels=labels or {},
            gpus=gpus,
            cluster_id=cluster_id,
            holds_ahead=holds_ahead,
        )
        commands = self.turn(event)
        before = self.agents.get(node)
        same = before is not None and before.hello.instance_id == instance
        self.agents[node] = Agent(event, before.sequence if before is not None and same else 0)
        return commands

    def sample(
        self,
        node: str,
        *,
        used: str | int = 0,
        tasks: Mapping[int, str | int] | None = None,
        growth: float | None = None,
        cycle: bool = True,
        intake_stopped: bool = False,
    ) -> list[Command]:
        """Send one sample of a node through the wire's own code, and run the cycle it asks for.

        `tasks` are the memory readings of the attempts it runs; `used` includes them.
        """
        total = self.agents[node].hello.memory_total_bytes
        readings = {i: size(reading) for i, reading in (tasks or {}).items()}
        known = self.cluster.tasks
        message = agent_pb2.Sample(
            taken_at_unix_ns=self.now_ns,
            memory_total_bytes=total,
            memory_available_bytes=total - size(used),
            cpu_percent=1.0,
            task_ids=readings,
            task_attempts=[known[i].attempt if i in known else 1 for i in readings],
            task_memory_used_bytes=readings.values(),
            intake_stopped=intake_stopped,
        )
        if growth is not None:
            message.memory_growth_bytes_per_second = growth
        record = self.cluster.nodes[node]
        wire.write_samples(
            self.cluster, record, agent_pb2.SampleBatch(samples=[message]), self.now_ns
        )
        return self.cycle() if cycle else []

    def ready(self, node: str, **hello: object) -> list[Command]:
        """Join and send a first sample: from then on the node takes tasks."""
        self.join(node, **hello)  # type: ignore[arg-type]
        return self.sample(node)

    def leave(self, node: str, goodbye: bool = False) -> list[Command]:
        """End the node's stream."""
        stream = self.agents[node].hello.stream
        return self.turn(NodeLeft(self.now_ns, node, stream, "gone", goodbye))

    def cordon(self, node: str, reason: str = "repair") -> list[Command]:
        """Keep new tasks off a node."""
        return self.turn(NodeCordoned(self.now_ns, node, reason, "ada"))

    def uncordon(self, node: str) -> list[Command]:
        """Let new tasks onto a node again."""
        return self.turn(NodeUncordoned(self.now_ns, node, "ada"))

    # --- tasks ---

    def submit(
        self,
        *specs: TaskSpec,
        request_id: str = "",
        user: str = "ada",
        outcomes: Mapping[int, frozenset[TaskState]] | None = None,
        unfinished: Iterable[int] = (),
        ends_seen: int | None = None,
    ) -> tuple[int, ...]:
        """Submit tasks and return their ids. How things ended is looked up in what is saved."""
        if outcomes is None:
            outcomes = self._outcomes(specs)
        seen = frozenset(unfinished)
        self.turn(TasksSubmitted(self.now_ns, request_id, user, specs, outcomes, seen, ends_seen))
        replies = [command.value for command in self.commands if isinstance(command, Reply)]
        assert isinstance(replies[0], tuple)
        return replies[0]

    def _outcomes(self, specs: Iterable[TaskSpec]) -> dict[int, frozenset[TaskState]]:
        return {
            wanted.task_id: frozenset(
                task.state
                for task in self.saved.tasks.values()
                if task.ended and wanted.task_id in (task.id, task.array_id)
            )
            for spec in specs
            for wanted in spec.after
        }

    def control(self, action: TaskAction, *task_ids: int, priority: int = 0) -> tuple[str, ...]:
        """Hold, release, pause, resume or change the priority; return the refusals."""
        self.turn(TasksControlled(self.now_ns, task_ids, action, priority))
        replies = [command.value for command in self.commands if isinstance(command, Reply)]
        assert isinstance(replies[0], tuple)
        return replies[0]

    def drain(self, node: str, deadline: str | int = 0, reason: str = "repair") -> list[Command]:
        """Empty a node, up to a deadline from now."""
        deadline_ns = self.now_ns + span(deadline) if deadline else 0
        return self.turn(NodeDrained(self.now_ns, node, reason, "ada", deadline_ns))

    def forget(self, node: str) -> list[Command]:
        """Remove a node that is gone."""
        return self.turn(NodeForgotten(self.now_ns, node))

    def reserve(
        self, mem: str | int, *, node: str = "", ttl: str = "10m", request_id: str = ""
    ) -> MemoryReservation:
        """Set memory aside for something that is not a task."""
        self.turn(
            ReservationAsked(self.now_ns, request_id, size(mem), node, span(ttl), "cache", "ada")
        )
        (found,) = (c.value for c in self.commands if isinstance(c, Reply))
        assert isinstance(found, MemoryReservation)
        return found

    def renew(self, reservation_id: int, ttl: str) -> list[Command]:
        """Move the end of a reservation."""
        return self.turn(ReservationRenewed(self.now_ns, reservation_id, span(ttl)))

    def release(self, reservation_id: int) -> list[Command]:
        """Give a reservation back."""
        return self.turn(ReservationReleased(self.now_ns, reservation_id))

    def frozen(self, task_id: int, paused: bool) -> list[Command]:
        """Report that an attempt was paused, or goes on."""
        node, attempt = self._present(task_id, "", 0)
        self._touch(node)
        sequence = self._next_sequence(node)
        return self.turn(AttemptFrozen(self.now_ns, node, sequence, task_id, attempt, paused))

    def cancel(self, *task_ids: int, grace: str = "10s") -> list[Command]:
        """Cancel tasks."""
        return self.turn(TasksCancelled(self.now_ns, task_ids, span(grace)))

    def started(
        self, task_id: int, *, node: str = "", attempt: int = 0, stream: int | None = None
    ) -> list[Command]:
        """Report that an attempt runs; by default the present one, on its node."""
        node, attempt = self._present(task_id, node, attempt)
        self._touch(node)
        return self.turn(
            AttemptStarted(
                at_ns=self.now_ns,
                node_id=node,
                sequence=self._next_sequence(node),
                task_id=task_id,
                attempt=attempt,
                started_at_ns=self.now_ns,
                stream=stream,
            )
        )

    def ended(
        self,
        task_id: int,
        *,
        node: str = "",
        attempt: int = 0,
        exit_code: int | None = 0,
        signal: int | None = None,
        peak: str | int = 0,
        oom_kills: int = 0,
        cause: OomCause = OomCause.NONE,
        timed_out: bool = False,
        stopped: bool = False,
        start_error: str = "",
        stdout: bytes = b"",
        ended_at_ns: int | None = None,
        stream: int | None = None,
        error_text: str = "",
        started_at_ns: int | None = None,
        unstarted: bool = False,
    ) -> list[Command]:
        """Report that an attempt has ended; by default the present one, on its node."""
        node, attempt = self._present(task_id, node, attempt)
        if started_at_ns is None:
            started_at_ns = 0 if start_error or unstarted else self.now_ns
        self._touch(node)
        return self.turn(
            AttemptEnded(
                at_ns=self.now_ns,
                node_id=node,
                sequence=self._next_sequence(node),
                task_id=task_id,
                attempt=attempt,
                exit_code=exit_code if started_at_ns and signal is None else None,
                signal=signal,
                memory_peak_bytes=size(peak),
                oom_kill_count=oom_kills,
                oom_cause=cause,
                started_at_ns=started_at_ns,
                ended_at_ns=self.now_ns if ended_at_ns is None else ended_at_ns,
                timed_out=timed_out,
                stopped=stopped,
                start_error=start_error,
                stdout_tail=stdout,
                stream=stream,
                error_text=error_text,
            )
        )

    def _present(self, task_id: int, node: str, attempt: int) -> tuple[str, int]:
        task = self.saved.tasks[task_id]
        return node or task.node_id, attempt or task.attempt

    def _touch(self, node: str) -> None:
        """Note that a message came, as the service does; only its own stream's messages count."""
        record = self.cluster.nodes[node]
        if record.stream is not None:
            self.cluster.touch(record, self.now_ns)

    def _next_sequence(self, node: str) -> int:
        self.agents[node].sequence += 1
        return self.agents[node].sequence

    # --- reading ---

    def task(self, task_id: int) -> Task:
        """Return a task as it is saved, open or ended."""
        return self.saved.tasks[task_id]

    def states(self, *task_ids: int) -> list[str]:
        """Return the states of tasks."""
        return [self.task(task_id).state.value for task_id in task_ids]

    def welcome(self) -> SendWelcome:
        """Return the welcome of the last call."""
        (found,) = (command for command in self.commands if isinstance(command, SendWelcome))
        return found

    def acknowledged(self) -> list[int]:
        """Return the acknowledgements of the last call."""
        return [c.sequence for c in self.commands if isinstance(c, SendAcknowledgement)]
