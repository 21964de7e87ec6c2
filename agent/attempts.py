"""Carries out what the lifecycle asks for: starts, signals, timers, and reports made durable.

Owns the attempts of this agent while they live. The rule kept: every command of the lifecycle is
carried out in order, in the turn of the loop that made it; only waiting for exec takes longer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.attempt import (
    Arm,
    Assignment,
    Command,
    Disarm,
    Disconnect,
    Ended,
    Estranged,
    Event,
    Evidence,
    Exited,
    Forgotten,
    Freeze,
    GraceOver,
    GuardAsked,
    GuardKilled,
    GuardStep,
    GuardStepKind,
    IntakeChanged,
    Key,
    Kill,
    Outcome,
    ReportReady,
    Start,
    StartFailed,
    StartSucceeded,
    Terminate,
    TimeLimitReached,
    Timer,
)
from agent.follower import Follower, error_file
from agent.lifecycle import Lifecycle, State
from agent.runner import Exit, Launch, StartError
from agent.spool import Spool

LOG = logging.getLogger(__name__)

# Each start without a parked launcher costs a process and 20 ms; the rest wait in order.
STARTS_AT_ONCE_MAX = 32
# Before another try at a start that failed for want of memory: the guard ends a stall in seconds.
# Those that wait so keep their place among the starts at once, as any other would fail as well.
START_PAUSES_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)
# A task gets these variables of the agent and no other: what else an administrator's shell held
# is no part of what was submitted.
INHERITED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "TMPDIR", "TZ")
PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Runs(Protocol):
    """What runs processes; agent.runner.Runner outside of tests."""

    async def open(self) -> None:
        """Make ready; attempts can be started from here on."""

    async def close(self) -> None:
        """Kill every attempt, tell their ends, let go of everything."""

    async def start(self, launch: Launch) -> int:
        """Return the pid after exec. Raises StartError."""

    def terminate(self, key: Key) -> None:
        """SIGTERM to the attempt's tree."""

    def kill(self, key: Key) -> None:
        """SIGKILL to the attempt's tree until it is empty."""

    def freeze(self, key: Key, paused: bool) -> None:
        """Pause the attempt's tree, or let it go on."""

    def usage(self) -> dict[Key, int]:
        """Return memory_used_bytes of every running attempt."""

    def running(self) -> frozenset[Key]:
        """Return the attempts whose end has not been told."""

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Hold all attempts together to the capacity, None for none."""


class Attempts:
    """The attempts of this agent; `changed` is called when there is something to send."""

    def __init__(
        self,
        *,
        node_id: str,
        spool: Spool,
        follower: Follower,
        make_runner: Callable[[Callable[[Exit], None]], Runs],
        environment: Mapping[str, str],
        gpus: int = 0,
        cpus: float = math.inf,
        is_guarded: bool = True,
    ) -> None:
        """Take over the ends that an earlier life could not deliver.

        Without a guard no capacity is held: at its end tasks would stall, and nobody would act.
        """
        self.lifecycle = Lifecycle(cpus=cpus)
        self.follower = follower
        self.changed: Callable[[], None] = _ignore
        self.disconnect: Callable[[str], None] = _ignore_reason
        self.stepped: Callable[[GuardStep], None] = _ignore_step
        self.memory_was_short: Callable[[], bool] = _never
        self.memory_was_refused: Callable[[], bool] = _never
        self.oom_kills = 0
        self.intake_stopped = False
        self._spool = spool
        self._node_id = node_id
        self._is_guarded = is_guarded
        self._environment = task_environment(environment)
        self._gpus = gpu_names(environment, gpus)
        self._timers: dict[Key, dict[Timer, asyncio.TimerHandle]] = {}
        self._limits_left_ns: dict[Key, int] = {}  # of what the guard holds frozen
        self._starting: set[asyncio.Task[None]] = set()
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE_MAX)
        self.runner = make_runner(self.on_exit)
        recovered = spool.load()
        self.lifecycle.recover(recovered)
        if recovered:
            LOG.info("undelivered ends of an earlier agent count=%d", len(recovered))

    def handle(self, event: Event) -> None:
        """Let something happen and carry out what follows from it."""
        for command in self.lifecycle.handle(event, time.time_ns()):
            self._carry_out(command)

    @property
    def cluster_id(self) -> str:
        """The cluster whose tasks the attempts are of; empty before the first welcome."""
        return self._spool.cluster_id

    def join_cluster(self, cluster_id: str) -> bool:
        """Work for this cluster; False while attempts of another one are still being ended.

        A controller whose data directory was wiped counts its tasks from 1 again: what ran for
        the old ones must not answer for the new. Raises OSError when the disk refuses.
        """
        before = self.cluster_id
        if before not in ("", cluster_id):
            if known := self.lifecycle.known():
                LOG.warning(
                    "attempts of another cluster ended and forgotten cluster=%s now=%s count=%d",
                    before, cluster_id, len(known),
                )  # fmt: skip
            self.handle(Estranged())
            if self.lifecycle.known():
                return False
            if (aside := self.follower.set_aside()) is not None:
                LOG.warning("output of another cluster's tasks moved directory=%s", aside)
        self._spool.join(cluster_id)
        return True

    def on_exit(self, exit_: Exit) -> None:
        """Take the end of an attempt from the runner."""
        if exit_.oom_kill_count:
            # A task that hits its own limit is no trouble of the node's.
            if not exit_.own_limit:
                self.oom_kills += exit_.oom_kill_count
            LOG.warning(
                "kernel kill for memory task=%d attempt=%d oom_kills=%d limit_bytes=%s of=%s",
                *exit_.key, exit_.oom_kill_count, exit_.memory_limit_bytes,
                "node" if exit_.node_full else "task",
            )  # fmt: skip
        outcome = Outcome(
            exit_code=exit_.exit_code,
            signal=exit_.signal,
            memory_peak_bytes=exit_.memory_peak_bytes,
            oom_kill_count=exit_.oom_kill_count,
            started_at_ns=exit_.started_at_ns,
            ended_at_ns=exit_.ended_at_ns,
        )
        evidence = Evidence(
            own_limit=exit_.own_limit,
            node_full=exit_.node_full,
            memory_short=self.memory_was_short(),
            # Asked only where it matters: it reads the kernel's files.
            memory_refused=exit_.exit_code != 0 and self.memory_was_refused(),
            oomd_kill=exit_.oomd_kill,
        )
        self.handle(Exited(exit_.key, outcome, evidence))

    def on_step(self, step: GuardStep) -> None:
        """Take what the guard does, or has done, from its thread by way of the loop."""
        log_step(step)
        match step.kind:
            case GuardStepKind.STOP_INTAKE | GuardStepKind.OPEN_INTAKE:
                self.intake_stopped = step.kind is GuardStepKind.STOP_INTAKE
                self.handle(IntakeChanged(self.intake_stopped))
            case GuardStepKind.FREEZE:
                assert step.key is not None
                self._suspend_time_limit(step.key)
            case GuardStepKind.THAW:
                assert step.key is not None
                self._resume_time_limit(step.key)
            case GuardStepKind.ASK:
                assert step.key is not None
                self._resume_time_limit(step.key)  # it goes on, to take the signal
                self.handle(GuardAsked(step.key, step))
            case GuardStepKind.KILL:
                assert step.key is not None
                self.handle(GuardKilled(step.key, step))
        self.stepped(step)

    def hold_capacity(self, capacity_bytes: int) -> None:
        """Hold all attempts together to the capacity, where a guard acts at its end."""
        if self._is_guarded:
            self.runner.set_capacity(capacity_bytes)

    async def close(self) -> None:
        """Drop timers and wait for starts that are under way; the runner is closed before."""
        for key in tuple(self._timers):
            self._disarm(key)
        if self._starting:
            await asyncio.wait(self._starting)

    def _carry_out(self, command: Command) -> None:
        match command:
            case ReportReady(report):
                if isinstance(report.event, Ended):
                    self._save_end(report.key, report.event)
                self.changed()
            case Start(key, assignment):
                task = asyncio.get_running_loop().create_task(self._start(key, assignment))
                self._starting.add(task)
                task.add_done_callback(self._start_done)
            case Terminate(key):
                self.runner.terminate(key)
            case Kill(key):
                self.runner.kill(key)
            case Freeze(key, paused):
                self.runner.freeze(key, paused)
            case Arm(key, timer, delay_ns):
                self._arm(key, timer, delay_ns)
            case Disarm(key):
                self._disarm(key)
            case Forgotten(key):
                self._forget(key)
            case Disconnect(reason):
                self.disconnect(reason)

    async def _start(self, key: Key, assignment: Assignment) -> None:
        try:
            async with self._starts:
                directory, *own = self.follower.begin(key)
                stdout_path, stderr_path = (
                    redirected(assignment, given, path)
                    for given, path in zip(
                        (assignment.stdout_path, assignment.stderr_path), own, strict=True
                    )
                )
                started_at_ns = time.time_ns()
                pid = await self._run(
                    Launch(
                        key=key,
                        argv=assignment.command,
                        environment=self._variables(assignment, directory),
                        working_directory=assignment.working_directory or directory,
                        stdout_path=stdout_path,
                        stderr_path=stderr_path,
                        memory_limit_bytes=assignment.memory_limit_bytes,
                        cpus=assignment.cpus,
                        memory_request_bytes=assignment.memory_request_bytes,
                        memory_expected_peak_bytes=assignment.memory_expected_peak_bytes,
                        memory_elastic=assignment.memory_elastic,
                        priority=assignment.priority,
                        no_requeue=assignment.no_requeue,
                        oom_group=assignment.oom_group,
                    )
                )
        except Exception as error:
            self.follower.end(key)
            LOG.info("start failed task=%d attempt=%d reason=%s", *key, error)
            if not isinstance(error, StartError | OSError):
                # Whatever it was: an attempt without an end would hold its memory for ever.
                LOG.error("a start failed in a way that nobody foresaw", exc_info=error)
            lacked_memory = isinstance(error, StartError) and error.lacked_memory
            self.handle(StartFailed(key, str(error), lacked_memory))
            return
        self.handle(StartSucceeded(key, pid, started_at_ns))

    async def _run(self, launch: Launch) -> int:
        """Return the pid after exec, tried again where the node's memory was the reason.

        One that timed out has waited long enough, and nobody waits for one that is to be stopped.
        Raises StartError.
        """
        for pause_seconds in START_PAUSES_SECONDS:
            try:
                return await self.runner.start(launch)
            except StartError as error:
                if not error.lacked_memory or error.errno == errno.ETIMEDOUT:
                    raise
                LOG.info("start is tried again task=%d attempt=%d reason=%s", *launch.key, error)
                await asyncio.sleep(pause_seconds)
                if self.lifecycle.attempts[launch.key].state is State.RECALLED:
                    raise
        return await self.runner.start(launch)

    def _start_done(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("an attempt could not be started", exc_info=error)

    def _variables(self, assignment: Assignment, directory: str) -> dict[str, str]:
        task_id, attempt = assignment.key
        added = {}
        if assignment.array_id:
            added["MASS_ARRAY_ID"] = str(assignment.array_id)
            added["MASS_ARRAY_INDEX"] = str(assignment.array_index)
        if self._gpus:  # on a node that offers GPUs a task sees only those it was given
            added["CUDA_VISIBLE_DEVICES"] = ",".join(
                self._gpus[index] for index in assignment.gpu_indexes if index < len(self._gpus)
            )
        return {
            **self._environment,
            **assignment.environment,
            **added,
            "MASS_TASK_LABEL": assignment.label,
            "MASS_ERROR_FILE": error_file(directory),
            "MASS_TASK_ID": str(task_id),
            "MASS_ATTEMPT": str(attempt),
            "MASS_NODE": self._node_id,
            "MASS_MEM_LIMIT_BYTES": str(assignment.memory_limit_bytes or 0),
            "MASS_MEM_REQUEST_BYTES": str(assignment.memory_request_bytes),
            "MASS_CPUS": f"{assignment.cpus:g}",
        }

    def _save_end(self, key: Key, ended: Ended) -> None:
        self.follower.end(key)
        try:
            self._spool.save(key, ended)
        except OSError as error:
            # The report is still sent; only a crash before its acknowledgement would lose it, and
            # then the controller finds the attempt missing and runs the task again.
            LOG.error("end not kept on disk task=%d attempt=%d reason=%s", *key, error)

    def _forget(self, key: Key) -> None:
        self.follower.end(key)
        try:
            self._spool.remove(key)
        except OSError as error:
            # The next agent tells this end again, and the controller knows that it has it.
            LOG.warning("end not removed task=%d attempt=%d reason=%s", *key, error)

    def _arm(self, key: Key, timer: Timer, delay_ns: int) -> None:
        loop = asyncio.get_running_loop()
        timers = self._timers.setdefault(key, {})
        deadline = loop.time() + delay_ns / 1e9
        if (armed := timers.get(timer)) is not None:
            if armed.when() <= deadline:
                return
            armed.cancel()
        event = TimeLimitReached(key) if timer is Timer.TIME_LIMIT else GraceOver(key)
        timers[timer] = loop.call_at(deadline, self._fire, key, timer, event)

    def _fire(self, key: Key, timer: Timer, event: Event) -> None:
        timers = self._timers.get(key, {})
        timers.pop(timer, None)
        LOG.info("%s over task=%d attempt=%d", timer.value, *key)
        self.handle(event)

    def _suspend_time_limit(self, key: Key) -> None:
        """Let no time count in which the guard holds a task back: it is not the task's own."""
        armed = self._timers.get(key, {}).pop(Timer.TIME_LIMIT, None)
        if armed is not None:
            left_seconds = armed.when() - asyncio.get_running_loop().time()
            self._limits_left_ns[key] = max(0, round(left_seconds * 1e9))
            armed.cancel()

    def _resume_time_limit(self, key: Key) -> None:
        if (left_ns := self._limits_left_ns.pop(key, None)) is not None:
            self._arm(key, Timer.TIME_LIMIT, left_ns)

    def _disarm(self, key: Key) -> None:
        self._limits_left_ns.pop(key, None)
        for handle in self._timers.pop(key, {}).values():
            handle.cancel()


