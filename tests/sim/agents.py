"""The agents of a simulated world: the real lifecycle, outbox and wire on made-up machines.

Carrying out commands, connecting and the lease are played as `agent.attempts` and
`agent.connection` have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from mass.v1 import agent_pb2
from sim.controllers import NODE_MEMORY_BYTES, OPENING
from sim.network import Link
from sim.processes import Process
from sim.timeline import MILLISECOND_NS, SECOND_NS, Due

from agent import wire
from agent.attempt import (
    Acknowledged,
    Arm,
    Assignment,
    Command,
    Disarm,
    Disconnect,
    Ended,
    Event,
    Forgotten,
    Freeze,
    GraceOver,
    GuardKilled,
    GuardStep,
    GuardStepKind,
    Key,
    Kill,
    LeaseLost,
    Leaving,
    ReportReady,
    Start,
    StartFailed,
    StartSucceeded,
    Terminate,
    TimeLimitReached,
    Timer,
)
from agent.connection import BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS, KEEPALIVE_NS
from agent.lifecycle import Lifecycle
from agent.memory import MemoryReading
from agent.outbox import Outbox
from agent.sampler import Sample

if TYPE_CHECKING:
    from sim.machines import Machine

TICK_NS = 2 * SECOND_NS
WELCOME_NS = 10 * SECOND_NS
LEASE_BEFORE_WELCOME_NS = 60 * SECOND_NS
SOON_AGAIN_NS = 200 * MILLISECOND_NS  # until an agent that died comes again, when all is well


class AgentCrash(BaseException):
    """The agent's process is gone, at this very point."""


class _NoOutput:
    """Tasks here print nothing."""

    def tail(self, key: Key, stream: int) -> bytes:
        """Return the end of an output."""
        return b"done" if stream == wire.STDOUT else b""

    def error_text(self, key: Key) -> str:
        """Return what the task wrote of its failure."""
        return ""


