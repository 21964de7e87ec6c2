"""The life of attempts as a table: every cell is decided, and stories through it."""

from __future__ import annotations

import random
from itertools import product

import pytest

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
    GraceOver,
    GuardAsked,
    GuardKilled,
    GuardStep,
    GuardStepKind,
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
from agent.lifecycle import (
    KEYED_EVENTS,
    LIVE,
    REFUSED_MAX,
    TABLE,
    Keyed,
    Lifecycle,
    State,
)

KEY: Key = (7, 2)
OTHER: Key = (7, 1)
GRACE_NS = 5
LIMIT_NS = 60
DONE = Outcome(exit_code=0, started_at_ns=1, ended_at_ns=2)
KILLED = Outcome(signal=9, started_at_ns=1, ended_at_ns=2)
ASK = GuardStep(1, GuardStepKind.ASK, KEY, 90, 100, 10.0, 1.0)
KILL = GuardStep(1, GuardStepKind.KILL, KEY, 95, 100, 10.0, 0.5)


def assigned(key: Key = KEY, time_limit_ns: int | None = LIMIT_NS) -> Assigned:
    return Assigned(Assignment(key, ("true",), time_limit_ns=time_limit_ns, grace_ns=GRACE_NS))


EVENTS: dict[type[Keyed], Keyed] = {
    Assigned: assigned(),
    StartSucceeded: StartSucceeded(KEY, 10, 1),
    StartFailed: StartFailed(KEY, "exec: no such file"),
    Exited: Exited(KEY, DONE),
    StopAsked: StopAsked(KEY, GRACE_NS),
    TimeLimitReached: TimeLimitReached(KEY),
    GraceOver: GraceOver(KEY),
    GuardAsked: GuardAsked(KEY, ASK),
    GuardKilled: GuardKilled(KEY, KILL),
}
WAY: dict[State, tuple[Event, ...]] = {
    State.UNKNOWN: (),
    State.WAITING: (assigned(OTHER), StartSucceeded(OTHER, 9, 1), assigned()),
    State.STARTING: (assigned(),),
    State.RECALLED: (assigned(), StopAsked(KEY, GRACE_NS)),
    State.RUNNING: (assigned(), StartSucceeded(KEY, 10, 1)),
    State.STOPPING: (assigned(), StartSucceeded(KEY, 10, 1), StopAsked(KEY, GRACE_NS)),
    State.KILLING: (assigned(), StartSucceeded(KEY, 10, 1), StopAsked(KEY, 0)),
    State.ENDED: (assigned(), StartSucceeded(KEY, 10, 1), Exited(KEY, DONE)),
}
# The state after each cell; what is not listed leaves the state as it is.
AFTER: dict[tuple[State, type[Keyed]], State] = {
    (State.UNKNOWN, Assigned): State.STARTING,
    (State.WAITING, StopAsked): State.ENDED,
    (State.STARTING, StartSucceeded): State.RUNNING,
    (State.STARTING, StartFailed): State.ENDED,
    (State.STARTING, Exited): State.ENDED,
    (State.STARTING, StopAsked): State.RECALLED,
    (State.RECALLED, StartSucceeded): State.STOPPING,
    (State.RECALLED, StartFailed): State.ENDED,
    (State.RECALLED, Exited): State.ENDED,
    (State.RUNNING, Exited): State.ENDED,
    (State.RUNNING, StopAsked): State.STOPPING,
    (State.RUNNING, TimeLimitReached): State.STOPPING,
    (State.RUNNING, GuardKilled): State.KILLING,
    (State.STOPPING, GuardKilled): State.KILLING,
    (State.STOPPING, Exited): State.ENDED,
    (State.STOPPING, GraceOver): State.KILLING,
    (State.KILLING, Exited): State.ENDED,
}


def lifecycle_in(state: State) -> Lifecycle:
    lifecycle = Lifecycle()
    feed(lifecycle, *WAY[state])
    assert state_of(lifecycle) is state
    return lifecycle


def state_of(lifecycle: Lifecycle, key: Key = KEY) -> State:
    attempt = lifecycle.attempts.get(key)
    return State.UNKNOWN if attempt is None else attempt.state


