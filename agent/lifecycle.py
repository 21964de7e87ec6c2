"""The life of attempts on this node: events in, commands out.

Owns the table of every (state, event) pair, the attempts the agent knows, and the reports that are
not acknowledged. The rules kept: an assignment that is already known changes nothing; two attempts
of one task never have processes here at the same time; an attempt is forgotten only when its end
is acknowledged or the controller says so; report sequences run from 1 without gaps.

Pure: time comes in as an argument, effects go out as values, in the order to carry them out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import TypeAlias

from agent.attempt import (
    Acknowledged,
    Arm,
    Assigned,
    Assignment,
    Command,
    Disarm,
    Disconnect,
    Ended,
    Estranged,
    Event,
    Exited,
    Forgotten,
    Freeze,
    FreezeAsked,
    Frozen,
    GraceOver,
    GuardAsked,
    GuardKilled,
    GuardStep,
    IntakeChanged,
    Key,
    Kill,
    LeaseLost,
    Leaving,
    OomCause,
    Outcome,
    Report,
    ReportReady,
    Start,
    Started,
    StartFailed,
    StartSucceeded,
    StopAsked,
    Terminate,
    TimeLimitReached,
    Timer,
    Welcomed,
)
from agent.cause import judge

# A hello lists every known attempt, and a controller takes no more than this in one.
KNOWN_MAX = 10_000
# Refusals are reports too and wait for their acknowledgement, so they have a share of their own. A
# controller that goes on assigning beyond it, without acknowledging, is broken: a new stream is
# the only cure.
REFUSED_MAX = 1_000
CPUS_SLACK = 1e-6  # fractions of CPUs are added up


class State(Enum):
    """Where an attempt is in its life on this node. Without a record it is UNKNOWN."""

    UNKNOWN = "unknown"
    # An older attempt has processes, the guard wants no more, it is leaving, or it was sent ahead
    # and there are no CPUs for it yet.
    WAITING = "waiting"
    STARTING = "starting"  # Start was given, exec has not happened
    RECALLED = "recalled"  # told to stop while STARTING
    RUNNING = "running"
    STOPPING = "stopping"  # SIGTERM was sent, the grace runs
    KILLING = "killing"  # SIGKILL was sent
    ENDED = "ended"  # gone; its end is not acknowledged


LIVE = frozenset({State.STARTING, State.RECALLED, State.RUNNING, State.STOPPING, State.KILLING})


@dataclass(slots=True)
class Attempt:
    """What is known of one attempt. `assignment` is dropped when it has ended."""

    key: Key
    assignment: Assignment | None = None
    state: State = State.UNKNOWN
    grace_ns: int = 0  # of the stop that recalled it while it was starting
    timed_out: bool = False
    stopped: bool = False
    end_sequence: int = 0  # of the report of its end, 0 while there is none
    unwanted: bool = False  # forgotten by the controller: end it without a report
    guard: GuardStep | None = None  # the last with which the guard wanted it ended
    asked: GuardStep | None = None  # the last with which it asked, also when it killed after that


Keyed: TypeAlias = (
    Assigned
    | StartSucceeded
    | StartFailed
    | Exited
    | StopAsked
    | TimeLimitReached
    | GraceOver
    | GuardAsked
    | GuardKilled
)
KEYED_EVENTS: tuple[type[Keyed], ...] = (
    Assigned,
    StartSucceeded,
    StartFailed,
    Exited,
    StopAsked,
    TimeLimitReached,
    GraceOver,
    GuardAsked,
    GuardKilled,
)


@dataclass(slots=True)
class Lifecycle:
    """The attempts of one agent instance and the reports it still owes."""

    attempts: dict[Key, Attempt] = field(default_factory=dict)
    unacknowledged: deque[Report] = field(default_factory=deque)
    known_max: int = KNOWN_MAX
    cpus: float = math.inf  # of this node; what was sent ahead waits for its share of them
    _cpus_taken: float = 0.0  # by live attempts
    _held: dict[Key, None] = field(default_factory=dict)  # sent ahead, in the order of arrival
    _sequence: int = 0
    _leaving: bool = False
    _intake_stopped: bool = False
    _now_ns: int = 0
    _of_task: dict[int, list[Key]] = field(default_factory=dict)  # in the order of arrival
    _commands: list[Command] = field(default_factory=list)

    def handle(self, event: Event, now_ns: int) -> tuple[Command, ...]:
        """Return what the event asks for. `now_ns` is in nanoseconds since the Unix epoch."""
        self._now_ns = now_ns
        match event:
            case Acknowledged(sequence):
                self._acknowledge(sequence)
            case Welcomed(sequence, forget):
                self._acknowledge(sequence)
                for key in forget:
                    self._forget(key)
            case Estranged():
                # Nobody will acknowledge these; to another cluster's tasks they would be lies.
                self.unacknowledged.clear()
                for key in list(self.attempts):
                    self._forget(key)
            case FreezeAsked(key, paused):
                self._freeze(key, paused)
            case IntakeChanged(stopped):
                self._change_intake(stopped)
            case StopAsked(key, _, only_held=True) if key not in self._held:
                pass  # it has started, or is gone
            case LeaseLost():
                self._stop_all(0)
            case Leaving(grace_ns):
                self._leaving = True
                self._stop_all(grace_ns)
            case _:
                attempt = self.attempts.get(event.key) or Attempt(event.key)
                TABLE[attempt.state, type(event)](self, attempt, event)
        self._start_held()
        commands = tuple(self._commands)
        self._commands.clear()
        return commands

    def recover(self, ended: Iterable[tuple[Key, Ended]]) -> None:
        """Take over ends that an earlier instance could not deliver, with new sequence numbers."""
        for key, end in islice(ended, self.known_max):
            self._add(Attempt(key, state=State.ENDED))
            self._report_end(self.attempts[key], end)
        self._commands.clear()

    def known(self) -> tuple[tuple[Key, bool], ...]:
        """Return every attempt of the hello and whether it has ended, in the order of arrival."""
        return tuple((key, a.state is State.ENDED) for key, a in self.attempts.items())

    def live(self) -> tuple[Key, ...]:
        """Return the attempts that have, or are about to have, processes."""
        return tuple(key for key, a in self.attempts.items() if a.state in LIVE)

    def check(self) -> None:
        """Assert what always holds; cost is one pass over all attempts and reports."""
        sequences = [report.sequence for report in self.unacknowledged]
        assert sequences == list(range(self._sequence - len(sequences) + 1, self._sequence + 1))
        assert all(a.state is not State.UNKNOWN for a in self.attempts.values())
        tasks = [key[0] for key in self.live()]
        assert len(tasks) == len(set(tasks)), "two live attempts of one task"
        assert sum(map(len, self._of_task.values())) == len(self.attempts)
        for key, attempt in self.attempts.items():
            assert key == attempt.key
            assert key in self._of_task[key[0]]
            assert (attempt.assignment is None) == (attempt.state is State.ENDED)
            held_back = self._leaving or self._intake_stopped
            waits = held_back or key in self._held or self._other(key, LIVE) is not None
            assert attempt.state is not State.WAITING or waits
        assert all(self.attempts[key].state is State.WAITING for key in self._held)
        living = (self.attempts[key].assignment for key in self.live())
        taken = sum(assignment.cpus for assignment in living if assignment is not None)
        assert abs(taken - self._cpus_taken) < CPUS_SLACK
        held = next(iter(self._held), None)
        if held is not None and not (self._leaving or self._intake_stopped):
            assert not self._has_cpus(self.attempts[held]) or self._other(held, LIVE) is not None

    # What happens in the cells of TABLE.

    def nothing(self, attempt: Attempt, event: Keyed) -> None:
        """Change nothing: the event is late, repeated, or about an attempt that is gone."""

    def assign(self, attempt: Attempt, event: Keyed) -> None:
        """Start a new attempt, or have it wait until an older one of its task is gone."""
        assert isinstance(event, Assigned)
        key, assignment = attempt.key, event.assignment
        if any(other[1] > key[1] for other in self._of_task.get(key[0], ())):
            return  # an older attempt than one already known here: the attempt number fences
        if len(self.attempts) >= self.known_max:
            self._commands.append(
                Disconnect(f"{len(self.attempts)} attempts wait for their acknowledgement")
            )
            return
        self._add(attempt)
        attempt.assignment = assignment
        if error := event.error or self._refusal():
            self._end_unstarted(attempt, error)
            return
        if (waiting := self._other(key, {State.WAITING})) is not None:
            self._remove(waiting)
        attempt.state = State.WAITING
        if assignment.ahead:
            self._held[key] = None
        if (older := self._other(key, LIVE)) is not None:
            self._forget(older)
        else:
            self._start_waiting(key[0])

    def run(self, attempt: Attempt, event: Keyed) -> None:
        """Report the start and begin to count the time limit."""
        assert isinstance(event, StartSucceeded)
        assert attempt.assignment is not None
        attempt.state = State.RUNNING
        self._report(attempt.key, Started(event.pid, event.started_at_ns))
        if attempt.assignment.time_limit_ns is not None:
            self._commands.append(
                Arm(attempt.key, Timer.TIME_LIMIT, attempt.assignment.time_limit_ns)
            )

    def run_recalled(self, attempt: Attempt, event: Keyed) -> None:
        """End at once what was told to stop before it had started."""
        assert isinstance(event, StartSucceeded)
        if not attempt.unwanted:
            self._report(attempt.key, Started(event.pid, event.started_at_ns))
        self._stop(attempt, attempt.grace_ns)

    def fail_start(self, attempt: Attempt, event: Keyed) -> None:
        """Report that it never ran."""
        assert isinstance(event, StartFailed)
        cause = OomCause.BYSTANDER if event.lacked_memory else OomCause.UNSPECIFIED
        self._end_unstarted(attempt, event.error, cause)

    def exit(self, attempt: Attempt, event: Keyed) -> None:
        """Report the end; a newer attempt of the task that waited for it may start."""
        assert isinstance(event, Exited)
        cause, guard = judge(
            event.outcome,
            event.evidence,
            guard=attempt.guard,
            asked=attempt.asked,
            ended_by_agent=attempt.stopped or attempt.timed_out or attempt.unwanted,
        )
        self._finish(attempt, event.outcome, cause, guard)

    def stop_waiting(self, attempt: Attempt, event: Keyed) -> None:
        """End an attempt that has not been given to the runner yet."""
        attempt.stopped = True
        self._end_unstarted(attempt, "")

    def recall(self, attempt: Attempt, event: Keyed) -> None:
        """Remember a stop until exec has happened; the shortest grace holds."""
        assert isinstance(event, StopAsked)
        repeated = attempt.state is State.RECALLED
        attempt.grace_ns = min(attempt.grace_ns, event.grace_ns) if repeated else event.grace_ns
        attempt.state = State.RECALLED
        attempt.stopped = True

    def stop(self, attempt: Attempt, event: Keyed) -> None:
        """SIGTERM now, SIGKILL after the grace."""
        assert isinstance(event, StopAsked)
        attempt.stopped = True
        self._stop(attempt, event.grace_ns)

    def stop_again(self, attempt: Attempt, event: Keyed) -> None:
        """Let the shorter of two graces hold; Arm keeps the earlier of two deadlines."""
        assert isinstance(event, StopAsked)
        attempt.stopped = True
        if event.grace_ns == 0:
            self._kill(attempt)
        else:
            self._commands.append(Arm(attempt.key, Timer.GRACE, event.grace_ns))

    def note_stop(self, attempt: Attempt, event: Keyed) -> None:
        """Note that a stop came too; SIGKILL is already on its way."""
        attempt.stopped = True

    def time_out(self, attempt: Attempt, event: Keyed) -> None:
        """End an attempt that outlived its time limit."""
        assert attempt.assignment is not None
        attempt.timed_out = True
        self._stop(attempt, attempt.assignment.grace_ns)

    def kill(self, attempt: Attempt, event: Keyed) -> None:
        """SIGKILL: the grace is over."""
        self._kill(attempt)

    def note_guard(self, attempt: Attempt, event: Keyed) -> None:
        """Remember why it may end soon. The guard has sent the signal itself, a busy loop or not,
        and perhaps before the word that the attempt has started."""
        assert isinstance(event, GuardAsked | GuardKilled)
        attempt.guard = event.step
        if isinstance(event, GuardAsked):
            attempt.asked = event.step

    def kill_for_node(self, attempt: Attempt, event: Keyed) -> None:
        """SIGKILL at the guard's word, also in the middle of a grace; once more does no harm."""
        assert isinstance(event, GuardKilled)
        attempt.guard = event.step
        self._kill(attempt)

    # Helpers, in the order of use.

    def _acknowledge(self, sequence: int) -> None:
        if sequence > self._sequence:
            self._commands.append(
                Disconnect(f"report {sequence} is acknowledged, only {self._sequence} were made")
            )
            return
        while self.unacknowledged and self.unacknowledged[0].sequence <= sequence:
            report = self.unacknowledged.popleft()
            attempt = self.attempts.get(report.key)
            if attempt is not None and attempt.end_sequence == report.sequence:
                self._remove(report.key)

    def _forget(self, key: Key) -> None:
        """End and forget an attempt without reporting it, at the controller's word."""
        attempt = self.attempts.get(key)
        if attempt is None:
            return
        if attempt.state in (State.ENDED, State.WAITING):
            # A report of it that is still owed stays: the sequence may have no gap.
            self._remove(key)
            return
        attempt.unwanted = True
        attempt.grace_ns = 0
        if attempt.state is State.STARTING:
            attempt.state = State.RECALLED
        elif attempt.state in (State.RUNNING, State.STOPPING):
            self._kill(attempt)

    def _freeze(self, key: Key, paused: bool) -> None:
        """Pause a running attempt or let it go on; one that is being ended is left alone."""
        attempt = self.attempts.get(key)
        if attempt is not None and attempt.state is State.RUNNING:
            self._commands.append(Freeze(key, paused))
            self._report(key, Frozen(paused))

    def _change_intake(self, stopped: bool) -> None:
        """Hold new attempts back, or start those that wait in the order of their arrival."""
        self._intake_stopped = stopped
        for task_id in list(self._of_task) if not stopped else ():
            self._start_waiting(task_id)

    def _stop_all(self, grace_ns: int) -> None:
        for key in list(self.attempts):
            attempt = self.attempts.get(key)
            if attempt is not None:
                event = StopAsked(key, grace_ns)
                TABLE[attempt.state, StopAsked](self, attempt, event)

    def _add(self, attempt: Attempt) -> None:
        self.attempts[attempt.key] = attempt
        self._of_task.setdefault(attempt.key[0], []).append(attempt.key)

    def _refusal(self) -> str:
        accepted_max = self.known_max - REFUSED_MAX
        if len(self.attempts) > accepted_max:
            return f"the agent already knows {accepted_max} attempts, the most it takes"
        return ""

    def _other(self, key: Key, states: Collection[State]) -> Key | None:
        """Return another attempt of the same task in one of the states, or None."""
        for other in self._of_task[key[0]]:
            if other != key and self.attempts[other].state in states:
                return other
        return None

    def _end_unstarted(
        self, attempt: Attempt, error: str, cause: OomCause = OomCause.UNSPECIFIED
    ) -> None:
        outcome = Outcome(start_error=error, ended_at_ns=self._now_ns)
        self._finish(attempt, outcome, cause)

    def _finish(
        self, attempt: Attempt, outcome: Outcome, cause: OomCause, guard: GuardStep | None = None
    ) -> None:
        stopped = attempt.stopped
        end = Ended(outcome, cause, attempt.timed_out, stopped, guard, stopped and self._leaving)
        self._commands.append(Disarm(attempt.key))
        self._give_cpus_back(attempt)
        attempt.assignment = None
        attempt.state = State.ENDED
        if attempt.unwanted:
            self._remove(attempt.key)
        else:
            self._report_end(attempt, end)
        self._start_waiting(attempt.key[0])

    def _start_held(self) -> None:
        """Start what was sent ahead, in the order of arrival, as far as there are CPUs."""
        while (key := next(iter(self._held), None)) is not None:
            self._start_waiting(key[0])
            if key in self._held:
                return

    def _has_cpus(self, attempt: Attempt) -> bool:
        """Say whether the live attempts leave CPUs for one that was sent ahead."""
        assert attempt.assignment is not None
        wanted = self._cpus_taken + attempt.assignment.cpus
        return self._cpus_taken <= 0 or wanted <= self.cpus + CPUS_SLACK

    def _is_next(self, attempt: Attempt) -> bool:
        """Say whether one that was sent ahead may start: the first of them, once it has CPUs."""
        return next(iter(self._held)) == attempt.key and self._has_cpus(attempt)

    def _give_cpus_back(self, attempt: Attempt) -> None:
        self._held.pop(attempt.key, None)
        if attempt.state in LIVE and attempt.assignment is not None:
            left = self._cpus_taken - attempt.assignment.cpus
            self._cpus_taken = left if left > CPUS_SLACK else 0.0  # no rounding error stays

    def _start_waiting(self, task_id: int) -> None:
        if self._leaving:
            return  # held back until the agent has left: an answer now would bring it back at once
        if self._intake_stopped:
            return  # until the guard opens the intake again
        for key in self._of_task.get(task_id, ()):
            attempt = self.attempts[key]
            if attempt.state is State.WAITING and self._other(key, LIVE) is None:
                assert attempt.assignment is not None
                if key in self._held and not self._is_next(attempt):
                    continue
                self._held.pop(key, None)
                self._cpus_taken += attempt.assignment.cpus
                attempt.state = State.STARTING
                self._commands.append(Start(key, attempt.assignment))

    def _remove(self, key: Key) -> None:
        if self.attempts.pop(key, None) is None:
            return
        self._held.pop(key, None)
        others = self._of_task[key[0]]
        others.remove(key)
        if not others:
            del self._of_task[key[0]]
        self._commands.append(Forgotten(key))

    def _report(self, key: Key, event: Started | Frozen | Ended) -> None:
        self._sequence += 1
        report = Report(self._sequence, key, event)
        self.unacknowledged.append(report)
        self._commands.append(ReportReady(report))

    def _report_end(self, attempt: Attempt, end: Ended) -> None:
        self._report(attempt.key, end)
        attempt.end_sequence = self._sequence

    def _stop(self, attempt: Attempt, grace_ns: int) -> None:
        if grace_ns == 0:
            self._kill(attempt)
            return
        attempt.state = State.STOPPING
        self._commands += (
            Disarm(attempt.key),
            Terminate(attempt.key),
            Arm(attempt.key, Timer.GRACE, grace_ns),
        )

    def _kill(self, attempt: Attempt) -> None:
        attempt.state = State.KILLING
        self._commands += (Disarm(attempt.key), Kill(attempt.key))