def task_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the agent's share of a task's environment."""
    kept = {name: environment[name] for name in INHERITED_VARIABLES if name in environment}
    return {"PATH": PATH_DEFAULT, "HOME": "/", **kept}


def gpu_names(environment: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Return what CUDA calls the GPUs of this node: those that the agent itself may see."""
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    named = [name for name in visible if name]
    return tuple(named[:count] if named else map(str, range(count)))


def redirected(assignment: Assignment, wanted: str, own_path: str) -> str:
    """Return where an output goes; when a user named the file, the attempt's own says which it is.

    %j is the task's id, %a its index in its array, %t the attempt and %% a percent sign.

    Raises:
        OSError: the own file cannot be written.
    """
    if not wanted:
        return own_path
    task_id, attempt = assignment.key
    meanings = {"j": str(task_id), "a": str(assignment.array_index), "t": str(attempt), "%": "%"}
    path = re.sub(r"%([jat%])", lambda match: meanings[match[1]], wanted)
    with open(own_path, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"[mass: this output goes to {path}]\n")
    return path


def log_step(step: GuardStep) -> None:
    """Write a step with its numbers; ends of tasks are warnings."""
    ends = step.kind in (GuardStepKind.ASK, GuardStepKind.KILL)
    LOG.log(
        logging.WARNING if ends else logging.INFO,
        "guard step=%s task=%d attempt=%d used_bytes=%d limit_bytes=%d growth_bytes_per_second=%.0f"
        " seconds_to_full=%s psi_full_percent=%s task_used_bytes=%d reason=%r",
        step.kind.name, *(step.key or (0, 0)), step.memory_used_bytes, step.memory_limit_bytes,
        step.memory_growth_bytes_per_second, _shown(step.seconds_to_full),
        _shown(step.psi_full_percent), step.task_memory_used_bytes, step.reason,
    )  # fmt: skip


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _never() -> bool:
    """Nobody watches yet."""
    return False


def _ignore_step(step: GuardStep) -> None:
    """Nobody listens yet."""


def _ignore() -> None:
    """Nobody listens yet."""


def _ignore_reason(reason: str) -> None:
    """Nobody listens yet."""