def feed(lifecycle: Lifecycle, *events: Event) -> tuple[Command, ...]:
    """Return what the last event asked for."""
    commands: tuple[Command, ...] = ()
    for event in events:
        commands = lifecycle.handle(event, 1_000)
        lifecycle.check()
    return commands


def ended(lifecycle: Lifecycle, key: Key = KEY) -> Ended:
    """Return the one end that is reported of an attempt."""
    ends = [
        r.event for r in lifecycle.unacknowledged if r.key == key and isinstance(r.event, Ended)
    ]
    assert len(ends) == 1
    return ends[0]


def test_every_cell_of_the_table_is_decided() -> None:
    assert set(TABLE) == set(product(State, KEYED_EVENTS))
    assert set(EVENTS) == set(KEYED_EVENTS)


@pytest.mark.parametrize(("state", "event"), list(product(State, KEYED_EVENTS)), ids=str)
def test_each_cell_leads_to_its_state(state: State, event: type[Keyed]) -> None:
    lifecycle = lifecycle_in(state)
    commands = feed(lifecycle, EVENTS[event])
    assert state_of(lifecycle) is AFTER.get((state, event), state)
    if (state, event) not in AFTER and (state, event) != (State.STOPPING, StopAsked):
        assert commands == ()


def test_a_task_runs_and_is_reported() -> None:
    lifecycle = Lifecycle()
    assignment = assigned().assignment
    assert feed(lifecycle, assigned()) == (Start(KEY, assignment),)
    started = Report(1, KEY, Started(10, 1))
    assert feed(lifecycle, StartSucceeded(KEY, 10, 1)) == (
        ReportReady(started),
        Arm(KEY, Timer.TIME_LIMIT, LIMIT_NS),
    )
    end = Report(2, KEY, Ended(DONE, OomCause.UNSPECIFIED, timed_out=False, stopped=False))
    assert feed(lifecycle, Exited(KEY, DONE)) == (Disarm(KEY), ReportReady(end))
    assert feed(lifecycle, Acknowledged(1)) == ()
    assert feed(lifecycle, Acknowledged(2)) == (Forgotten(KEY),)
    assert lifecycle.known() == ()


def test_an_assignment_that_is_known_changes_nothing() -> None:
    for state in State:
        if state is not State.UNKNOWN:
            assert feed(lifecycle_in(state), assigned()) == ()


def test_a_stop_sends_sigterm_then_sigkill_after_the_grace() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    assert feed(lifecycle, StopAsked(KEY, 3)) == (
        Disarm(KEY),
        Terminate(KEY),
        Arm(KEY, Timer.GRACE, 3),
    )
    assert feed(lifecycle, GraceOver(KEY)) == (Disarm(KEY), Kill(KEY))
    feed(lifecycle, Exited(KEY, Outcome(signal=9)))
    assert ended(lifecycle).stopped
    assert not ended(lifecycle).timed_out


def test_a_stop_before_exec_waits_for_it_and_the_shorter_grace_holds() -> None:
    lifecycle = lifecycle_in(State.STARTING)
    assert feed(lifecycle, StopAsked(KEY, 9), StopAsked(KEY, 4), StopAsked(KEY, 6)) == ()
    commands = feed(lifecycle, StartSucceeded(KEY, 10, 1))
    assert commands[1:] == (Disarm(KEY), Terminate(KEY), Arm(KEY, Timer.GRACE, 4))


def test_a_second_stop_rearms_the_grace_and_one_without_grace_kills() -> None:
    lifecycle = lifecycle_in(State.STOPPING)
    assert feed(lifecycle, StopAsked(KEY, 2)) == (Arm(KEY, Timer.GRACE, 2),)
    assert feed(lifecycle, StopAsked(KEY, 0)) == (Disarm(KEY), Kill(KEY))


def test_a_time_limit_stops_with_the_assignments_own_grace() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    commands = feed(lifecycle, TimeLimitReached(KEY))
    assert commands == (Disarm(KEY), Terminate(KEY), Arm(KEY, Timer.GRACE, GRACE_NS))
    feed(lifecycle, Exited(KEY, DONE))
    assert ended(lifecycle).timed_out
    assert not ended(lifecycle).stopped


