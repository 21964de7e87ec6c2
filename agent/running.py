"""The attempts that run, with their groups: what the loop and the guard's thread share.

Owns the one lock around enforcement and the running attempts. The rules kept: enforcement is
called by one thread at a time; an attempt is frozen while its user or the guard wants it so, and
each of the two lets go only of what it holds itself; what is being ended is not frozen again.

The lock is held for one call at a time, a few milliseconds at most, so neither side waits for the
other's work.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.enforce import Enforcement, EnforcementError, Group, NodeMemory, OomFacts
from agent.guard import GuardedTask
from allocator.children import ChildProcess, ExitStatus

LOG = logging.getLogger(__name__)

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything needed to start one attempt, and what the guard should know of it.

    `environment` is complete, nothing is inherited from the agent. The output files are opened
    for append; their directories are made. `memory_limit_bytes` None means no limit. `cpus` is
    what placement set aside; it weighs the task against others, where the kernel can.
    """

    key: Key
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str
    stdout_path: str
    stderr_path: str
    memory_limit_bytes: int | None
    cpus: float
    memory_request_bytes: int = 0
    memory_expected_peak_bytes: int = 0  # 0: unknown
    memory_elastic: bool = False
    priority: int = 0
    no_requeue: bool = False
    oom_group: bool = False  # a kill for the limit takes the whole tree


@dataclass(slots=True)
class Attempt:
    """A started attempt whose end has not been reported."""

    launch: Launch
    group: Group
    process: ChildProcess
    started_at_ns: int  # since the Unix epoch
    began_ns: int = field(default_factory=time.monotonic_ns)
    user_paused: bool = False
    guard_frozen: bool = False
    ending: bool = False  # the loop has sent SIGTERM or SIGKILL
    seen: GuardedTask | None = None  # at the guard's last look