class Agent:
    """One life of an agent."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.world = machine.world
        self.instance_id = self.world.new_instance_id(machine)
        self.lifecycle = Lifecycle(cpus=machine.cpus)
        self.link: Link | None = None
        self.connected = False
        self.dead = False
        self._leaving = False
        self._lease_ns = LEASE_BEFORE_WELCOME_NS
        self._contact_ns = self.world.timeline.now_ns()
        self._failures = 0
        self._streams = 0
        self._timers: dict[Key, dict[Timer, Due]] = {}
        # What agent.outbox.Outbox asks of attempts, runner, follower and sampler.
        self.follower = _NoOutput()
        self.runner = self
        self.oom_kills = 0
        self.intake_stopped = False
        self.changed = self.world.nothing
        self._outbox = Outbox(cast(Any, self), cast(Any, self), clock_ns=self.world.timeline.now_ns)
        self.lifecycle.recover(sorted(machine.spool.items()))
        self.world.reports[self.instance_id] = list(self.lifecycle.unacknowledged)
        self._after(TICK_NS, self._tick)

    # What Outbox asks for.

    def running(self) -> frozenset[Key]:
        """Return the attempts that have processes here."""
        return frozenset(self.machine.processes)

    def usage(self) -> dict[Key, int]:
        """Return memory_used_bytes of each running attempt."""
        return {key: process.used_bytes for key, process in self.machine.processes.items()}

    def read(
        self, *, monotonic_ns: int, tasks: Mapping[Key, int], oom_kills: int, **_: object
    ) -> Sample:
        """Return a sample of the machine."""
        used = self.machine.foreign_bytes + sum(
            process.used_bytes
            for machine in self.world.machines
            if machine.machine_id == self.machine.machine_id
            for process in machine.processes.values()
        )
        available = max(0, NODE_MEMORY_BYTES - used)
        return Sample(
            monotonic_ns,
            MemoryReading(NODE_MEMORY_BYTES, available, 0, 0),
            cpu_percent=10.0,
            oom_kills=oom_kills,
            tasks=tasks,
        )

    # Life.

    def die(self) -> None:
        """Be gone; the kernel kills the tasks with their agent, and ends its streams."""
        self.dead = True
        for process in list(self.machine.processes.values()):
            process.vanish()
        if self.link is not None:
            self.link.close_from_agent()

    def guard_kills(self) -> None:
        """Let the guard end the youngest process, as it does when memory runs out."""
        processes = self.machine.processes
        if not processes:
            return
        key = max(processes)
        self.world.say(f"the guard of {self.machine.node_id} ends task {key[0]} attempt {key[1]}")
        now_ns = self.world.timeline.now_ns()
        step = GuardStep(now_ns, GuardStepKind.KILL, key, NODE_MEMORY_BYTES, NODE_MEMORY_BYTES)
        self.happen(GuardKilled(key, step))

    def leave(self) -> None:
        """End on purpose: stop everything, deliver the ends, say goodbye."""
        if self._leaving:
            return
        self.world.say(f"{self.instance_id} leaves")
        self._leaving = True
        self.happen(Leaving(SECOND_NS))
        self._after(100 * MILLISECOND_NS, lambda: self._leave_on(20))

    def _leave_on(self, looks: int) -> None:
        owed = self.lifecycle.live() or (self.connected and self.lifecycle.unacknowledged)
        if owed and looks:
            self._after(500 * MILLISECOND_NS, lambda: self._leave_on(looks - 1))
            return
        self.happen(Leaving(0))
        self._outbox.say_goodbye("leaving")
        self._write_soon()
        again_ns = self.world.chance.randint(SECOND_NS, 30 * SECOND_NS)
        self._after(SECOND_NS, lambda: self.machine.agent_dies(again_ns=again_ns))

    def happen(self, event: Event) -> None:
        """Let something happen to an attempt and carry out what follows."""
        if self.dead:
            return
        try:
            for command in self.lifecycle.handle(event, self.world.timeline.now_ns()):
                self._carry_out(command)
                if self.world.happens(self.world.rates.agent_crashes_between):
                    raise AgentCrash
        except AgentCrash:
            longest_ns = self.world.chance.choice((50 * MILLISECOND_NS, 30 * SECOND_NS))
            self.machine.agent_dies(again_ns=self.world.chance.randint(0, longest_ns))
            return
        self._write_soon()

    def _after(self, delay_ns: int, action: Any) -> Due:
        return self.world.timeline.after(delay_ns, lambda: None if self.dead else action())

    def _carry_out(self, command: Command) -> None:
        processes = self.machine.processes
        match command:
            case ReportReady(report):
                self.world.reports.setdefault(self.instance_id, []).append(report)
                if isinstance(report.event, Ended):
                    self.machine.spool[report.key] = report.event
                    self.world.laws.end_kept(report.key, report.event)
            case Start(key, assignment):
                self.world.say(f"{self.instance_id} starts task {key[0]} attempt {key[1]}")
                delay_ns = self.world.chance.choice((MILLISECOND_NS, 500 * MILLISECOND_NS))
                self._after(delay_ns, lambda: self._start(assignment))
            case Terminate(key) | Kill(key):
                if key in processes:
                    processes[key].signal(15 if isinstance(command, Terminate) else 9)
            case Freeze(key, paused):
                if key in processes:
                    processes[key].freeze(paused)
            case Arm(key, timer, delay_ns):
                self._arm(key, timer, delay_ns)
            case Disarm(key):
                for due in self._timers.pop(key, {}).values():
                    due.cancel()
            case Forgotten(key):
                self.machine.spool.pop(key, None)
            case Disconnect(reason):
                self.world.say(f"{self.instance_id} breaks its stream: {reason}")
                self._break()

    def _start(self, assignment: Assignment) -> None:
        key = assignment.key
        if self.world.happens(self.world.rates.start_fails):
            self.happen(StartFailed(key, "no such program"))
            return
        Process(self.machine, self, assignment)
        began = StartSucceeded(key, 1, self.world.timeline.now_ns())
        delay_ns = self.world.chance.randint(0, 5 * MILLISECOND_NS)
        self._after(delay_ns, lambda: self.happen(began))

    def _arm(self, key: Key, timer: Timer, delay_ns: int) -> None:
        timers = self._timers.setdefault(key, {})
        at_ns = self.world.timeline.now_ns() + delay_ns
        if (armed := timers.get(timer)) is not None:
            if armed.action is not None and armed.at_ns <= at_ns:
                return
            armed.cancel()
        event = TimeLimitReached(key) if timer is Timer.TIME_LIMIT else GraceOver(key)
        timers[timer] = self._after(delay_ns, lambda: self.happen(event))

    # The connection.

    def connect(self) -> None:
        """Open a stream and say hello."""
        link = self.link = self.world.open_link(self)
        self._streams += 1
        link.down.target = _AgentEnd(self, link)
        identity = wire.Identity(
            node_id=self.machine.node_id,
            instance_id=self.instance_id,
            machine_id=self.machine.machine_id,
            boot_id=f"{self.machine.machine_id}-{self.machine.boots}",
            agent_version="sim",
            memory_total_bytes=NODE_MEMORY_BYTES,
            memory_capacity_bytes=0,
            cpus=self.machine.cpus,
            enforcement="watchdog",
            capabilities=(),
        )
        hello = wire.encode_hello(identity, self.lifecycle.known(), self.machine.cluster_id)
        link.send_up(OPENING)
        link.send_up(hello.SerializeToString())
        self._after(WELCOME_NS, lambda: self._give_up_greeting(link))

    def take(self, link: Link, message: agent_pb2.ControllerMessage) -> None:
        """Take a message of the controller."""
        if self.dead or link is not self.link:
            return
        self._contact_ns = self.world.timeline.now_ns()
        kind = message.WhichOneof("body")
        if not self.connected:
            assert kind == "welcome", f"the first message is {kind}"
            self._begin(wire.decode_welcome(message.welcome))
        elif kind == "assignments":
            for assignment in message.assignments.assignments:
                self.happen(wire.decode_assignment(assignment))
        elif kind == "acknowledgement":
            self._outbox.note_acknowledgement()
            self.happen(Acknowledged(message.acknowledgement.sequence))
        elif kind == "stop":
            self.happen(wire.decode_stop(message.stop))
        elif kind == "freeze":
            self.happen(wire.decode_freeze(message.freeze))
        elif kind == "sampling":
            self._outbox.set_sampling(wire.decode_sampling(message.sampling), first=False)
        else:
            raise AssertionError(f"the controller says {kind} within a stream")

    def lost(self, link: Link) -> None:
        """Learn that a stream has ended."""
        if self.dead or link is not self.link:
            return
        self.link = None
        self.connected = False
        self._outbox.close()
        bound = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(self._failures, 20))
        self._failures += 1
        delay_ns = int(self.world.chance.uniform(0, bound) * SECOND_NS)
        self._after(delay_ns, self.connect)

    def _begin(self, welcome: wire.Welcome) -> None:
        self.machine.cluster_id = welcome.cluster_id
        self._failures = 0
        self.connected = True
        self._lease_ns = welcome.attempt_lease_ns
        self._outbox.open(welcome.sampling)
        self.happen(welcome.event)

    def _give_up_greeting(self, link: Link) -> None:
        if link is self.link and not self.connected:
            self._break()

    def _break(self) -> None:
        if self.link is not None:
            self.link.close_from_agent()
            self.lost(self.link)

    def _write_soon(self) -> None:
        if self.connected:
            self._after(self.world.chance.randint(0, MILLISECOND_NS), self._write)

    def _write(self) -> None:
        while not self.dead and self.link is not None and self.connected:
            message = self._outbox.next_message()
            if message is None:
                return
            self.link.send_up(message.SerializeToString())
            if message.HasField("reports"):
                self._said(message.reports)

    def _said(self, reports: agent_pb2.ReportBatch) -> None:
        """Note what is under way now; perhaps it is the last word of this life."""
        self.world.laws.said(self.instance_id, max(r.sequence for r in reports.reports))
        if self.world.happens(self.world.rates.agent_dies_at_send):
            self.machine.agent_dies(again_ns=self.world.chance.randint(0, SOON_AGAIN_NS))

    def _tick(self) -> None:
        self._after(TICK_NS, self._tick)
        self._check_lease()
        if self.dead:
            return
        self._outbox.resend()
        self._outbox.offer_sample()
        self._write_soon()

    def _check_lease(self) -> None:
        now_ns = self.world.timeline.now_ns()
        if now_ns - self._contact_ns > self._lease_ns and self.lifecycle.live():
            self.world.say(f"{self.instance_id} loses the lease of its attempts")
            self.happen(LeaseLost())
        if self.connected:
            uncertain_ns = min(KEEPALIVE_NS, self._lease_ns // 2)
            self._contact_ns = max(self._contact_ns, now_ns - uncertain_ns)


class _AgentEnd:
    """An agent's end of one link."""

    def __init__(self, agent: Agent, link: Link) -> None:
        self._agent = agent
        self._link = link

    def receive(self, data: bytes) -> None:
        """Take a message."""
        self._agent.take(self._link, agent_pb2.ControllerMessage.FromString(data))

    def ended(self) -> None:
        """Learn that the stream has ended."""
        self._agent.lost(self._link)