def test_a_time_limit_during_a_stop_is_not_the_cause() -> None:
    lifecycle = lifecycle_in(State.STOPPING)
    feed(lifecycle, TimeLimitReached(KEY), Exited(KEY, DONE))
    assert not ended(lifecycle).timed_out


def test_a_start_error_is_reported_with_its_sentence() -> None:
    lifecycle = lifecycle_in(State.STARTING)
    feed(lifecycle, StartFailed(KEY, "exec /no: No such file or directory"))
    assert ended(lifecycle).outcome.start_error == "exec /no: No such file or directory"
    assert ended(lifecycle).outcome.ended_at_ns == 1_000


def test_a_start_that_lacked_memory_is_nobodys_fault_in_the_task() -> None:
    lifecycle = lifecycle_in(State.STARTING)
    feed(lifecycle, StartFailed(KEY, "exec true: Cannot allocate memory", lacked_memory=True))
    assert ended(lifecycle).oom_cause is OomCause.BYSTANDER


def test_an_assignment_that_cannot_be_is_reported_and_never_started() -> None:
    lifecycle = Lifecycle()
    commands = feed(lifecycle, Assigned(Assignment(KEY, ()), "the assignment has no command"))
    assert not any(isinstance(command, Start) for command in commands)
    assert ended(lifecycle).outcome.start_error == "the assignment has no command"


def test_a_lost_lease_kills_all_attempts_at_once() -> None:
    lifecycle = lifecycle_in(State.STOPPING)
    feed(lifecycle, assigned((8, 1)), assigned((9, 1)), StartSucceeded((9, 1), 5, 1))
    commands = feed(lifecycle, LeaseLost())
    assert Kill(KEY) in commands
    assert Kill((9, 1)) in commands
    assert Kill((8, 1)) in feed(lifecycle, StartSucceeded((8, 1), 6, 1))
    feed(lifecycle, Exited((9, 1), Outcome(signal=9)))
    assert ended(lifecycle, (9, 1)).stopped


def test_forgotten_attempts_are_killed_without_a_report() -> None:
    for state in LIVE:
        lifecycle = lifecycle_in(state)
        before = len(lifecycle.unacknowledged)
        commands = feed(lifecycle, Welcomed(0, (KEY,)))
        assert (Kill(KEY) in commands) == (state in (State.RUNNING, State.STOPPING))
        if state in (State.STARTING, State.RECALLED):
            assert feed(lifecycle, StartSucceeded(KEY, 10, 1)) == (Disarm(KEY), Kill(KEY))
        assert feed(lifecycle, Exited(KEY, DONE)) == (Disarm(KEY), Forgotten(KEY))
        assert len(lifecycle.unacknowledged) == before


def test_forgetting_an_ended_attempt_keeps_its_report_so_that_no_gap_arises() -> None:
    lifecycle = lifecycle_in(State.ENDED)
    assert feed(lifecycle, Welcomed(0, (KEY,))) == (Forgotten(KEY),)
    assert [report.sequence for report in lifecycle.unacknowledged] == [1, 2]
    assert feed(lifecycle, Acknowledged(2)) == ()


def test_a_newer_attempt_waits_until_the_older_ones_processes_are_gone() -> None:
    lifecycle = Lifecycle()
    feed(lifecycle, assigned(OTHER), StartSucceeded(OTHER, 9, 1))
    assert feed(lifecycle, assigned()) == (Disarm(OTHER), Kill(OTHER))
    assert state_of(lifecycle) is State.WAITING
    commands = feed(lifecycle, Exited(OTHER, DONE))
    assert commands[-1] == Start(KEY, assigned().assignment)


def test_a_newer_attempt_replaces_one_that_waits() -> None:
    lifecycle = lifecycle_in(State.WAITING)
    assert feed(lifecycle, assigned((7, 3)))[0] == Forgotten(KEY)
    commands = feed(lifecycle, Exited(OTHER, DONE))
    assert commands[-1] == Start((7, 3), assigned((7, 3)).assignment)


def test_an_older_attempt_than_a_known_one_is_not_started() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    assert feed(lifecycle, assigned(OTHER)) == ()
    assert state_of(lifecycle, OTHER) is State.UNKNOWN


