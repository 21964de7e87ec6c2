"""What is sent, in which order, and what is not worth sending; time moves by hand."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from mass.v1 import agent_pb2
from support.fake_controller import FakeRunner

from agent import wire
from agent.attempt import (
    Acknowledged,
    Assigned,
    Assignment,
    Exited,
    GuardStep,
    GuardStepKind,
    Key,
    Outcome,
    StartSucceeded,
)
from agent.attempts import Attempts
from agent.deadband import is_full_soon, is_news
from agent.follower import Follower
from agent.memory import MemoryReading, MemoryUnreadable
from agent.outbox import (
    CALM_NS,
    FAST_INTERVAL_NS,
    LOG_REQUESTS_MAX,
    REPORTS_GAP_NS,
    REPORTS_PER_BATCH_MAX,
    RESEND_NS,
    START_PATIENCE_NS,
    STEPS_PER_BATCH_MAX,
    Outbox,
)
from agent.sampler import Sample, Sampler
from agent.spool import Spool

GIB = 1 << 30
MIB = 1 << 20
SECOND_NS = 1_000_000_000
SAMPLING = wire.Sampling(SECOND_NS, 10 * SECOND_NS)
QUIET = Sample(0, MemoryReading(16 * GIB, 12 * GIB, GIB, 0), cpu_percent=10.0, tasks={(1, 1): GIB})


NO_METRICS: Mapping[str, float] = {}


class StillSampler(Sampler):
    """Reads a machine whose memory moves only when the test says so."""

    still = QUIET.memory
    readable = True

    def read(
        self,
        *,
        now_unix_ns: int,
        monotonic_ns: int,
        tasks: Mapping[Key, int],
        oom_kills: int,
        custom: Mapping[str, float] = NO_METRICS,
    ) -> Sample:
        if not self.readable:
            raise MemoryUnreadable("gone")
        return replace(QUIET, memory=self.still, tasks=tasks, oom_kills=oom_kills, custom=custom)


@dataclass
class Bench:
    """An outbox with a fake runner, a machine that stands still, and a hand clock."""

    work_dir: Path
    now_ns: int = 10**12
    sampler: StillSampler = field(init=False)

    def __post_init__(self) -> None:
        self.spool = Spool(self.work_dir)
        self.attempts = Attempts(
            node_id="n1",
            spool=self.spool,
            follower=Follower(self.work_dir),
            make_runner=FakeRunner,
            environment={},
        )
        assert isinstance(self.attempts.runner, FakeRunner)
        self.runner = self.attempts.runner
        self.sampler = StillSampler(self.work_dir)
        self.hurried = False
        self.outbox = Outbox(
            self.attempts,
            self.sampler,
            is_hurried=lambda: self.hurried,
            clock_ns=lambda: self.now_ns,
        )

    def open(self) -> None:
        """Open a stream and take its first sample."""
        self.outbox.open(SAMPLING)
        assert self.kinds()[0] == "samples"

    def run(self, key: Key, used_bytes: int = MIB) -> None:
        """Have an attempt running."""
        self.attempts.lifecycle.handle(Assigned(Assignment(key, ("true",))), 1)
        self.runner.used[key] = used_bytes
        self.attempts.handle(StartSucceeded(key, 5, 1))

    def messages(self) -> list[agent_pb2.AgentMessage]:
        """Return everything that waits, in order."""
        found = []
        while (message := self.outbox.next_message()) is not None:
            found.append(message)
        return found

    def kinds(self) -> list[str]:
        """Return the kinds of everything that waits, in order."""
        return [message.WhichOneof("body") or "" for message in self.messages()]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.attempts.close()
    made.spool.close()
    made.sampler.close()


async def test_an_end_of_a_task_that_was_never_in_a_sample_needs_none(bench: Bench) -> None:
    bench.open()
    bench.run((1, 1))
    bench.runner.end((1, 1), exit_code=0)
    (message,) = bench.messages()
    assert [report.sequence for report in message.reports.reports] == [1, 2]


async def test_many_ends_share_one_sample_and_one_reading_of_the_tasks(bench: Bench) -> None:
    for task_id in range(1, 6):
        bench.run((task_id, 1))
    bench.open()
    reads = bench.runner.usage_reads
    for task_id in (1, 2):
        bench.runner.end((task_id, 1), exit_code=0)
    sample, reports = bench.messages()
    assert list(sample.samples.samples[0].task_ids) == [3, 4, 5]
    assert len(reports.reports.reports) == 2
    assert bench.runner.usage_reads == reads
    bench.now_ns += 60_000_000
    bench.runner.end((3, 1), exit_code=0)
    assert bench.kinds() == ["samples", "reports"]
    assert bench.runner.usage_reads == reads + 1


async def test_a_start_waits_for_its_end_and_an_end_behind_a_batch_for_others(bench: Bench) -> None:
    bench.open()
    assert bench.outbox.patience_ns() == 0
    bench.run((1, 1))
    assert bench.outbox.patience_ns() == START_PATIENCE_NS
    bench.now_ns += 1_000_000
    bench.run((2, 1))
    assert bench.outbox.patience_ns() == START_PATIENCE_NS - 1_000_000
    bench.runner.end((1, 1), exit_code=0)
    assert bench.outbox.patience_ns() == 0
    (batch,) = bench.messages()
    assert [report.sequence for report in batch.reports.reports] == [1, 2, 3]
    bench.now_ns += 1_000_000
    bench.runner.end((2, 1), exit_code=0)
    assert bench.outbox.patience_ns() == REPORTS_GAP_NS - 1_000_000
    bench.outbox.request_log(agent_pb2.ReadLog(request_id=1, task_id=1, attempt=1))
    assert bench.outbox.patience_ns() == 0


async def test_an_unreadable_machine_does_not_hold_reports_back(bench: Bench) -> None:
    bench.run((1, 1))
    bench.open()
    bench.sampler.readable = False
    bench.runner.end((1, 1), exit_code=0)
    assert bench.kinds() == ["reports"]


async def test_tasks_that_cannot_be_read_cost_a_sample_and_not_the_agent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage() -> dict[Key, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    bench.run((1, 1))
    bench.open()
    bench.now_ns += 60_000_000_000
    monkeypatch.setattr(bench.runner, "usage", usage)
    assert bench.outbox.offer_sample() > 0
    assert bench.kinds() == []
    monkeypatch.undo()
    bench.outbox.offer_sample()
    assert bench.kinds() == ["samples"]


async def test_reports_come_before_logs_and_the_goodbye_is_last(bench: Bench) -> None:
    bench.open()
    bench.outbox.say_goodbye("told to end")
    bench.outbox.request_log(agent_pb2.ReadLog(request_id=1, task_id=1, attempt=1))
    bench.run((1, 1))
    assert bench.kinds() == ["reports", "log", "goodbye"]


async def test_reports_are_sent_in_batches_of_a_bounded_size(bench: Bench) -> None:
    bench.open()
    for task_id in range(1, REPORTS_PER_BATCH_MAX + 3):
        bench.attempts.lifecycle.handle(Assigned(Assignment((task_id, 1), ()), "no command"), 1)
    sizes = [len(message.reports.reports) for message in bench.messages()]
    assert sizes == [REPORTS_PER_BATCH_MAX, 2]


async def test_large_tails_end_a_batch_early(bench: Bench) -> None:
    bench.open()
    for task_id in range(1, 41):
        key = (task_id, 1)
        _, stdout_path, _ = bench.attempts.follower.begin(key)
        Path(stdout_path).write_bytes(b"x" * wire.TAIL_BYTES_MAX)
        bench.run(key)
        bench.attempts.handle(Exited(key, Outcome(exit_code=0, started_at_ns=1)))
    messages = bench.messages()
    assert len(messages) == 3
    assert all(message.ByteSize() < 2 * MIB for message in messages)
    assert sum(len(message.reports.reports) for message in messages) == 80


async def test_a_new_stream_begins_with_a_sample_and_all_that_is_owed(bench: Bench) -> None:
    bench.open()
    bench.run((1, 1))
    assert bench.kinds() == ["reports"]
    bench.outbox.close()
    bench.outbox.open(SAMPLING)
    assert bench.kinds() == ["samples", "reports"]


async def test_reports_that_nobody_acknowledges_are_sent_again(bench: Bench) -> None:
    bench.open()
    bench.run((1, 1))
    bench.run((2, 1))
    assert bench.kinds() == ["reports"]
    bench.now_ns += RESEND_NS
    bench.outbox.resend()
    assert bench.kinds() == []
    bench.attempts.handle(Acknowledged(1))
    bench.now_ns += 1
    bench.outbox.resend()
    (message,) = bench.messages()
    assert [report.sequence for report in message.reports.reports] == [2]


async def test_a_newer_sample_replaces_one_that_still_waits(bench: Bench) -> None:
    bench.open()
    for available in (10 * GIB, 8 * GIB):
        bench.sampler.still = replace(bench.sampler.still, available_bytes=available)
        bench.outbox.offer_sample()
    (message,) = bench.messages()
    assert message.samples.samples[0].memory_available_bytes == 8 * GIB
    assert bench.outbox.samples_dropped == 1


async def test_what_stands_still_is_sent_each_heartbeat(bench: Bench) -> None:
    bench.open()
    sent_at = []
    for second in range(1, 31):
        bench.now_ns += SECOND_NS
        bench.outbox.offer_sample()
        if bench.kinds():
            sent_at.append(second)
    assert sent_at == [10, 20, 30]


async def test_every_sample_is_sent_fast_while_the_guard_is_hurried(bench: Bench) -> None:
    bench.open()
    bench.now_ns += SECOND_NS
    assert bench.outbox.offer_sample() == SECOND_NS
    assert bench.kinds() == []
    bench.hurried = True
    assert bench.outbox.offer_sample() == FAST_INTERVAL_NS
    assert bench.kinds() == ["samples"]


async def test_memory_of_tasks_that_moves_is_sampled_fast_until_it_is_calm(bench: Bench) -> None:
    bench.run((1, 1))
    bench.open()
    bench.now_ns += SECOND_NS
    bench.outbox.offer_sample()
    bench.runner.used[1, 1] += GIB
    bench.now_ns += SECOND_NS
    assert bench.outbox.offer_sample() == FAST_INTERVAL_NS
    bench.now_ns += CALM_NS - 1
    assert bench.outbox.offer_sample() == FAST_INTERVAL_NS
    bench.now_ns += 1
    assert bench.outbox.offer_sample() == SECOND_NS


async def test_steps_of_the_guard_go_out_behind_a_sample_before_reports(bench: Bench) -> None:
    bench.run((1, 1))
    bench.open()
    bench.runner.end((1, 1), exit_code=0)
    step = GuardStep(5, GuardStepKind.STOP_INTAKE, None, 90, 100)
    for _ in range(STEPS_PER_BATCH_MAX + 1):
        bench.attempts.on_step(step)
    assert bench.outbox.patience_ns() == 0
    assert bench.kinds() == ["samples", "guard_steps", "guard_steps", "reports"]


async def test_nothing_is_offered_without_a_stream(bench: Bench) -> None:
    bench.open()
    bench.outbox.close()
    bench.now_ns += 20 * SECOND_NS
    bench.outbox.offer_sample()
    assert bench.kinds() == []


async def test_log_requests_beyond_the_bound_are_dropped(bench: Bench) -> None:
    bench.open()
    for number in range(LOG_REQUESTS_MAX + 5):
        bench.outbox.request_log(agent_pb2.ReadLog(request_id=number, task_id=1, attempt=1))
    answers = [message.log.request_id for message in bench.messages()]
    assert answers == list(range(LOG_REQUESTS_MAX))


async def test_the_controller_may_slow_sampling_down_but_a_flag_keeps_it_from_speeding_up(
    bench: Bench,
) -> None:
    assert bench.outbox.offer_sample() == SECOND_NS
    bench.outbox.set_sampling(wire.Sampling(5 * SECOND_NS, 30 * SECOND_NS), first=False)
    assert bench.outbox.offer_sample() == 5 * SECOND_NS
    own = Outbox(bench.attempts, bench.sampler, sample_interval_ns=2 * SECOND_NS)
    own.set_sampling(SAMPLING, first=True)
    assert own.offer_sample() == 2 * SECOND_NS
    own.set_sampling(SAMPLING, first=False)
    assert own.offer_sample() == 2 * SECOND_NS
    own.set_sampling(wire.Sampling(5 * SECOND_NS, 30 * SECOND_NS), first=False)
    assert own.offer_sample() == 5 * SECOND_NS


async def test_an_interval_of_the_agents_own_can_change_and_go(bench: Bench) -> None:
    bench.outbox.set_sampling(wire.Sampling(3 * SECOND_NS, 30 * SECOND_NS), first=False)
    bench.outbox.set_own_interval(SECOND_NS // 5)
    assert bench.outbox.offer_sample() == SECOND_NS // 5
    bench.outbox.set_own_interval(None)
    assert bench.outbox.offer_sample() == 3 * SECOND_NS


def memory(**changes: int) -> Sample:
    return replace(QUIET, memory=replace(QUIET.memory, **changes))


@pytest.mark.parametrize(
    ("now", "news"),
    [
        (QUIET, False),
        (memory(available_bytes=12 * GIB - 64 * MIB + 1), False),
        (memory(available_bytes=12 * GIB - 64 * MIB), True),
        (memory(available_bytes=12 * GIB + 64 * MIB), True),
        (memory(total_bytes=16 * GIB - 1), True),
        (memory(swap_used_bytes=64 * MIB), True),
        (memory(available_bytes=GIB), True),
        (replace(QUIET, cpu_percent=14.9), False),
        (replace(QUIET, cpu_percent=15.0), True),
        (replace(QUIET, cpu_percent=None), True),
        (replace(QUIET, psi_some_percent=0.0), True),
        (replace(QUIET, oom_kills=1), True),
        (replace(QUIET, load1=9.0), False),
        (replace(QUIET, tasks={(1, 1): GIB + 63 * MIB}), False),
        (replace(QUIET, tasks={(1, 1): GIB + 64 * MIB}), True),
        (replace(QUIET, tasks={}), True),
        (replace(QUIET, tasks={(1, 2): GIB}), True),
    ],
)
def test_the_dead_band_lets_news_through(now: Sample, news: bool) -> None:
    assert is_news(QUIET, now) is news


def test_on_a_small_machine_one_percent_is_news() -> None:
    small = replace(QUIET, memory=MemoryReading(GIB, GIB // 2, 0, 0), tasks={})
    moved = replace(small, memory=MemoryReading(GIB, GIB // 2 - GIB // 99, 0, 0))
    assert is_news(small, moved)


def test_under_pressure_every_sample_is_news() -> None:
    full = replace(QUIET, memory=MemoryReading(10 * GIB, 1 * GIB, 0, 0))
    assert is_news(full, full)


@pytest.mark.parametrize(
    ("growth", "soon"), [(None, False), (-1e9, False), (0.5 * GIB, False), (1.0 * GIB, True)]
)
def test_memory_that_will_be_full_soon_is_sampled_faster(growth: float | None, soon: bool) -> None:
    sample = replace(QUIET, memory_growth_bytes_per_second=growth)
    assert is_full_soon(sample) is soon
