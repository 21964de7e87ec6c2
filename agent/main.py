"""Wires the agent together: the `mass-agent` command.

Owns the process: settings, signals, and the order of start and end. The rule kept: tasks never
outlive the agent, and an end that the controller has not saved is on disk before the agent ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mass.systemd import Systemd

import allocator
from agent.attempt import GuardStep, Leaving
from agent.attempts import Attempts
from agent.config import (
    STATE_VARIABLE,
    SettingRefused,
    Settings,
    parse_settings,
    visible_gpus,
)
from agent.connection import AgentRefused, Connection
from agent.enforce import Enforcement, EnforcementError, detect
from agent.follower import Follower
from agent.guard import Guard
from agent.guarding import Guarding
from agent.install import install, show_config
from agent.memory import Memory, MemoryUnreadable, SystemPaths
from agent.metrics import OwnMetrics
from agent.outbox import Outbox
from agent.runner import Exit, Runner
from agent.sampler import Sampler, boot_id, machine_id, usable_cpus
from agent.spool import Spool, WorkDirRefused
from agent.wire import Identity
from allocator.launch_request import LauncherError

LOG = logging.getLogger("agent")

EXIT_OK = 0
EXIT_MACHINE = 1  # this machine cannot run tasks
EXIT_REFUSED = 2  # a setting, or the controller, refuses this agent
LEAVE_GRACE_NS = 10_000_000_000
LEAVE_SECONDS_MAX = 15.0  # the grace, then time for SIGKILL and the last acknowledgements


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until a signal ends it; return the exit code."""
    if not __debug__:
        return _refuse("asserts are part of MASS: do not run Python with -O", EXIT_REFUSED)
    if stranger := _stranger():
        return _refuse(stranger, EXIT_REFUSED)
    words = list(sys.argv[1:] if argv is None else argv)
    environment = dict(os.environ)
    try:
        if words[:1] in (["config"], ["install"]):
            print(_other_command(words, environment), end="")
            return EXIT_OK
        settings = parse_settings(words, environment)
    except SettingRefused as error:
        return _refuse(str(error), EXIT_REFUSED)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    try:
        asyncio.run(run_agent(settings, lambda: parse_settings(words, environment)))
    except (AgentRefused, WorkDirRefused) as error:
        return _refuse(str(error), EXIT_REFUSED)
    except (EnforcementError, LauncherError, MemoryUnreadable) as error:
        return _refuse(str(error), EXIT_MACHINE)
    return EXIT_OK