def test_ends_of_an_earlier_life_get_new_sequence_numbers() -> None:
    lifecycle = Lifecycle()
    end = Ended(DONE, OomCause.UNSPECIFIED, timed_out=False, stopped=True)
    lifecycle.recover([(KEY, end), ((9, 1), end)])
    lifecycle.check()
    assert lifecycle.known() == ((KEY, True), ((9, 1), True))
    assert list(lifecycle.unacknowledged) == [Report(1, KEY, end), Report(2, (9, 1), end)]
    assert feed(lifecycle, Welcomed(1, ())) == (Forgotten(KEY),)


def test_at_the_bound_assignments_are_refused_by_report_and_beyond_it_the_stream_is_ended() -> None:
    lifecycle = Lifecycle(known_max=REFUSED_MAX + 3)
    for task_id in range(1, 5):
        feed(lifecycle, assigned((task_id, 1)))
    assert state_of(lifecycle, (3, 1)) is State.STARTING
    assert ended(lifecycle, (4, 1)).outcome.start_error == (
        "the agent already knows 3 attempts, the most it takes"
    )
    for task_id in range(5, REFUSED_MAX + 4):
        lifecycle.handle(assigned((task_id, 1)), 1)
    commands = feed(lifecycle, assigned((99_999, 1)))
    assert commands == (Disconnect(f"{REFUSED_MAX + 3} attempts wait for their acknowledgement"),)


def test_an_acknowledgement_beyond_the_last_report_deletes_nothing() -> None:
    lifecycle = lifecycle_in(State.ENDED)
    (command,) = feed(lifecycle, Acknowledged(9))
    assert command == Disconnect("report 9 is acknowledged, only 2 were made")
    assert len(lifecycle.unacknowledged) == 2


def test_a_leaving_agent_stops_everything_and_holds_new_assignments_back_until_the_end() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    assert Terminate(KEY) in feed(lifecycle, Leaving(GRACE_NS))
    assert feed(lifecycle, assigned((8, 1))) == ()
    assert state_of(lifecycle, (8, 1)) is State.WAITING
    feed(lifecycle, Exited(KEY, DONE), Leaving(0))
    assert ended(lifecycle, (8, 1)).stopped
    assert ended(lifecycle, (8, 1)).outcome.start_error == ""
    assert ended(lifecycle).agent_stopped
    assert ended(lifecycle, (8, 1)).agent_stopped


def test_what_ends_by_itself_or_by_a_lost_lease_was_not_ended_by_an_agent_that_is_stopped() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    feed(lifecycle, Exited(KEY, DONE), Leaving(0))
    assert not ended(lifecycle).agent_stopped
    lifecycle = lifecycle_in(State.RUNNING)
    feed(lifecycle, LeaseLost(), Exited(KEY, DONE))
    assert (ended(lifecycle).stopped, ended(lifecycle).agent_stopped) == (True, False)


def test_an_attempt_that_the_guard_killed_ends_with_the_guards_step() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    assert feed(lifecycle, GuardKilled(KEY, KILL)) == (Disarm(KEY), Kill(KEY))
    feed(lifecycle, Exited(KEY, KILLED))
    end = ended(lifecycle)
    assert (end.oom_cause, end.guard, end.stopped) == (OomCause.GUARD, KILL, False)


def test_an_attempt_that_the_guard_asks_goes_on_until_it_ends() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    assert feed(lifecycle, GuardAsked(KEY, ASK)) == ()
    assert state_of(lifecycle) is State.RUNNING
    feed(lifecycle, Exited(KEY, Outcome(signal=15, started_at_ns=1, ended_at_ns=2)))
    end = ended(lifecycle)
    assert (end.oom_cause, end.guard) == (OomCause.GUARD, ASK)


def test_an_attempt_that_ends_for_being_asked_is_not_done_though_a_kill_was_on_its_way() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    feed(lifecycle, GuardAsked(KEY, ASK), GuardKilled(KEY, KILL), Exited(KEY, DONE))
    end = ended(lifecycle)
    assert (end.oom_cause, end.guard) == (OomCause.GUARD, KILL)


def test_a_kill_of_the_guard_is_known_though_the_start_is_not_told_yet() -> None:
    lifecycle = lifecycle_in(State.STARTING)
    feed(lifecycle, GuardKilled(KEY, KILL), StartSucceeded(KEY, 10, 1), Exited(KEY, KILLED))
    assert ended(lifecycle).guard == KILL


