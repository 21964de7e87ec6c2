"""Wires the controller together and serves until a signal; `python -m controller` comes here."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import distribution
from pathlib import Path

import uvloop
from mass.systemd import Systemd

from allocator.pool import Pool
from controller.config import Config, Settings
from controller.configvalues import split_address
from controller.core.cluster import Cluster
from controller.core.errors import InvalidRequest, MassError
from controller.core.limits import MIB
from controller.core.rules import RuleSet
from controller.core.scheduler import Scheduler
from controller.engine import Clock, Engine
from controller.pool_size import pool_bytes
from controller.reload import Notices, Reloader, read_rules
from controller.rulefile import RuleFileError
from controller.server import Server
from controller.store.sqlite import SqliteStore
from controller.web import serve_health

log = logging.getLogger("mass.controller")

GRACE_S = 2.0
EXIT_REFUSED = 1
EXIT_CONFIGURATION = 2  # starting again will not help; the unit file says so to systemd


class CannotServe(MassError):
    """The controller cannot begin, or cannot go on."""

    reason = "CANNOT_SERVE"


def run(load: Callable[[], Config]) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code; say on stderr why not.

    `load` reads the configuration, now and again for each SIGHUP.
    """
    if not __debug__:
        print("mass: refusing to run under python -O: its assertions are needed", file=sys.stderr)
        return EXIT_REFUSED
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # Until it serves there is nothing to reload, and a SIGHUP would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        check_own_packages()
        settings = load().settings
        rules = read_rules(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, rules, load=lambda: load().settings))
    except (InvalidRequest, RuleFileError) as error:
        print(f"mass controller: {error.message}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except MassError as error:
        print(f"mass controller: {error.message}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def check_own_packages() -> None:
    """Refuse to run when another distribution's `controller` or `allocator` hides ours.

    Raises:
        CannotServe: names the package and where it came from.
    """
    here = Path(__file__).resolve().parent.parent
    for name in ("agent", "allocator", "mass"):
        module = sys.modules.get(name) or __import__(name)
        origin = Path(next(iter(module.__path__))).resolve()
        expected = {here / name, here / "client" / name}
        if origin not in expected:
            raise CannotServe(
                f"package '{name}' comes from {origin}, not from MASS; install MASS into an"
                " environment of its own"
            )


async def serve(
    settings: Settings,
    rules: RuleSet,
    ready: Callable[[Engine, int], Awaitable[None]] | None = None,
    load: Callable[[], Settings] | None = None,
) -> None:
    """Serve until a signal. `ready` is called with the engine and the port once it serves.

    SIGHUP reloads: `load` reads the settings again; without it they stay as they are.

    Raises:
        MassError: the store, the pool or an address cannot be had, or the store fails later.
    """
    systemd = Systemd(os.environ)
    _raise_file_limit()
    limits = settings.limits()
    size = pool_bytes(limits, rules)
    clock = Clock()
    store = SqliteStore.open(settings.data, limits)
    notices = Notices(settings.webhook)
    try:
        with Pool(size) as pool:
            cluster = Cluster(limits, rules, pool)
            stored = await store.load()
            cluster.restore(
                tasks=stored.tasks,
                nodes=stored.nodes,
                alerts=stored.alerts,
                submissions=stored.submissions,
                next_task_id=stored.next_task_id,
                now_ns=clock.now_ns(),
                reservations=stored.reservations,
                next_reservation_id=stored.next_reservation_id,
                cluster_id=stored.cluster_id,
            )
            cluster.learn(stored.attempts)
            engine = Engine(Scheduler(cluster), store, clock, notices.notify)
            log.info(
                "starting version=%s data=%s pool_mib=%d nodes_max=%d open_tasks=%d rules=%d",
                distribution("mass-scheduler").version,
                settings.data,
                size // MIB,
                limits.nodes_max,
                len(stored.tasks),
                len(rules),
            )
            reloader = Reloader(engine, notices, settings, load or (lambda: settings), systemd)
            await _serve_engine(settings, engine, reloader, systemd, ready)
            cluster.close()
    finally:
        await notices.close()
        await store.close()


async def _serve_engine(
    settings: Settings,
    engine: Engine,
    reloader: Reloader,
    systemd: Systemd,
    ready: Callable[[Engine, int], Awaitable[None]] | None,
) -> None:
    server = Server(engine)
    host, _ = split_address("--listen", settings.listen)
    try:
        bound = server.server.add_insecure_port(settings.listen)
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise CannotServe(f"--listen {settings.listen} is taken; is another controller running?")
    http_host, http_port = split_address("--http", settings.http)
    serving = True
    try:
        web = await serve_health(http_host, http_port, lambda: serving)
    except OSError as error:
        raise CannotServe(f"--http {settings.http} cannot be used: {error}") from error
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    await server.server.start()
    await server.set_serving(True)
    thinking = asyncio.create_task(engine.run())
    log.info("serving listen=%s:%d http=%s", host, bound, settings.http)
    # What is there by now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    if ready is not None:
        await ready(engine, bound)
    systemd.tell("READY=1", f"STATUS=serving on {host}:{bound}")
    pinging = asyncio.create_task(systemd.ping())
    reloading = asyncio.create_task(reloader.run())
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait({thinking, reloading, waiting}, return_when=asyncio.FIRST_COMPLETED)
    systemd.tell("STOPPING=1")
    serving = False
    await server.set_serving(False)
    engine.stop()
    waiting.cancel()
    web.close()
    await server.server.stop(GRACE_S)
    pinging.cancel()
    reloading.cancel()
    for task in (thinking, reloading):  # the reason of one that has failed
        with contextlib.suppress(asyncio.CancelledError):
            await task
    log.info("stopped")


def _raise_file_limit() -> None:
    """Take as many files as we may: each agent's connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
