"""What the loop and the guard want of one attempt at once, and what its processes then see."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, cast

import pytest

from agent.attempt import Key
from agent.enforce import Enforcement
from agent.group import EnforcementError, Group, NodeMemory, OomFacts
from agent.running import Attempt, Launch, Running
from allocator.children import ChildProcess, ExitStatus

GIB = 1 << 30
KEY: Key = (1, 1)
LAUNCH = Launch(KEY, ("true",), {}, "/", "/o", "/e", None, 1.0)


class FakeProcess:
    """A main process that notes its signals."""

    pid = 77

    def __init__(self) -> None:
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def collect(self) -> ExitStatus:
        return ExitStatus(0, None)


class FakeEnforcement:
    """Groups whose state is kept in memory; a capacity below use comes into force half way."""

    def __init__(self) -> None:
        self.frozen: dict[str, bool] = {}
        self.signals: list[tuple[str, int]] = []
        self.used: dict[str, int] = {}
        self.capacities: list[int | None] = []
        self.oom_groups: list[str] = []
        self.least_bytes = 0
        self.refuse: Exception | None = None
        self.refuse_usage: Exception | None = None

    def freeze(self, group: Group, paused: bool) -> None:
        self.frozen[group.name] = paused

    def signal(self, group: Group, number: int) -> int:
        self.signals.append((group.name, number))
        return 1

    def kill(self, group: Group) -> int:
        if self.refuse is not None:
            raise self.refuse
        self.signals.append((group.name, signal.SIGKILL))
        return 1

    def usage(self, group: Group) -> int:
        if self.refuse_usage is not None:
            raise self.refuse_usage
        return self.used.get(group.name, 0)

    def usages(self, groups: Sequence[Group]) -> list[int]:
        return [self.usage(group) for group in groups]

    def finish_oom_groups(self) -> tuple[str, ...]:
        return ()

    def set_limit(self, group: Group, limit_bytes: int | None) -> None:
        self.used[group.name] = 0

    def set_oom_group(self, group: Group, on: bool) -> None:
        self.oom_groups.append(group.name)

    def share_cpus(self, group: Group, cpus: float) -> None:
        pass

    def set_capacity(self, capacity_bytes: int | None) -> int | None:
        if self.refuse is not None:
            raise self.refuse
        self.capacities.append(capacity_bytes)
        return None if capacity_bytes is None else max(capacity_bytes, self.least_bytes)

    def started(self, group: Group, pid: int) -> None:
        pass

    def peak(self, group: Group) -> int:
        return 5

    def oom_facts(self, group: Group) -> OomFacts:
        return OomFacts(0, own_limit=False, node_full=False)

    def node_memory(self) -> NodeMemory:
        return NodeMemory(0, None, stalled=False)

    def remove(self, group: Group) -> None:
        if isinstance(self.refuse, EnforcementError):
            raise self.refuse


class Bench:
    """One running attempt in the group `g`."""

    def __init__(self, launch: Launch = LAUNCH) -> None:
        self.kernel = FakeEnforcement()
        self.running = Running(cast(Enforcement, self.kernel))
        self.process = FakeProcess()
        self.attempt = Attempt(launch, Group("g"), cast(ChildProcess, self.process), 1, began_ns=9)
        self.running.add(self.attempt)

    def do(self, word: str) -> None:
        """Carry out one word of the loop or the guard."""
        words: dict[str, Any] = {
            "user pauses": lambda: self.running.pause(KEY, True),
            "user resumes": lambda: self.running.pause(KEY, False),
            "guard freezes": lambda: self.running.hold(KEY, True),
            "guard thaws": lambda: self.running.hold(KEY, False),
            "guard asks": lambda: self.running.ask(KEY),
            "user stops": lambda: self.running.terminate(KEY),
        }
        words[word]()


@pytest.mark.parametrize(
    ("words", "frozen"),
    [
        (["guard freezes"], True),
        (["guard freezes", "guard thaws"], False),
        # Each lets go only of what it holds.
        (["user pauses", "guard freezes", "guard thaws"], True),
        (["guard freezes", "user pauses", "guard thaws"], True),
        (["guard freezes", "user pauses", "user resumes"], True),
        (["guard freezes", "user pauses", "user resumes", "guard thaws"], False),
        (["guard freezes", "user resumes"], True),
        (["user pauses", "guard thaws"], True),
        # What is frozen takes no signal.
        (["guard freezes", "guard asks"], False),
        (["user pauses", "guard freezes", "guard asks"], True),
        (["user pauses", "guard freezes", "user stops"], False),
        # What is being ended is not frozen again.
        (["user stops", "guard freezes"], False),
    ],
)
def test_attempt_is_frozen_while_its_user_or_the_guard_wants_it(
    words: list[str], frozen: bool
) -> None:
    bench = Bench()
    for word in words:
        bench.do(word)
    assert bench.kernel.frozen["g"] is frozen


def test_any_order_of_pauses_ends_as_the_last_words_of_both_say() -> None:
    words = ("user pauses", "user resumes", "guard freezes", "guard thaws")
    for order in product(words, repeat=4):
        bench = Bench()
        bench.kernel.frozen["g"] = False
        for word in order:
            bench.do(word)
        user = next((w == "user pauses" for w in reversed(order) if w.startswith("user")), False)
        guard = next((w == "guard freezes" for w in reversed(order) if w[0] == "g"), False)
        assert bench.kernel.frozen["g"] is (user or guard), order


def test_a_step_that_changes_nothing_says_so() -> None:
    bench = Bench()
    assert not bench.running.hold(KEY, False)
    assert bench.running.hold(KEY, True)
    assert not bench.running.hold(KEY, True)
    assert bench.running.ask(KEY)
    assert bench.kernel.signals == [("g", signal.SIGTERM)]
    bench.do("user stops")
    assert not bench.running.ask(KEY), "a second SIGTERM means another thing to some programs"
    assert bench.running.kill(KEY)
    for act in (bench.running.ask, bench.running.kill):
        assert not act((2, 1))


def test_a_kill_reaches_the_main_process_though_its_group_cannot_be_read() -> None:
    bench = Bench()
    bench.kernel.refuse = OSError(24, "Too many open files")
    with pytest.raises(OSError, match="Too many"):
        bench.running.kill(KEY)
    assert bench.process.signals == [signal.SIGKILL]


def test_a_kill_reaches_the_group_though_its_memory_cannot_be_read() -> None:
    bench = Bench()
    bench.kernel.refuse_usage = OSError(24, "Too many open files")
    assert bench.running.kill(KEY)
    assert bench.kernel.signals == [("g", signal.SIGKILL)]


def test_the_guard_sees_what_the_assignment_said_and_who_holds_the_attempt() -> None:
    launch = replace(
        LAUNCH,
        memory_request_bytes=3,
        memory_expected_peak_bytes=4,
        memory_elastic=True,
        priority=-2,
        no_requeue=True,
    )
    bench = Bench(launch)
    bench.kernel.used["g"] = 50
    bench.do("guard freezes")

    def look() -> tuple[bool, bool]:
        (task,) = bench.running.guarded(lambda key, used_bytes: used_bytes * 2.0)
        assert (task.key, task.used_bytes, task.growth_bytes_per_second) == (KEY, 50, 100.0)
        assert (task.request_bytes, task.expected_peak_bytes, task.elastic) == (3, 4, True)
        assert (task.priority, task.no_requeue, task.started_at_ns) == (-2, True, 9)
        return task.frozen, task.paused

    assert look() == (True, False)
    bench.do("user pauses")
    assert look() == (True, True)
    bench.do("user stops")
    assert look() == (False, True)


def test_a_capacity_that_cannot_be_held_yet_is_tried_again_until_it_is() -> None:
    bench = Bench()
    bench.kernel.least_bytes = 2 * GIB
    bench.running.set_capacity(GIB)
    bench.running.settle_capacity()
    bench.kernel.least_bytes = 0
    bench.running.settle_capacity()
    bench.running.settle_capacity()
    assert bench.kernel.capacities == [GIB, GIB, GIB]
    bench.running.set_capacity(None)
    bench.running.settle_capacity()
    assert bench.kernel.capacities[3:] == [None]


def test_a_capacity_that_is_refused_is_logged_and_the_agent_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.kernel.refuse = EnforcementError("group g: limit 5 refused: Invalid argument")
    bench.running.set_capacity(5)
    assert "limit 5 refused" in caplog.text


@pytest.mark.parametrize("error", [OSError, EnforcementError])
def test_a_capacity_that_descriptors_were_short_for_is_tried_again(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    bench.running.set_capacity(GIB)
    bench.kernel.refuse = error("Too many open files")
    bench.running.suspend_capacity(True)
    bench.running.suspend_capacity(False)
    bench.running.settle_capacity()
    assert caplog.text.count("Too many open files") == 1
    bench.kernel.refuse = None
    bench.running.settle_capacity()
    bench.running.settle_capacity()
    assert bench.kernel.capacities == [GIB, GIB]


def test_an_ended_attempt_is_gone_though_its_group_stays() -> None:
    bench = Bench()
    bench.kernel.refuse = EnforcementError("cannot remove group g")
    assert bench.running.end(bench.attempt) == ExitStatus(0, None)
    assert bench.running.known() == ()


def test_a_group_takes_its_whole_tree_only_when_asked() -> None:
    bench = Bench()
    bench.running.limit(Group("one"), LAUNCH)
    bench.running.limit(Group("all"), replace(LAUNCH, oom_group=True))
    assert bench.kernel.oom_groups == ["all"]


def test_a_suspended_capacity_is_held_again_as_it_was_last_set() -> None:
    bench = Bench()
    bench.running.set_capacity(GIB)
    bench.running.suspend_capacity(True)
    bench.running.set_capacity(2 * GIB)
    bench.running.suspend_capacity(False)
    assert bench.kernel.capacities == [GIB, None, None, 2 * GIB]