def test_a_stop_that_kills_first_is_not_the_guards_doing() -> None:
    lifecycle = lifecycle_in(State.KILLING)
    feed(lifecycle, GuardKilled(KEY, KILL), Exited(KEY, KILLED))
    end = ended(lifecycle)
    assert (end.oom_cause, end.guard, end.stopped) == (OomCause.UNSPECIFIED, None, True)


def test_a_closed_intake_holds_new_attempts_back_and_starts_them_in_their_order() -> None:
    lifecycle = lifecycle_in(State.RUNNING)
    keys = [(9, 1), (8, 1), (10, 2)]
    assert feed(lifecycle, IntakeChanged(True)) == ()
    for key in keys:
        assert feed(lifecycle, assigned(key)) == ()
        assert state_of(lifecycle, key) is State.WAITING
    commands = feed(lifecycle, IntakeChanged(False))
    assert [c.key for c in commands if isinstance(c, Start)] == keys
    assert feed(lifecycle, IntakeChanged(False)) == ()


def test_an_attempt_that_waits_for_the_intake_can_be_stopped() -> None:
    lifecycle = Lifecycle()
    feed(lifecycle, IntakeChanged(True), assigned(), StopAsked(KEY, GRACE_NS))
    end = ended(lifecycle)
    assert (end.stopped, end.outcome.start_error) == (True, "")
    assert feed(lifecycle, IntakeChanged(False)) == ()


def test_an_open_intake_starts_nothing_in_an_agent_that_leaves() -> None:
    lifecycle = Lifecycle()
    feed(lifecycle, IntakeChanged(True), assigned((8, 1)), Leaving(GRACE_NS), assigned((9, 1)))
    assert feed(lifecycle, IntakeChanged(False)) == ()
    assert state_of(lifecycle, (9, 1)) is State.WAITING


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events_keeps_the_rules(seed: int) -> None:
    chance = random.Random(seed)
    lifecycle = Lifecycle(known_max=REFUSED_MAX + 12)
    processes: set[Key] = set()
    for _ in range(400):
        key = (chance.randint(1, 4), chance.randint(1, 4))
        if processes and chance.random() < 0.5:
            key = chance.choice(sorted(processes))
        events: list[Event] = [
            assigned(key),
            assigned(key),
            StopAsked(key, chance.choice([0, 5])),
            GraceOver(key),
            TimeLimitReached(key),
            Acknowledged(chance.randint(0, lifecycle._sequence)),
            Welcomed(0, (key,)),
            LeaseLost(),
            GuardAsked(key, ASK),
            GuardKilled(key, KILL),
            IntakeChanged(chance.random() < 0.5),
        ]
        if key in processes:
            events += StartSucceeded(key, 1, 1), StartFailed(key, "no")
            events += Exited(key, DONE), Exited(key, DONE)
        event = chance.choice(events)
        if isinstance(event, StartFailed) and state_of(lifecycle, key) not in (
            State.STARTING,
            State.RECALLED,
        ):
            continue
        commands = feed(lifecycle, event)
        if isinstance(event, Exited | StartFailed):
            processes.discard(key)
        for command in commands:
            if isinstance(command, Start):
                assert command.key[0] not in {other[0] for other in processes}
                processes.add(command.key)
        assert processes == set(lifecycle.live())


def test_nothing_of_another_cluster_is_reported_any_more() -> None:
    life = Lifecycle()
    for key in ((1, 1), (2, 1), (3, 1)):
        life.handle(assigned(key), 0)
        life.handle(StartSucceeded(key, 9, 1), 0)
    life.handle(Exited((1, 1), DONE), 0)
    life.handle(StopAsked((2, 1), GRACE_NS), 0)
    commands = life.handle(Estranged(), 0)
    assert [c for c in commands if isinstance(c, Kill)] == [Kill((2, 1)), Kill((3, 1))]
    assert Forgotten((1, 1)) in commands
    for key in ((2, 1), (3, 1)):
        commands = life.handle(Exited(key, DONE), 0)
        assert not [c for c in commands if isinstance(c, ReportReady)]
    assert (life.known(), list(life.unacknowledged)) == ((), [])
    life.check()
    life.handle(assigned((1, 1)), 0)
    life.handle(StartSucceeded((1, 1), 9, 1), 0)
    assert [report.key for report in life.unacknowledged] == [(1, 1)]
    life.check()