def _other_command(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Carry out `mass-agent config` or `mass-agent install` and return what it prints."""
    if words[0] == "install":
        return install(words[1:])
    return show_config(words[1:], environment)


async def run_agent(settings: Settings, load: Callable[[], Settings]) -> None:
    """Run until SIGTERM or SIGINT. For each SIGHUP `load` reads the settings again.

    Raises:
        AgentRefused: the controller never takes this agent. WorkDirRefused: another agent has the
            work directory. EnforcementError, LauncherError, MemoryUnreadable: this machine cannot
            run tasks.
    """
    # Both are taken out of the environment, which is the tasks' too.
    systemd = Systemd(os.environ)
    os.environ.pop(STATE_VARIABLE, None)
    reload_asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_asked.set)
    task_files = raise_file_limit()
    with contextlib.ExitStack() as closing:
        spool = Spool(settings.work_dir)
        closing.callback(spool.close)
        sampler = Sampler(settings.work_dir)
        closing.callback(sampler.close)
        detection = detect(settings.name)
        for way, reason in detection.refused.items():
            LOG.info("enforcement not available way=%s reason=%r", way, reason)
        attempts, runner = _make_attempts(settings, spool, detection.enforcement, task_files)
        memory = Memory(SystemPaths())
        closing.callback(memory.close)
        await runner.open()
        guarding = start_guarding(settings, attempts, runner, memory)
        try:
            identity = _identity(settings, sampler, detection.enforcement)
            LOG.info(
                "starting version=%s node=%s memory_total_bytes=%d cpus=%g enforcement=%s dir=%s",
                identity.agent_version, identity.node_id, identity.memory_total_bytes,
                identity.cpus, identity.enforcement, settings.work_dir,
            )  # fmt: skip
            metrics = OwnMetrics(settings.metrics, settings.metric_dir, settings.metric_interval_ns)
            outbox = Outbox(
                attempts,
                sampler,
                sample_interval_ns=settings.sample_interval_ns,
                custom=metrics.values,
                is_hurried=lambda: guarding.hurried,
            )
            connection = Connection(settings.controller, identity, attempts, outbox)
            systemd.tell("READY=1")
            beside = (
                asyncio.create_task(systemd.ping()),
                asyncio.create_task(_reload(reload_asked, settings, load, outbox, systemd)),
            )
            try:
                await _run_until_signal(connection, attempts, metrics, systemd)
            finally:
                for task in beside:
                    task.cancel()
                for task in beside:  # the reason of one that has failed
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
        finally:
            guarding.stop()  # what is left is killed now, and its descriptors are closed
            await runner.close()
            await attempts.close()


def _make_attempts(
    settings: Settings, spool: Spool, enforcement: Enforcement, task_files: tuple[int, int, int]
) -> tuple[Attempts, Runner]:
    made: list[Runner] = []

    def make_runner(on_exit: Callable[[Exit], None]) -> Runner:
        made.append(Runner(enforcement, on_exit=on_exit, rlimits=(task_files,)))
        return made[0]

    attempts = Attempts(
        node_id=settings.name,
        spool=spool,
        follower=Follower(settings.work_dir),
        make_runner=make_runner,
        environment=os.environ,
        gpus=_offered_gpus(settings),
        cpus=_offered_cpus(settings),
        is_guarded=settings.guard,
    )
    return attempts, made[0]


def start_guarding(
    settings: Settings, attempts: Attempts, runner: Runner, memory: Memory
) -> Guarding:
    """Watch the node's memory in a thread, whose steps come to the attempts by way of the loop."""
    loop = asyncio.get_running_loop()

    def tell(step: GuardStep) -> None:
        loop.call_soon_threadsafe(attempts.on_step, step)

    guard = Guard() if settings.guard else None
    guarding = Guarding(guard, runner.attempts, memory.read, tell)
    attempts.memory_was_short = guarding.memory_was_short
    attempts.memory_was_refused = guarding.memory_was_refused
    if settings.memory_capacity_bytes is not None:
        attempts.hold_capacity(settings.memory_capacity_bytes)
    guarding.start()
    LOG.info("guard=%s", "on" if settings.guard else "off")
    return guarding


def raise_file_limit() -> tuple[int, int, int]:
    """Take as many files as the agent may, one for each attempt; return the limit as it was.

    Tasks get that one: programs that use select() break above 1,024 files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.RLIMIT_NOFILE, soft, hard


async def _reload(
    asked: asyncio.Event,
    settings: Settings,
    load: Callable[[], Settings],
    outbox: Outbox,
    systemd: Systemd,
) -> None:
    """Take in changed settings whenever asked, all or none; what the hello said needs a restart."""
    while True:
        await asked.wait()
        asked.clear()
        systemd.tell_reloading()
        try:
            settings = _take_in(settings, load(), outbox)
            outcome = f"reloaded sample_interval_ns={settings.sample_interval_ns}"
            LOG.info("%s", outcome)
        except SettingRefused as error:
            outcome = f"reload refused, nothing was changed: {error}"
            LOG.error("%s", outcome)
        systemd.tell("READY=1", f"STATUS={' '.join(outcome.split())}")


def _take_in(before: Settings, after: Settings, outbox: Outbox) -> Settings:
    interval_ns = after.sample_interval_ns
    kept = replace(before, sample_interval_ns=interval_ns)
    fixed = [f.name for f in fields(after) if getattr(after, f.name) != getattr(kept, f.name)]
    if fixed:
        raise SettingRefused(f"{', '.join(fixed)} cannot change while the agent runs: "
                             "it needs a restart")  # fmt: skip
    if interval_ns != before.sample_interval_ns:
        outbox.set_own_interval(interval_ns)
    return after


async def _run_until_signal(
    connection: Connection, attempts: Attempts, metrics: OwnMetrics, systemd: Systemd
) -> None:
    """Serve until a signal, then leave in good order; a second signal leaves out the grace."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def ask() -> None:
        if asked.is_set():
            attempts.handle(Leaving(0))
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    serving = asyncio.create_task(connection.run())
    asking = asyncio.create_task(asked.wait())
    measuring = asyncio.create_task(metrics.run())
    tasks = {serving, asking, measuring}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if measuring.done():
            measuring.result()  # it never ends by itself: values would stand still unnoticed
        if serving.done():
            serving.result()
            return
        systemd.tell("STOPPING=1")
        LOG.info("leaving attempts=%d", len(attempts.lifecycle.live()))
        await connection.leave("the agent was told to end", LEAVE_GRACE_NS, LEAVE_SECONDS_MAX)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _offered_cpus(settings: Settings) -> float:
    return settings.cpus if settings.cpus is not None else usable_cpus()


def _offered_gpus(settings: Settings) -> int:
    return visible_gpus() if settings.gpus is None else settings.gpus


def _identity(settings: Settings, sampler: Sampler, enforcement: Enforcement) -> Identity:
    able = enforcement.describe()
    total_bytes = sampler.memory().total_bytes
    capacity_bytes = settings.memory_capacity_bytes or 0
    if capacity_bytes > total_bytes:
        LOG.warning(
            "--memory is above the machine's memory capacity_bytes=%d total_bytes=%d",
            capacity_bytes,
            total_bytes,
        )
    return Identity(
        node_id=settings.name,
        instance_id=uuid.uuid4().hex,
        machine_id=machine_id() or f"of-{settings.name}",
        boot_id=boot_id() or "unknown",
        agent_version=_version(),
        memory_total_bytes=total_bytes,
        memory_capacity_bytes=capacity_bytes,
        cpus=_offered_cpus(settings),
        enforcement=enforcement.name,
        capabilities=tuple(word for word in sorted(able) if able[word] is True),
        labels=dict(settings.labels),
        gpus=_offered_gpus(settings),
        custom_metrics=tuple(command.name for command in settings.metrics),
    )


def _version() -> str:
    try:
        return version("mass-scheduler")
    except PackageNotFoundError:
        return "0+unpacked"  # run from a source tree that is not installed


def _stranger() -> str:
    """Return a sentence when another distribution's package stands in the place of ours."""
    ours = Path(__file__).resolve().parent.parent
    found = [Path(path).resolve().parent for path in allocator.__path__]
    if ours in found:
        return ""
    return (
        f"the package 'allocator' comes from {found[0]}, not from {ours}: "
        "install MASS into an environment of its own"
    )


def _refuse(sentence: str, code: int) -> int:
    print(f"mass-agent: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