class Running:
    """The running attempts of this node; every method may be called by either thread."""

    def __init__(self, enforcement: Enforcement) -> None:
        """Take over an enforcement that nobody else calls from here on."""
        self._enforcement = enforcement
        self._lock = threading.Lock()
        self._attempts: dict[Key, Attempt] = {}
        self._capacity_bytes: int | None = None
        self._capacity_owed = False
        self._capacity_failed = False
        self._capacity_suspended = False

    def __contains__(self, key: object) -> bool:
        return key in self._attempts

    def __len__(self) -> int:
        return len(self._attempts)

    def known(self) -> tuple[Key, ...]:
        """Return the attempts that were started and whose end has not been reported."""
        with self._lock:
            return tuple(self._attempts)

    # The life of a group.

    def prepare(self) -> Group:
        """Make an empty group. Raises EnforcementError."""
        with self._lock:
            return self._enforcement.prepare()

    def limit(self, group: Group, launch: Launch) -> None:
        """Make the group ready for what is to be started in it. Raises EnforcementError."""
        with self._lock:
            self._enforcement.set_limit(group, launch.memory_limit_bytes)
            if launch.oom_group:
                self._enforcement.set_oom_group(group, True)
            self._enforcement.share_cpus(group, launch.cpus)

    def add(self, attempt: Attempt) -> None:
        """Take an attempt whose main process runs."""
        with self._lock:
            self._enforcement.started(attempt.group, attempt.process.pid)
            self._attempts[attempt.launch.key] = attempt

    def empty(self, group: Group) -> int:
        """Send SIGKILL to what is in the group; return how many there were."""
        with self._lock:
            return self._enforcement.kill(group)

    def last_words(self, group: Group) -> tuple[int, OomFacts]:
        """Return the peak and the kills of a group that is empty. Raises OSError."""
        with self._lock:
            return self._enforcement.peak(group), self._enforcement.oom_facts(group)

    def end(self, attempt: Attempt) -> ExitStatus:
        """Let go of an attempt whose group is empty and return its status."""
        with self._lock:
            # Only now: while the status is not collected, the pid cannot mean another process.
            status = attempt.process.collect()
            self._remove(attempt.group)
            del self._attempts[attempt.launch.key]
            return status

    def remove(self, group: Group) -> None:
        """Remove an empty group; one that is not is left to the next life's sweep."""
        with self._lock:
            self._remove(group)

    def _remove(self, group: Group) -> None:
        try:
            self._enforcement.remove(group)
        except EnforcementError as error:
            # Empty of tasks, so nobody is harmed; the next life of this node sweeps it.
            LOG.warning("%s", error)

    # What the loop wants of an attempt. Unknown keys do nothing.

    def terminate(self, key: Key) -> None:
        """SIGTERM to the whole tree, which goes on so that it can take it. Raises OSError."""
        with self._lock:
            if (attempt := self._attempts.get(key)) is not None:
                attempt.ending = True
                attempt.user_paused = attempt.guard_frozen = False
                self._enforcement.signal(attempt.group, signal.SIGTERM)
                self._enforcement.freeze(attempt.group, False)

    def pause(self, key: Key, paused: bool) -> None:
        """Pause at the user's word or let go on, unless the guard holds it. Raises OSError."""
        with self._lock:
            if (attempt := self._attempts.get(key)) is not None:
                attempt.user_paused = paused
                self._enforcement.freeze(attempt.group, paused or attempt.guard_frozen)

    def kill(self, key: Key) -> bool:
        """SIGKILL to the whole tree; return whether it runs. Raises OSError.

        What ends the attempt is the end of its main process: it gets the signal even when the
        group cannot be read.
        """
        with self._lock:
            if (attempt := self._attempts.get(key)) is None:
                return False
            attempt.ending = True
            try:
                with contextlib.suppress(OSError):
                    self._enforcement.usage(attempt.group)  # the last chance to see its peak
                self._enforcement.kill(attempt.group)
            finally:
                attempt.process.send_signal(signal.SIGKILL)
            return True

    def usage(self) -> dict[Key, int]:
        """Return memory_used_bytes of every running attempt: whole trees, no page cache."""
        with self._lock:
            self._finish_oom_groups()
            groups = [attempt.group for attempt in self._attempts.values()]
            return dict(zip(self._attempts, self._enforcement.usages(groups), strict=True))

    def _finish_oom_groups(self) -> None:
        for name in self._enforcement.finish_oom_groups():
            LOG.info("killed the rest of a group after a kill for memory name=%s", name)

    # What the guard wants.

    def guarded(self, growth: Callable[[Key, int], float]) -> tuple[GuardedTask, ...]:
        """Return all running attempts; `growth` tells a slope by key and present use.

        One that the loop ends already looks paused: there is no sense in freezing it.
        """
        with self._lock:
            self._finish_oom_groups()
            attempts = list(self._attempts.values())
            used = self._enforcement.usages([attempt.group for attempt in attempts])
        return tuple(
            _seen(attempt, used_bytes, growth(attempt.launch.key, used_bytes))
            for attempt, used_bytes in zip(attempts, used, strict=True)
        )

    def hold(self, key: Key, frozen: bool) -> bool:
        """Freeze for the guard or let go; return whether anything changed. Raises OSError."""
        with self._lock:
            attempt = self._attempts.get(key)
            if attempt is None or attempt.ending or attempt.guard_frozen == frozen:
                return False
            attempt.guard_frozen = frozen
            self._enforcement.freeze(attempt.group, frozen or attempt.user_paused)
            return True

    def ask(self, key: Key) -> bool:
        """SIGTERM for the guard; return whether it was sent. Raises OSError.

        The guard lets go of it, as what is frozen takes no signal. What its user has paused stays
        so: the guard will see that nothing comes of asking.
        """
        with self._lock:
            attempt = self._attempts.get(key)
            if attempt is None or attempt.ending:
                return False
            attempt.guard_frozen = False
            self._enforcement.signal(attempt.group, signal.SIGTERM)
            self._enforcement.freeze(attempt.group, attempt.user_paused)
            return True

    def node_memory(self) -> NodeMemory:
        """Return what all groups together hold now."""
        with self._lock:
            return self._enforcement.node_memory()

    def psi_full_percent(self) -> float | None:
        """Return the share of the last 10 s in which all tasks waited for memory."""
        with self._lock:
            return self._enforcement.psi_full_percent()

    def stall_fd(self) -> int | None:
        """Return what becomes readable when the groups begin to stall."""
        return self._enforcement.stall_fd()

    def clear_stall(self) -> None:
        """Be ready to be told of the next stall."""
        with self._lock:
            self._enforcement.clear_stall()

    # The capacity of all together.

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Hold all attempts together to the capacity; what cannot be yet is tried again."""
        with self._lock:
            self._capacity_bytes = capacity_bytes
            self._set_capacity()

    def settle_capacity(self) -> None:
        """Try again where attempts held more than the capacity, or it was refused, when set."""
        if self._capacity_owed:
            with self._lock:
                self._set_capacity()

    def suspend_capacity(self, suspended: bool) -> None:
        """Let the capacity go for now, so that nothing stalls at its end, or hold it again."""
        with self._lock:
            self._capacity_suspended = suspended
            self._set_capacity()

    def _set_capacity(self) -> None:
        wanted = None if self._capacity_suspended else self._capacity_bytes
        try:
            in_force = self._enforcement.set_capacity(wanted)
        except (OSError, EnforcementError) as error:
            # Tried again at each look, for a want of descriptors passes; said once.
            if not self._capacity_failed:
                LOG.error("the capacity is not set capacity_bytes=%s reason=%s", wanted, error)
            self._capacity_owed = self._capacity_failed = True
            return
        self._capacity_failed = False
        self._capacity_owed = wanted is not None and in_force is not None and in_force > wanted


def _seen(attempt: Attempt, used_bytes: int, growth: float) -> GuardedTask:
    """Return what the guard sees; most tasks are as they were, which is cheaper to find out."""
    paused = attempt.user_paused or attempt.ending
    seen = attempt.seen
    if (
        seen is None
        or seen.used_bytes != used_bytes
        or seen.growth_bytes_per_second != growth
        or seen.frozen != attempt.guard_frozen
        or seen.paused != paused
    ):
        launch = attempt.launch
        seen = attempt.seen = GuardedTask(
            key=launch.key,
            used_bytes=used_bytes,
            growth_bytes_per_second=growth,
            started_at_ns=attempt.began_ns,
            request_bytes=launch.memory_request_bytes,
            expected_peak_bytes=launch.memory_expected_peak_bytes,
            priority=launch.priority,
            no_requeue=launch.no_requeue,
            frozen=attempt.guard_frozen,
            paused=paused,
            elastic=launch.memory_elastic,
        )
    return seen