def sent_ahead(task_id: int, cpus: float = 1.0) -> Assigned:
    return Assigned(Assignment((task_id, 1), ("true",), cpus=cpus, ahead=True))


def states(lifecycle: Lifecycle, *task_ids: int) -> list[State]:
    return [state_of(lifecycle, (task_id, 1)) for task_id in task_ids]


def test_what_is_sent_ahead_waits_for_cpus_in_the_order_of_arrival() -> None:
    lifecycle = Lifecycle(cpus=2.0)
    feed(lifecycle, sent_ahead(1), sent_ahead(2, 0.5), sent_ahead(3, 1.0), sent_ahead(4, 0.5))
    start, wait = State.STARTING, State.WAITING
    # The fourth would fit beside the first two, but the third was here before.
    assert states(lifecycle, 1, 2, 3, 4) == [start, start, wait, wait]
    feed(lifecycle, Exited((2, 1), DONE))
    assert states(lifecycle, 3, 4) == [start, wait]
    feed(lifecycle, StartFailed((3, 1), "exec: no such file"))
    assert states(lifecycle, 4) == [start]


def test_one_that_is_gone_makes_room_for_those_held_behind_it() -> None:
    lifecycle = Lifecycle(cpus=2.0)
    feed(lifecycle, sent_ahead(1), sent_ahead(2, 2.0), sent_ahead(3))
    assert states(lifecycle, 1, 2, 3) == [State.STARTING, State.WAITING, State.WAITING]
    feed(lifecycle, Welcomed(0, ((2, 1),)))
    assert states(lifecycle, 2, 3) == [State.UNKNOWN, State.STARTING]


def test_task_larger_than_the_node_starts_once_nothing_else_runs() -> None:
    lifecycle = Lifecycle(cpus=2.0)
    feed(lifecycle, sent_ahead(1), sent_ahead(2, 3.0))
    assert states(lifecycle, 1, 2) == [State.STARTING, State.WAITING]
    feed(lifecycle, Exited((1, 1), DONE))
    assert states(lifecycle, 2) == [State.STARTING]


def test_what_is_not_sent_ahead_starts_whatever_runs() -> None:
    lifecycle = Lifecycle(cpus=1.0)
    feed(lifecycle, assigned((1, 1)), assigned((2, 1)))
    assert states(lifecycle, 1, 2) == [State.STARTING] * 2


def test_only_what_is_held_is_called_back() -> None:
    lifecycle = Lifecycle(cpus=1.0)
    feed(lifecycle, sent_ahead(1), sent_ahead(2), sent_ahead(3))
    assert feed(lifecycle, StopAsked((1, 1), 0, only_held=True)) == ()
    feed(lifecycle, StopAsked((2, 1), 0, only_held=True))
    assert states(lifecycle, 1, 2, 3) == [State.STARTING, State.ENDED, State.WAITING]
    end = ended(lifecycle, (2, 1))
    assert end.stopped
    assert end.outcome.started_at_ns == 0
    feed(lifecycle, Exited((1, 1), DONE))
    assert states(lifecycle, 3) == [State.STARTING]
    assert feed(lifecycle, StopAsked((9, 1), 0, only_held=True)) == ()


def test_what_is_held_waits_for_the_guard_too_and_is_stopped_like_any() -> None:
    lifecycle = Lifecycle(cpus=1.0)
    feed(lifecycle, sent_ahead(1), sent_ahead(2), sent_ahead(3), IntakeChanged(stopped=True))
    feed(lifecycle, Exited((1, 1), DONE), StopAsked((2, 1), GRACE_NS))
    assert states(lifecycle, 2, 3) == [State.ENDED, State.WAITING]
    feed(lifecycle, IntakeChanged(stopped=False))
    assert states(lifecycle, 3) == [State.STARTING]
    feed(lifecycle, sent_ahead(4), LeaseLost())
    assert states(lifecycle, 4) == [State.ENDED]