Cell: TypeAlias = Callable[[Lifecycle, Attempt, Keyed], None]
_L = Lifecycle
_ROWS: dict[State, tuple[Cell, ...]] = {
    # state: Assigned, StartSucceeded, StartFailed, Exited, StopAsked, TimeLimitReached, GraceOver,
    #     GuardAsked, GuardKilled
    State.UNKNOWN: (
        _L.assign, _L.nothing, _L.nothing, _L.nothing, _L.nothing, _L.nothing, _L.nothing,
        _L.nothing, _L.nothing,
    ),
    State.WAITING: (
        _L.nothing, _L.nothing, _L.nothing, _L.nothing, _L.stop_waiting, _L.nothing, _L.nothing,
        _L.nothing, _L.nothing,
    ),
    # A short process may have ended before the one who started it gets the word, and the guard
    # sees it before that, too.
    State.STARTING: (
        _L.nothing, _L.run, _L.fail_start, _L.exit, _L.recall, _L.nothing, _L.nothing,
        _L.note_guard, _L.note_guard,
    ),
    State.RECALLED: (
        _L.nothing, _L.run_recalled, _L.fail_start, _L.exit, _L.recall, _L.nothing, _L.nothing,
        _L.nothing, _L.note_guard,
    ),
    State.RUNNING: (
        _L.nothing, _L.nothing, _L.nothing, _L.exit, _L.stop, _L.time_out, _L.nothing,
        _L.note_guard, _L.kill_for_node,
    ),
    # The first cause of a stop counts: a time limit that is reached later is not the reason.
    State.STOPPING: (
        _L.nothing, _L.nothing, _L.nothing, _L.exit, _L.stop_again, _L.nothing, _L.kill,
        _L.nothing, _L.kill_for_node,
    ),
    State.KILLING: (
        _L.nothing, _L.nothing, _L.nothing, _L.exit, _L.note_stop, _L.nothing, _L.nothing,
        _L.nothing, _L.nothing,
    ),
    State.ENDED: (
        _L.nothing, _L.nothing, _L.nothing, _L.nothing, _L.nothing, _L.nothing, _L.nothing,
        _L.nothing, _L.nothing,
    ),
}  # fmt: skip
TABLE: dict[tuple[State, type[Keyed]], Cell] = {
    (state, event): cell
    for state, row in _ROWS.items()
    for event, cell in zip(KEYED_EVENTS, row, strict=True)
}
