"""Starts attempts, keeps their processes together, and says how each one ended.

Owns the processes of this node and their groups. The rule kept: an attempt that was started is
reported as ended exactly once, and only when nothing of its tree runs any more.

An attempt has ended when its main process has ended. What its tree still holds then - a daemon it
left behind, a child in a session of its own - is killed, the group is removed, and only then
`on_exit` is called. An exit code of 0 with an oom_kill_count above 0 is possible: a child was
killed for the limit and the main process went on. What that means is the controller's decision.

Times are unix nanoseconds. All methods belong to one asyncio loop, whose thread must live as long
as the tasks (see `allocator.launcher`): they die with it, and with the agent.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agent.enforce import Enforcement, EnforcementError, Group, OomFacts
from agent.pressure import is_marked_by_oomd, pressure_variables
from agent.running import Attempt, Key, Launch, Running
from allocator.children import ExitStatus
from allocator.launch_request import LauncherError, Request, RequestRefused, StepFailed
from allocator.launcher import LauncherPool

__all__ = ["Exit", "Key", "Launch", "Runner", "StartError"]

LOG = logging.getLogger(__name__)

# SIGKILL ends a tree in milliseconds; only a process that hangs in the kernel (a dead network
# disk) takes longer. Its memory and its writes are still real, so its end is not reported early.
KILL_PAUSES_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
STUCK_WARNING_SECONDS = 30.0
FINISH_PAUSE_SECONDS = 1.0
CLOSE_SECONDS_MAX = 30.0  # then the next life of this node sweeps what is left
MEMORY_ERRNOS = (errno.ENOMEM, errno.ENOBUFS)


@dataclass(frozen=True, slots=True)
class Exit:
    """How an attempt ended: exit_code or signal, both None when the status was lost.

    `oom_kill_count` is the enforcement's own counter, compared with 0 it tells a kill for memory;
    no exit code does. `own_limit`, `node_full` and `oomd_kill` are evidence for whose doing it was.
    """

    key: Key
    exit_code: int | None
    signal: int | None
    memory_peak_bytes: int
    oom_kill_count: int
    started_at_ns: int
    ended_at_ns: int
    memory_limit_bytes: int | None
    own_limit: bool = False
    node_full: bool = False
    oomd_kill: bool = False


class StartError(Exception):
    """An attempt could not be started and nothing of it runs; `step` says what failed.

    `step` is a step of the launcher (exec, chdir, stdout, stderr, request, ...) or one of key,
    group, limit, launcher. `errno` is 0 where the kernel gave none. `lacked_memory` tells that the
    node's memory was the reason, and not the attempt: another try may go well.
    """

    def __init__(self, step: str, code: int, message: str, *, lacked_memory: bool = False) -> None:
        super().__init__(message)
        self.step = step
        self.errno = code
        self.lacked_memory = lacked_memory


class Runner:
    """The processes of this node; the module says what an end is.

    `parked` launchers wait ready for a start. `on_exit` is called from the loop, once for each
    started attempt. Between `open` and `close`, the number of attempts is bounded by whoever
    assigns them, since each holds memory the node must have reserved.
    """

    def __init__(
        self,
        enforcement: Enforcement,
        *,
        parked: int = 4,
        on_exit: Callable[[Exit], None],
        launcher_path: str | None = None,
        rlimits: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        self._enforcement = enforcement
        self.attempts = Running(enforcement)
        self._rlimits = rlimits  # of the tasks, where they differ from the agent's own
        self._on_exit = on_exit
        self._pool = LauncherPool(
            self.attempts.prepare, self._discard, parked=parked, executable=launcher_path
        )
        self._starting: set[Key] = set()
        self._finishing: set[asyncio.Task[None]] = set()
        self._polling: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Kill and remove what an earlier life of this node left, then park the first launchers.

        Raises:
            EnforcementError: leftovers cannot be ended, so starting tasks would be wrong.
            LauncherError: no launcher can be parked.
        """
        for name in await asyncio.to_thread(self._enforcement.sweep):
            LOG.warning("killed leftovers of an earlier life name=%s", name)
        await self._pool.open()
        if self._enforcement.poll_interval_ns is not None:
            self._polling = asyncio.create_task(self._poll())

    async def close(self) -> None:
        """Kill every attempt, report their ends, dismiss the launchers and remove all groups."""
        self._closed = True
        for key in self.attempts.known():
            self.kill(key)
        deadline = time.monotonic() + CLOSE_SECONDS_MAX
        while self.attempts or self._starting or self._finishing:
            if time.monotonic() > deadline:
                names = ", ".join(_name(key) for key in sorted(self.attempts.known()))
                LOG.error("closing with processes left of tasks %s", names)
                break
            await asyncio.sleep(0.002)
        await self._pool.close()
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
        if not self.attempts:
            self._enforcement.close()

    async def start(self, launch: Launch) -> int:
        """Start the attempt and return the pid of its main process once exec has happened.

        Takes about 1 ms with a parked launcher and 20 ms without one.

        Raises:
            StartError: nothing of the attempt runs, and its end will not be reported.
        """
        key = launch.key
        if self._closed:
            raise StartError("key", errno.ESHUTDOWN, f"task {_name(key)}: the agent is closing")
        if key in self.attempts or key in self._starting:
            raise StartError("key", errno.EEXIST, f"task {_name(key)} is already running here")
        self._starting.add(key)
        try:
            return await self._start(launch)
        except StepFailed as error:
            lacked_memory = self._lacks_memory(error.code)
            raise StartError(
                error.step, error.code, str(error), lacked_memory=lacked_memory
            ) from error
        except RequestRefused as error:
            raise StartError("request", errno.EINVAL, str(error)) from error
        except LauncherError as error:
            raise StartError("launcher", 0, str(error)) from error
        except EnforcementError as error:
            raise StartError("group", 0, str(error)) from error
        finally:
            self._starting.discard(key)

    def terminate(self, key: Key) -> None:
        """Ask every process of the attempt's tree to end (SIGTERM); unknown keys do nothing."""
        with _going_on(f"task {_name(key)} cannot be asked to end"):
            self.attempts.terminate(key)

    def freeze(self, key: Key, paused: bool) -> None:
        """Pause the attempt's whole tree, or let it go on; unknown keys do nothing."""
        with _going_on(f"task {_name(key)} cannot be paused or go on"):
            self.attempts.pause(key, paused)

    def kill(self, key: Key) -> None:
        """Kill the attempt's whole tree; `on_exit` follows when it is empty.

        Unknown keys do nothing: the attempt has ended or was never started.
        """
        with _going_on(f"task {_name(key)} is killed by its main process first"):
            self.attempts.kill(key)

    def usage(self) -> dict[Key, int]:
        """Return memory_used_bytes of every running attempt: whole trees, no page cache."""
        return self.attempts.usage()

    def running(self) -> frozenset[Key]:
        """Return the attempts that were started and whose end has not been reported."""
        return frozenset(self.attempts.known())

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Hold all attempts together to the capacity, None for none."""
        self.attempts.set_capacity(capacity_bytes)

    async def _start(self, launch: Launch) -> int:
        limit_bytes = launch.memory_limit_bytes
        if limit_bytes is not None and limit_bytes < 1:
            message = f"memory limit {limit_bytes} bytes: at least 1 is needed"
            raise StartError("limit", errno.EINVAL, message)

        def prepare_request(group: Group) -> Request:
            try:
                self.attempts.limit(group, launch)
            except EnforcementError as error:
                raise StartError("limit", 0, str(error)) from error
            return Request(
                launch.argv,
                {**launch.environment, **pressure_variables(group), **dict(group.variables)},
                launch.working_directory,
                launch.stdout_path,
                launch.stderr_path,
                self._rlimits,
            )

        process, group = await self._pool.start(prepare_request)
        attempt = Attempt(launch, group, process, time.time_ns())
        self.attempts.add(attempt)
        process.on_end(lambda: self._main_ended(attempt))
        if self._closed:
            self.kill(launch.key)
        return process.pid

    def _lacks_memory(self, code: int) -> bool:
        """Say whether a step failed for want of memory: while v1 stalls it fails or takes long."""
        if code in MEMORY_ERRNOS:
            return True
        if code != errno.ETIMEDOUT:
            return False
        try:
            return self.attempts.node_memory().stalled
        except OSError:
            return False  # nobody knows

    def _main_ended(self, attempt: Attempt) -> None:
        self._in_background(self._finish(attempt))

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("a started attempt could not be finished", exc_info=error)

    async def _finish(self, attempt: Attempt) -> None:
        """Empty the group, read what it has to say, remove it, report the end."""
        ended_at_ns = time.time_ns()
        group = attempt.group
        while True:
            try:
                await self._empty(group)
                peak_bytes, facts = self.attempts.last_words(group)
                break
            except OSError as error:
                # Out of file descriptors, say: an end that is late is better than none.
                LOG.error("group %s cannot be read, trying again: %s", group.name, error)
                await asyncio.sleep(FINISH_PAUSE_SECONDS)
        oomd_kill = is_marked_by_oomd(group)
        status = self.attempts.end(attempt)
        self._on_exit(_exit(attempt, status, peak_bytes, facts, oomd_kill, ended_at_ns))

    async def _empty(self, group: Group) -> None:
        """Kill what is left of the tree, however long the kernel takes to end it."""
        warn_at = time.monotonic() + STUCK_WARNING_SECONDS
        attempts = 0
        while count := self.attempts.empty(group):
            if time.monotonic() > warn_at:
                LOG.error("group %s: %d processes survive SIGKILL", group.name, count)
                warn_at += STUCK_WARNING_SECONDS
            await asyncio.sleep(KILL_PAUSES_SECONDS[min(attempts, len(KILL_PAUSES_SECONDS) - 1)])
            attempts += 1

    def _discard(self, group: Group) -> None:
        """Take back a group that should be empty; what still runs in it is killed first."""
        if self.attempts.empty(group):
            self._in_background(self._clear(group))
        else:
            self.attempts.remove(group)

    async def _clear(self, group: Group) -> None:
        await self._empty(group)
        self.attempts.remove(group)

    async def _poll(self) -> None:
        # Asked anew each time: it is shorter near a limit.
        while (interval_ns := self._enforcement.poll_interval_ns) is not None:
            await asyncio.sleep(interval_ns / 1e9)
            try:
                await asyncio.to_thread(self._enforcement.poll)
            except Exception:
                # Whatever it was: without the next look no limit would hold any more.
                LOG.exception("cannot look at the tasks' memory, trying again")


def _exit(
    attempt: Attempt,
    status: ExitStatus,
    peak_bytes: int,
    facts: OomFacts,
    oomd_kill: bool,
    ended_at_ns: int,
) -> Exit:
    return Exit(
        key=attempt.launch.key,
        exit_code=status.exit_code,
        signal=status.signal,
        memory_peak_bytes=peak_bytes,
        oom_kill_count=facts.kills,
        started_at_ns=attempt.started_at_ns,
        ended_at_ns=ended_at_ns,
        memory_limit_bytes=attempt.launch.memory_limit_bytes,
        own_limit=facts.own_limit,
        node_full=facts.node_full,
        oomd_kill=oomd_kill,
    )


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Log what the kernel refuses: one group that cannot be read must not end the agent."""
    try:
        yield
    except OSError as error:
        LOG.error("%s: %s", what, error)


def _name(key: Key) -> str:
    return f"{key[0]} attempt {key[1]}"
