"""What the agent has to say, in the order of its urgency.

Owns samples, reports, outputs and answers that wait for the stream, each with its bound. The rules
kept:

* Reports are given out until they are acknowledged; samples may be dropped, the newest wins.
* The report of an end goes out after a sample that does not count the attempt any more. The
  controller tells foreign memory as the machine's use minus its tasks' use, so an attempt that it
  forgets while the machine's use still holds its memory would look like foreign memory. An attempt
  that was never in a sample sent is in neither number: its end needs no sample. While the tasks'
  readings are young they are repeated without those that ended, and only the machine's memory is
  read again, so many ends cost no more than one reading of the tasks.
* Output is read when the stream has room for it, so a slow stream skips and never queues.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice

from mass.v1 import agent_pb2

from agent import wire
from agent.attempt import Ended, GuardStep, Key, Report, Started
from agent.attempts import Attempts
from agent.deadband import is_full_soon, is_news, tasks_move
from agent.memory import MemoryUnreadable
from agent.sampler import Sample, Sampler

LOG = logging.getLogger(__name__)

# Between samples while the machine would be full soon, memory of tasks moves or the guard acts.
FAST_INTERVAL_NS = 250_000_000
CALM_NS = 2_000_000_000  # so long nothing moves until it is sampled slowly again
STEPS_MAX = 256  # of the guard, that wait to be sent; the newest win
STEPS_PER_BATCH_MAX = 64
READINGS_KEPT_MIN_NS = 50_000_000
# Reading all tasks takes at most one part in this many of the agent's time.
READINGS_SHARE = 20
# gRPC loses nothing on a live stream; a controller that has not saved a report for so long has
# dropped it, and it is told again.
RESEND_NS = 30_000_000_000
REPORTS_PER_BATCH_MAX = 512
# A message costs both sides as much as several reports, so reports wait a little for company: a
# start, with which a short task's end may go, and ends that follow another message at once.
START_PATIENCE_NS = 20_000_000
REPORTS_GAP_NS = 10_000_000
BATCH_BYTES_MAX = 1 << 20
LOG_REQUESTS_MAX = 64
SAMPLING_DEFAULT = wire.Sampling(interval_ns=1_000_000_000, heartbeat_ns=10_000_000_000)


class Outbox:
    """What waits to be sent on the open stream; `ready` is set when there may be something."""

    def __init__(
        self,
        attempts: Attempts,
        sampler: Sampler,
        *,
        sample_interval_ns: int | None = None,
        custom: Callable[[], Mapping[str, float]] = dict,
        is_hurried: Callable[[], bool] = bool,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`sample_interval_ns` stands above what the welcome says; `custom` are own metrics.

        `is_hurried` tells that the guard looks often.
        """
        self.ready = asyncio.Event()
        self.samples_dropped = 0
        self._attempts = attempts
        self._lifecycle = attempts.lifecycle
        self._follower = attempts.follower
        self._sampler = sampler
        self._custom = custom
        self._is_hurried = is_hurried
        self._own_interval_ns = sample_interval_ns
        self._clock_ns = clock_ns
        self._sampling = SAMPLING_DEFAULT
        self._asked_sampling = SAMPLING_DEFAULT
        self._open = False
        attempts.changed = self._note_report
        attempts.stepped = self._note_step
        # What waits, each with its bound.
        self._goodbye: str | None = None
        self._pending: Sample | None = None
        self._outputs: deque[tuple[Key, int]] = deque()  # at most two of each running attempt
        self._log_requests: deque[agent_pb2.ReadLog] = deque()
        self._steps: deque[GuardStep] = deque(maxlen=STEPS_MAX)
        self._steps_dropped = 0  # and not logged yet
        self._offered: Sample | None = None  # the last that was taken in its time
        self._moved_at_ns = clock_ns() - CALM_NS
        # What the controller has been told on this stream.
        self._sent: Sample | None = None
        self._sent_at_ns = 0
        self._reported_sequence = 0
        self._reported_at_ns = 0
        self._batch_at_ns = 0  # when reports were given out
        self._started_at_ns = 0  # since when a start waits
        # The tasks' readings, when they were taken and how long they serve.
        self._readings: dict[Key, int] = {}
        self._readings_at_ns = clock_ns() - READINGS_KEPT_MIN_NS
        self._readings_kept_ns = READINGS_KEPT_MIN_NS

    def open(self, sampling: wire.Sampling) -> None:
        """Begin a stream: a sample first, then every report that is owed."""
        self._open = True
        self.set_sampling(sampling, first=True)
        self._reported_sequence = 0
        self._sent = None
        self._pending = self._fresh_sample()
        self.ready.set()

    def close(self) -> None:
        """End a stream: what only that stream asked for is dropped, reports stay owed."""
        self._open = False
        self._pending = None
        self._outputs.clear()
        self._log_requests.clear()

    def next_message(self) -> agent_pb2.AgentMessage | None:
        """Return what is most urgent now; what is ready at the same time is in one message."""
        if (sample := self._due_sample()) is not None:
            self._sent, self._sent_at_ns = sample, self._clock_ns()
            return wire.encode_samples((sample,))
        if self._steps:
            if self._steps_dropped:
                LOG.warning("oldest steps of the guard never sent count=%d", self._steps_dropped)
                self._steps_dropped = 0
            count = min(len(self._steps), STEPS_PER_BATCH_MAX)
            return wire.encode_guard_steps([self._steps.popleft() for _ in range(count)])
        if (reports := self._due_reports()) is not None:
            return reports
        if self._log_requests:
            return self._follower.answer(self._log_requests.popleft())
        while self._outputs:
            if (chunk := self._follower.chunk(*self._outputs.popleft())) is not None:
                return chunk
        if self._goodbye is not None:
            reason, self._goodbye = self._goodbye, None
            return wire.encode_goodbye(reason)
        return None

    def patience_ns(self) -> int:
        """Return how long what is to be sent may wait for company; 0 sends it now."""
        if self._pending or self._steps or self._outputs or self._log_requests:
            return 0
        if self._goodbye is not None:
            return 0
        reports = self._unreported()
        if not reports:
            return 0
        now_ns = self._clock_ns()
        patience_ns = self._batch_at_ns + REPORTS_GAP_NS - now_ns
        if all(isinstance(report.event, Started) for report in reports):
            since_ns = now_ns - self._started_at_ns
            patience_ns = max(patience_ns, START_PATIENCE_NS - since_ns)
        return max(0, patience_ns)

    def say_goodbye(self, reason: str) -> None:
        """Tell the controller, after all else, that the agent ends on purpose."""
        self._goodbye = reason
        self.ready.set()

    def note_acknowledgement(self) -> None:
        """The controller saves reports: there is no need to send any again."""
        self._reported_at_ns = self._clock_ns()

    def request_log(self, request: agent_pb2.ReadLog) -> None:
        """Answer a request in its turn; beyond LOG_REQUESTS_MAX waiting ones it is dropped.

        The asker gives up by itself; waiting for room here would hold back assignments.
        """
        if len(self._log_requests) >= LOG_REQUESTS_MAX:
            LOG.warning("log request dropped waiting=%d", LOG_REQUESTS_MAX)
            return
        self._log_requests.append(request)
        self.ready.set()

    def set_sampling(self, sampling: wire.Sampling, *, first: bool) -> None:
        """Keep the intervals; a flag stands above the welcome, a later request may slow it down."""
        self._asked_sampling = sampling
        interval_ns, own_ns = sampling.interval_ns, self._own_interval_ns
        if own_ns is not None:
            interval_ns = own_ns if first else max(interval_ns, own_ns)
        self._sampling = wire.Sampling(interval_ns, sampling.heartbeat_ns)

    def set_own_interval(self, interval_ns: int | None) -> None:
        """Keep another interval of the agent's own; None leaves it to the controller."""
        self._own_interval_ns = interval_ns
        self.set_sampling(self._asked_sampling, first=True)

    def offer_sample(self) -> int:
        """Take a sample, let it be sent if it is news; return nanoseconds to the next one."""
        sample = self._fresh_sample()
        if sample is None:
            return self._sampling.interval_ns
        if self._open and self._is_due(sample):
            self.samples_dropped += self._pending is not None
            self._pending = sample
            self.ready.set()
        now_ns = self._clock_ns()
        before, self._offered = self._offered, sample
        if before is not None and tasks_move(before, sample):
            self._moved_at_ns = now_ns
        is_moving = now_ns - self._moved_at_ns < CALM_NS
        if is_moving or sample.intake_stopped or self._is_hurried() or is_full_soon(sample):
            return min(self._sampling.interval_ns, FAST_INTERVAL_NS)
        return self._sampling.interval_ns

    def follow_outputs(self) -> None:
        """Trim outputs to their bound and let new output be sent, one piece of each."""
        grown = self._follower.look()
        if not self._open:
            return
        waiting = set(self._outputs)
        self._outputs.extend(output for output in grown if output not in waiting)
        if self._outputs:
            self.ready.set()

    def resend(self) -> None:
        """Send all reports again when none was acknowledged for RESEND_NS."""
        owed = self._lifecycle.unacknowledged
        if self._open and owed and self._clock_ns() - self._reported_at_ns > RESEND_NS:
            LOG.warning("reports sent again count=%d", len(owed))
            self._reported_sequence = 0
            self.ready.set()

    def _is_due(self, sample: Sample) -> bool:
        if self._sent is None or is_news(self._sent, sample):
            return True
        if self._is_hurried():
            return True  # the band is of the machine, and a node's share of it may be small
        silent_ns = self._clock_ns() - self._sent_at_ns
        return silent_ns >= self._sampling.heartbeat_ns - self._sampling.interval_ns // 2

    def _due_sample(self) -> Sample | None:
        sample, self._pending = self._pending, None
        listed = () if self._sent is None else self._sent.tasks
        if listed and any(
            isinstance(report.event, Ended) and report.key in listed
            for report in self._unreported()
        ):
            return self._fresh_sample() or sample
        return sample

    def _note_step(self, step: GuardStep) -> None:
        """Send a step of the guard, and at once how the node is."""
        self._steps_dropped += len(self._steps) == STEPS_MAX
        self._steps.append(step)
        if self._open:
            self._pending = self._fresh_sample() or self._pending
            self.ready.set()

    def _note_report(self) -> None:
        """Send the newest report, and remember since when the first start of a batch waits."""
        owed = self._lifecycle.unacknowledged
        if owed and self._reported_sequence + 1 == owed[-1].sequence:
            self._started_at_ns = self._clock_ns()
        self.ready.set()

    def _unreported(self) -> list[Report]:
        """Return the reports of the next batch; sequences have no gaps, so their place is known."""
        owed = self._lifecycle.unacknowledged
        if not owed:
            return []
        skipped = max(0, self._reported_sequence + 1 - owed[0].sequence)
        if skipped >= len(owed):
            return []
        return list(islice(owed, skipped, skipped + REPORTS_PER_BATCH_MAX))

    def _due_reports(self) -> agent_pb2.AgentMessage | None:
        batch: list[agent_pb2.Report] = []
        batch_bytes = 0
        for report in self._unreported():
            message = wire.encode_report(report, self._follower.tail, self._follower.error_text)
            batch.append(message)
            self._reported_sequence = report.sequence
            batch_bytes += message.ByteSize()
            if batch_bytes >= BATCH_BYTES_MAX:
                break
        if not batch:
            return None
        self._reported_at_ns = self._batch_at_ns = self._clock_ns()
        return wire.encode_reports(batch)

    def _fresh_sample(self) -> Sample | None:
        """Return a sample of now; only the tasks' readings may be a little older."""
        now_ns = self._clock_ns()
        running = self._attempts.runner.running()
        try:
            if now_ns - self._readings_at_ns >= self._readings_kept_ns:
                self._readings = self._attempts.runner.usage()
                self._readings_at_ns = now_ns
                cost_ns = self._clock_ns() - now_ns
                self._readings_kept_ns = max(READINGS_KEPT_MIN_NS, READINGS_SHARE * cost_ns)
            sample = self._sampler.read(
                now_unix_ns=time.time_ns(),
                monotonic_ns=now_ns,
                tasks={key: used for key, used in self._readings.items() if key in running},
                oom_kills=self._attempts.oom_kills,
                custom=self._custom(),
            )
        except (MemoryUnreadable, OSError) as error:
            LOG.error("no sample reason=%s", error)
            return None
        return replace(sample, intake_stopped=True) if self._attempts.intake_stopped else sample
