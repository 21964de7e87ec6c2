"""Whatever happens in whatever order: every invariant holds, and it happens again the same way.

A history is a list of steps that hypothesis chooses; each is a turn over the harness, with reports
right and wrong, restarts of agents and of the controller, silence and a full pool. After each turn
everything is checked. MASS_HISTORIES sets how many are tried.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.builders import rule, spec
from support.harness import SMALL, Harness

from allocator.pool import Block, PoolExhausted
from controller.core import explain
from controller.core.commands import SaveAttempt, SaveTask, SendAssignment, SendFreeze
from controller.core.dependencies import fulfils
from controller.core.errors import MassError
from controller.core.events import GuardActed
from controller.core.learning import by_own_fault, reached
from controller.core.limits import Limits
from controller.core.model import (
    Dependency,
    DependencyKind,
    GuardStep,
    GuardStepKind,
    KnownAttempt,
    MemoryLimits,
    NodeState,
    OomCause,
    OutputStream,
    Scheduling,
    Task,
    TaskAction,
    TaskSpec,
    TaskState,
)
from controller.core.placement import largest_sizes_bytes

LIMITS = replace(
    SMALL,
    nodes_max=4,
    tasks_running_max=6,
    tasks_open_max=12,
    user_tasks_max=4,
    reservations_max=3,
    brief_runs_min=1,
    brief_ns=20_000_000_000,
    ahead_per_cpu=2,
)
Wait = tuple[int, DependencyKind, bool]
RULES = (
    rule("Full", "mem_percent > 80", hold="5s", keep="5s"),
    rule("Blocked", "avg(mem_percent, '30s') > 70", block=True),
    rule("Silent", "node_silent_seconds > 20"),
)
NODES = ("n1", "n2", "n3", "n4", "n5")
GIB = 1 << 30
HISTORIES = int(os.environ.get("MASS_HISTORIES", "60"))

ENDS: tuple[dict[str, object], ...] = (
    {},
    {"exit_code": 3},
    {"signal": 9, "oom_kills": 1, "cause": OomCause.OWN_LIMIT, "peak": GIB},
    {"stopped": True, "signal": 15},
    {"start_error": "no such file"},
    {"start_error": "Cannot allocate memory", "cause": OomCause.BYSTANDER},
    {"start_error": "the agent is ending", "stopped": True},
    {"timed_out": True, "signal": 15},
    {"exit_code": None, "ended_at_ns": -(1 << 70)},
    {"peak": GIB},
    {"oom_kills": 1, "cause": OomCause.CHILD_ONLY, "peak": 2 * GIB},
    {"signal": 9, "cause": OomCause.GUARD, "peak": GIB},
    {"signal": 9, "oom_kills": 1, "cause": OomCause.BYSTANDER},
    {"signal": 9, "cause": OomCause.OUTSIDE, "peak": GIB},
    {"exit_code": 1, "cause": OomCause.BYSTANDER, "peak": GIB},
    {"signal": 9, "oom_kills": 1, "cause": OomCause.OWN_LIMIT, "peak": 5 * GIB},
    {"signal": 9, "cause": OomCause.GUARD, "peak": 5 * GIB},
)

node = st.sampled_from(NODES)
pick = st.integers(0, 11)  # which of the tasks that are open; any when there are fewer
quarter = st.integers(0, 32)  # quarters of a GiB

specs = st.builds(
    spec,
    mem=quarter.map(lambda n: (n + 1) * GIB // 4 if n % 3 else "auto"),
    limit=st.sampled_from([None, None, None, 16 * GIB]),
    exact=st.sampled_from([False, False, True]),
    category=st.sampled_from(["", "train", "align"]),
    cpus=st.sampled_from([0.1, 1.0, 2.0, 64.0]),
    priority=st.integers(-1, 1),
    retries=st.integers(0, 2),
    requeue=st.booleans(),
    retry_delay=st.sampled_from(["0s", "5s"]),
    hold=st.sampled_from([False, False, False, True]),
    array=st.sampled_from(["", "", "", "1-3", "0,7"]),
    at_once=st.integers(0, 2),
    constraint=st.sampled_from(["", "", "fast", "not fast", "gpus >= 1"]),
    gpus=st.sampled_from([0, 0, 0, 1, 3]),
    pack=st.booleans(),
)
waits = st.lists(st.tuples(pick, st.sampled_from(DependencyKind), st.booleans()), max_size=2)
steps = st.one_of(
    st.tuples(
        st.just("submit"),
        st.lists(st.tuples(specs, waits), min_size=1, max_size=4),
        st.booleans(),
        st.sampled_from(["ada", "bob"]),
    ),
    st.tuples(st.just("control"), pick, st.sampled_from(TaskAction), st.integers(-1, 1)),
    st.tuples(st.just("frozen"), pick, st.booleans()),
    st.tuples(st.just("drain"), node, st.sampled_from([0, "5s", "60s"])),
    st.tuples(st.just("forget"), node),
    st.tuples(
        st.just("reserve"), quarter, st.sampled_from(["", *NODES]), st.sampled_from(["5s", "1h"])
    ),
    st.tuples(st.just("end reservation"), pick, st.booleans()),
    st.tuples(st.just("cancel"), pick),
    st.tuples(st.just("hello"), node, st.booleans(), st.integers(0, 2)),
    st.tuples(st.just("leave"), node),
    st.tuples(st.just("sample"), node, quarter),
    st.tuples(st.just("guard"), node, pick, st.sampled_from(GuardStepKind)),
    st.tuples(st.just("intake stops"), node, quarter),
    st.tuples(st.just("started"), pick),
    st.tuples(st.just("ended"), pick, st.sampled_from(ENDS)),
    st.tuples(st.just("wrong report"), pick, node, st.integers(0, 3), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from(["1s", "7s", "31s", "130s", "16m"])),
    st.tuples(st.just("restart")),
    st.tuples(st.just("cordon"), node, st.booleans()),
    st.tuples(st.just("output"), pick, st.integers(1, 80_000)),
    st.tuples(st.just("fill"), st.booleans()),
)
# Most of what a history needs to become interesting is some nodes that take tasks.
histories = st.tuples(st.integers(0, 3), st.lists(steps, min_size=5, max_size=60))

# A history about memory alone: a few tasks whose attempts end in all ways, while nodes come and go.
needs = st.builds(
    spec,
    mem=st.sampled_from(["auto", "auto", "3GiB", "5GiB", "9GiB"]),
    category=st.sampled_from(["train", "align"]),
    retries=st.integers(0, 2),
)
memory_ends = st.sampled_from([how for how in ENDS if "cause" in how] + [ENDS[1], ENDS[2], ENDS[2]])
memory_steps = st.one_of(
    *[st.tuples(st.just("submit need"), needs)] * 2,
    *[st.tuples(st.just("end placed"), pick, memory_ends, quarter)] * 4,
    *[st.tuples(st.just("goes on"), st.sampled_from(["1s", "31s", "10m"]), quarter)] * 2,
    st.tuples(st.just("cordon"), node, st.booleans()),
    st.tuples(st.just("come back"), st.lists(st.sampled_from(NODES[:4]))),
    st.tuples(st.just("leave"), node),
    st.tuples(st.just("begin anew"), st.lists(st.sampled_from(NODES[:4]))),
)
memory_histories = st.tuples(st.just(4), st.lists(memory_steps, min_size=20, max_size=80))


@dataclass(slots=True)
class History:
    """One run of a history."""

    limits: Limits = LIMITS
    world: Harness = field(init=False)
    assigned: set[tuple[int, int]] = field(default_factory=set)
    hogs: list[Block] = field(default_factory=list)
    submits: int = 0

    def __post_init__(self) -> None:
        self.world = Harness(self.limits, RULES, 1 << 20)

    def run(self, ready: int, taken: list[tuple[object, ...]]) -> None:
        """Take every step, and check after each."""
        for name in NODES[:ready]:
            self.hello(name, True, 0)
            self.sample(name, 0)
        self.world.submit(spec())
        self.check(0)
        for kind, *arguments in taken:
            turns = len(self.world.everything)
            try:
                getattr(self, str(kind).replace(" ", "_"))(*arguments)
            except MassError:
                self.world.commands = []
                refused_turns = len(self.world.everything) - turns
                assert refused_turns == 0, "what was refused asks for nothing"
            self.check(turns)

    def check(self, turns: int) -> None:
        """Assert what holds after every turn."""
        world = self.world
        world.check()
        cluster = world.cluster
        assert len(cluster.reservations) <= LIMITS.tasks_running_max
        for account in cluster.accounts.task_counts().values():
            assert account <= LIMITS.user_tasks_max
        assert len(cluster.tasks) <= LIMITS.tasks_open_max
        assert len(cluster.nodes) <= LIMITS.nodes_max
        for commands in world.everything[turns:]:
            for command in commands:
                if isinstance(command, SendAssignment):
                    self.note_assignment(command)
                    if commands is world.everything[-1]:  # else nodes have changed since
                        self.check_size(command.task, cluster.nodes[command.node_id].slot)
        for task_id, task in world.saved.tasks.items():
            assert max(task.started_at_ns, task.ended_at_ns) <= world.now_ns
            assert min(task.started_at_ns, task.ended_at_ns) >= 0
            ends = [a.number for (i, _), a in world.saved.attempts.items() if i == task_id]
            if task.ended or task.state in (TaskState.PENDING, TaskState.HELD):
                assert sorted(ends) == list(range(1, task.attempt + 1)), "each attempt ended once"
            else:
                assert sorted(ends) == list(range(1, task.attempt)), "one attempt is open"
            self.check_counts(task)
        self.check_waiting()
        results = world.scheduler.displayed
        for task in list(cluster.tasks.values())[:3]:
            assert explain.sentences(cluster, results, task, world.now_ns)
            explain.node_refusals(cluster, results, task)

    def check_waiting(self) -> None:
        """Assert that the cycle left no task waiting that it could have placed."""
        cluster, results = self.world.cluster, self.world.scheduler.displayed
        if results is None or self.world.scheduler.cycle_wanted or self.hogs:
            return
        if len(cluster.reservations) >= LIMITS.tasks_running_max:
            return
        offers, kept = results.offers, set(cluster.kept_slots.values())
        for task in cluster.tasks.values():
            assert not (task.cancelled and task.state is TaskState.PENDING)
            if task.id not in cluster.queue or results.now_ns < task.submitted_at_ns:
                continue
            if self.is_bounded(task):
                continue
            for slot in set(range(results.count)) - kept:
                assert not (
                    offers.open[slot]
                    and not offers.blocked[slot]
                    and not offers.stopped[slot]
                    and offers.promise[slot] >= cluster.queue.shape(task.id).memory_request_bytes
                    and offers.capacity[slot] >= cluster.queue.shape(task.id).node_min_bytes
                    and offers.cpus_free[slot] >= task.spec.cpus
                    and offers.gpus_free[slot] >= task.spec.gpus
                    and (not task.spec.constraint or offers.matching(task.spec.constraint)[slot])
                ), f"task {task.id} fits slot {slot}"

    def is_bounded(self, task: Task) -> bool:
        """Say whether its user, its array or its new category has as many placed as it may."""
        cluster, bound = self.world.cluster, task.spec.array_running_max
        of_user = cluster.accounts.task_counts().get(task.user, 0)
        of_array = cluster.arrays.placed().get(task.array_id, 0)
        if (need := cluster.need_of(task)) is not None and cluster.learning.is_guess(need):
            elastic = self.limits.memory_limits is MemoryLimits.ELASTIC
            most = LIMITS.pilots_elastic_max if elastic else LIMITS.pilots_max
            displayed = self.world.scheduler.displayed
            assert displayed is not None
            silent = cluster.silent_tasks(displayed.now_ns)
            category = task.spec.category
            if cluster.category_tasks.get(category, 0) - silent.get(category, 0) >= most:
                return True
        return of_user >= LIMITS.user_tasks_max or bool(bound and of_array >= bound)

    def note_assignment(self, command: SendAssignment) -> None:
        """Assert that an assignment is saved, and new unless its own agent gets it again."""
        task = command.task
        assert self.world.saved.tasks[task.id].attempt >= task.attempt
        record = self.world.cluster.nodes[command.node_id]
        assert record.stream is not None
        assert task.instance_id == record.node.instance_id
        if (task.id, task.attempt) in self.assigned:
            assert record.state is NodeState.JOINING, "sent again only after a hello"
            return
        self.assigned.add((task.id, task.attempt))
        self.check_may_start(task)
        assert (record.state, record.node.scheduling) == (NodeState.READY, Scheduling.ENABLED)
        assert not record.leaving_until_ns
        cluster, slot = self.world.cluster, record.slot
        sampled_at_ns = int(cluster.history.sampled_at_ns()[slot])
        assert self.world.now_ns - sampled_at_ns <= LIMITS.sample_hold_ns
        assert cluster.ledger.reserved_bytes[slot] <= cluster.ledger.capacity_bytes[slot]
        if task.is_ahead:
            assert self.world.agents[command.node_id].hello.holds_ahead
            assert cluster.table.cpus_used[slot] > record.node.cpus
        beyond = LIMITS.ahead_per_cpu * record.node.cpus if task.is_ahead else 0
        assert cluster.table.cpus_used[slot] <= record.node.cpus + beyond

    def check_counts(self, task: Task) -> None:
        """Assert that what ended its attempts is counted, each apart from the others."""
        attempts = [a for (i, _), a in self.world.saved.attempts.items() if i == task.id]
        assert task.failures == sum(a.outcome is TaskState.FAILED for a in attempts)
        assert task.failures <= task.spec.retries + 1
        by_memory = [a for a in attempts if a.outcome is TaskState.OUT_OF_MEMORY]
        if task.cancelled:
            return
        if task.ended and by_memory and by_memory[-1].number == task.attempt:
            by_memory.pop()  # that was its end
        own = [a for a in by_memory if by_own_fault(a)]
        outside = [a for a in by_memory if a.oom_cause is OomCause.OUTSIDE]
        guarded = [a for a in by_memory if a.oom_cause is OomCause.GUARD]
        assert task.memory_requeues + task.memory_spared == len(by_memory)
        assert len(own) + len(outside) <= task.memory_requeues <= LIMITS.memory_requeues_max
        assert len(guarded) == task.guard_kills <= task.memory_spared
        assert task.memory_reached_bytes == max((reached(a) for a in own), default=0)

    def check_size(self, task: Task, slot: int) -> None:
        """Assert that an attempt gets half as much again as was reached, and all that the guard
        saw used, unless no open node gives that; and a node as large as what still stands."""
        cluster, results = self.world.cluster, self.world.scheduler.displayed
        assert results is not None
        need = cluster.need_of(task)
        if need is None:
            assert task.memory_size_bytes == task.spec.memory_request_bytes
            return
        gives_bytes, _ = largest_sizes_bytes(results.offers)
        wanted_bytes = max(math.ceil(1.5 * need.reached_bytes), need.used_bytes)
        within_bytes = need.limit_bytes or wanted_bytes
        assert task.memory_size_bytes >= min(wanted_bytes, gives_bytes, within_bytes)
        assert cluster.ledger.capacity_bytes[slot] >= cluster.learning.decide(need).node_min_bytes

    def check_may_start(self, task: Task) -> None:
        """Assert that all it waited for has ended as it hoped, and that its time has come."""
        for wanted in task.spec.after:
            things = [
                other
                for other in self.world.saved.tasks.values()
                if wanted.task_id in (other.id, other.array_id)
            ]
            assert things
            assert all(t.ended and fulfils(wanted.kind, t.state) for t in things)
        assert len(task.gpu_indexes) == task.spec.gpus
        assert task.not_before_ns <= self.world.now_ns

    # --- steps ---

    def submit(self, asked: list[tuple[TaskSpec, list[Wait]]], repeat: bool, user: str) -> None:
        wanted = [
            replace(spec, after=tuple(dict.fromkeys(self.dependency(place, w) for w in waits)))
            for place, (spec, waits) in enumerate(asked)
        ]
        if repeat and self.submits:
            before = len(self.world.saved.tasks)
            self.world.submit(*wanted, request_id=f"r{self.submits}", user=user)
            assert len(self.world.saved.tasks) == before
            return
        self.world.submit(*wanted, request_id=f"r{self.submits + 1}", user=user)
        self.submits += 1

    def dependency(self, place: int, wait: Wait) -> Dependency:
        """Return what to wait for: an earlier task of the call, or any task or array there was."""
        which, kind, own = wait
        if own and place:
            return Dependency(-1 - which % place, kind)
        known = sorted({t.array_id or t.id for t in self.world.saved.tasks.values()})
        return Dependency(known[which % len(known)], kind)

    def control(self, which: int, action: TaskAction, priority: int) -> None:
        (refused,) = self.world.control(action, self.open_task(which), priority=priority)
        assert refused == "" or not [c for c in self.world.commands if isinstance(c, SendFreeze)]

    def frozen(self, which: int, paused: bool) -> None:
        task_id = self.open_task(which)
        if self.world.task(task_id).node_id in self.world.cluster.nodes:
            self.world.frozen(task_id, paused)

    def drain(self, name: str, deadline: str | int) -> None:
        self.world.drain(name, deadline)

    def forget(self, name: str) -> None:
        self.world.forget(name)
        assert name not in self.world.cluster.nodes

    def reserve(self, quarters: int, name: str, ttl: str) -> None:
        self.world.reserve((quarters + 1) * GIB // 4, node=name, ttl=ttl)

    def end_reservation(self, which: int, renew: bool) -> None:
        known = sorted(self.world.saved.reservations)
        number = known[which % len(known)] if known else 99
        if renew:
            self.world.renew(number, "1m")
        else:
            self.world.release(number)

    def cancel(self, which: int) -> None:
        task_id = self.open_task(which)
        self.world.cancel(task_id)
        task = self.world.task(task_id)
        assert task.ended or task.cancelled or task_id == 0

    def hello(self, name: str, same: bool, keeps: int) -> None:
        """Say hello with some of the attempts that are there."""
        before = self.world.agents.get(name)
        instance = "i1" if before is None else before.hello.instance_id
        if before is not None and not same:
            instance = f"i{int(instance[1:]) + 1}"
        record = self.world.cluster.nodes.get(name)
        there = sorted(record.task_ids) if record is not None else []
        known = [KnownAttempt(i, self.world.task(i).attempt, ended=not same) for i in there[:keeps]]
        machine = "shared" if name in ("n1", "n2") else ""
        self.world.join(
            name,
            capacity=6 * GIB if name == "n4" else 4 * GIB,
            machine=machine,
            instance=instance,
            attempts=(*known, KnownAttempt(99, 1, ended=False)),
            labels={"fast": ""} if name in ("n1", "n3") else {},
            gpus=3 if name == "n1" else 0,
            holds_ahead=name != "n3",
        )
        forget = self.world.welcome().forget
        assert [(k.task_id, k.attempt) for k in forget] == [(99, 1)]

    def leave(self, name: str) -> None:
        if name in self.world.agents and name in self.world.cluster.nodes:
            self.world.leave(name)

    def sample(self, name: str, quarters: int) -> None:
        record = self.world.cluster.nodes.get(name)
        if record is None or record.stream is None:
            return
        used = min(quarters * GIB // 4, 8 * GIB)
        readings = {i: used // (2 * len(record.task_ids)) for i in sorted(record.task_ids)}
        self.world.sample(name, used=used, tasks=readings)

    def guard(self, name: str, which: int, kind: GuardStepKind) -> None:
        task_id = self.open_task(which)
        attempt = self.world.task(task_id).attempt
        step = GuardStep(self.world.now_ns, kind, task_id, attempt, 1, 2, 3.0, None, None, 4, "so")
        self.world.turn(GuardActed(self.world.now_ns, name, (step,)))

    def intake_stops(self, name: str, quarters: int) -> None:
        record = self.world.cluster.nodes.get(name)
        if record is not None and record.stream is not None:
            used = min(quarters * GIB // 4, 8 * GIB)
            self.world.sample(name, used=used, intake_stopped=True)

    def started(self, which: int) -> None:
        task_id = self.open_task(which)
        if self.world.task(task_id).node_id in self.world.cluster.nodes:
            self.world.started(task_id)

    def ended(self, which: int, how: dict[str, object]) -> None:
        task_id = self.open_task(which)
        if self.world.task(task_id).node_id in self.world.cluster.nodes:
            self.world.ended(task_id, **how)  # type: ignore[arg-type]

    def submit_need(self, wanted: TaskSpec) -> None:
        self.world.submit(wanted)

    def end_placed(self, which: int, how: dict[str, object], quarters: int) -> None:
        """End an attempt that is placed, with a peak of that many quarters of a GiB if any."""
        placed = sorted(self.world.cluster.reservations)
        if placed:
            peak = {"peak": quarters * GIB // 4} if "peak" in how else {}
            self.world.ended(placed[which % len(placed)], **how | peak)  # type: ignore[arg-type]

    def come_back(self, names: list[str]) -> None:
        """Let nodes connect with all that they ran, and be measured."""
        for name in names:
            self.hello(name, True, 11)
            self.sample(name, 0)

    def begin_anew(self, names: list[str]) -> None:
        self.restart()
        self.come_back([*NODES[:3], *names])

    def goes_on(self, time: str, quarters: int) -> None:
        """Let time pass, and all nodes that are there be measured, one with others' use."""
        self.world.advance(time)
        for name in NODES:
            self.sample(name, 0)
        self.sample(NODES[quarters % len(NODES)], quarters)

    def wrong_report(self, which: int, name: str, off: int, late: bool) -> None:
        """Report an attempt that is not the present one there: nothing may change."""
        task_id = self.open_task(which)
        task = self.world.task(task_id)
        if name not in self.world.cluster.nodes or name not in self.world.agents:
            return
        right = name == task.node_id and off == 0
        stream = 1_000_000 if late or right else None
        self.world.ended(task_id, node=name, attempt=task.attempt + off or 1, stream=stream)
        after = self.world.task(task_id)
        if after.attempt == task.attempt:  # else the cycle behind the report has placed it
            assert after == task
        assert not [c for c in self.world.commands if isinstance(c, SaveAttempt)]

    def wait(self, time: str) -> None:
        self.world.advance(time)

    def restart(self) -> None:
        self.hogs.clear()
        before = dict(self.world.cluster.tasks)
        self.world.restart()
        saved = [c for c in self.world.commands if isinstance(c, SaveTask)]
        assert self.world.cluster.tasks == before
        assert not saved, "no node is there yet"

    def cordon(self, name: str, on: bool) -> None:
        if on:
            self.world.cordon(name)
        else:
            self.world.uncordon(name)

    def output(self, which: int, count: int) -> None:
        task = self.world.task(self.open_task(which))
        cluster = self.world.cluster
        cluster.append_tail(task.id, task.attempt, OutputStream.STDOUT, b"x" * count)

    def fill(self, full: bool) -> None:
        """Take what is free of the pool, or give it back."""
        if not full:
            while self.hogs:
                self.world.pool.free(self.hogs.pop())
            return
        size_bytes = 1 << 19
        while size_bytes >= 64:
            try:
                self.hogs.append(self.world.pool.allocate(size_bytes))
            except PoolExhausted:
                size_bytes //= 2

    def open_task(self, which: int) -> int:
        """Return the id of an open task, or of an ended one."""
        world = self.world
        known = sorted(world.cluster.tasks) or sorted(world.saved.tasks)
        return known[which % len(known)]


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories, st.sampled_from(MemoryLimits))
def test_every_invariant_holds_in_any_history(
    history: tuple[int, list[tuple[object, ...]]], memory_limits: MemoryLimits
) -> None:
    check_history(history, memory_limits)


@settings(
    max_examples=max(1, HISTORIES // 3), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(memory_histories, st.sampled_from(MemoryLimits))
def test_every_attempt_gets_more_than_was_reached_in_any_history(
    history: tuple[int, list[tuple[object, ...]]], memory_limits: MemoryLimits
) -> None:
    check_history(history, memory_limits)


def check_history(
    history: tuple[int, list[tuple[object, ...]]], memory_limits: MemoryLimits
) -> None:
    """Assert that every invariant holds after each step, and that it happens again the same way."""
    limits = replace(LIMITS, memory_limits=memory_limits)
    first, second = History(limits), History(limits)
    for run in (first, second):
        try:
            run.run(*history)
        finally:
            run.world.close()
    assert first.world.everything == second.world.everything
    assert first.world.saved == second.world.saved
