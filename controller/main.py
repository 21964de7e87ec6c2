"""Wires the controller together and serves until a signal; `python -m controller` comes here."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import distribution
from pathlib import Path

import uvloop

from allocator.pool import Pool
from controller.config import Settings, split_address, validate
from controller.core.cluster import Cluster
from controller.core.errors import MassError
from controller.core.limits import MIB
from controller.core.rules import RuleSet
from controller.core.scheduler import Scheduler
from controller.engine import Clock, Engine
from controller.notify import Notifier
from controller.pool_size import pool_bytes
from controller.rulefile import default_rules, load_rules
from controller.server import Server
from controller.store.sqlite import SqliteStore
from controller.web import serve_health

log = logging.getLogger("mass.controller")

GRACE_S = 2.0
EXIT_REFUSED = 1


class CannotServe(MassError):
    """The controller cannot begin, or cannot go on."""

    reason = "CANNOT_SERVE"


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code; say on stderr why not."""
    if not __debug__:
        print("mass: refusing to run under python -O: its assertions are needed", file=sys.stderr)
        return EXIT_REFUSED
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    try:
        check_own_packages()
        validate(settings)
        rules = load_rules(settings.rules) if settings.rules else default_rules()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, rules))
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
) -> None:
    """Serve until a signal. `ready` is called with the engine and the port once it serves.

    Raises:
        MassError: the store, the pool or an address cannot be had, or the store fails later.
    """
    _raise_file_limit()
    limits = settings.limits()
    size = pool_bytes(limits, rules)
    clock = Clock()
    store = SqliteStore.open(settings.data, limits)
    notifier = Notifier(settings.webhook)
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
            )
            engine = Engine(Scheduler(cluster), store, clock, notifier.notify)
            log.info(
                "starting version=%s data=%s pool_mib=%d nodes_max=%d open_tasks=%d rules=%d",
                distribution("mass-scheduler").version,
                settings.data,
                size // MIB,
                limits.nodes_max,
                len(stored.tasks),
                len(rules),
            )
            await _serve_engine(settings, engine, ready)
            cluster.close()
    finally:
        await notifier.close()
        await store.close()


async def _serve_engine(
    settings: Settings, engine: Engine, ready: Callable[[Engine, int], Awaitable[None]] | None
) -> None:
    server = Server(engine)
    host, port = split_address("--listen", settings.listen)
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
    await server.server.start()
    await server.set_serving(True)
    thinking = asyncio.create_task(engine.run())
    log.info("serving listen=%s:%d http=%s", host, bound, settings.http)
    # What is there by now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    if ready is not None:
        await ready(engine, bound)
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait({thinking, waiting}, return_when=asyncio.FIRST_COMPLETED)
    serving = False
    await server.set_serving(False)
    engine.stop()
    waiting.cancel()
    web.close()
    await server.server.stop(GRACE_S)
    with contextlib.suppress(asyncio.CancelledError):
        await thinking
    log.info("stopped")


def _raise_file_limit() -> None:
    """Take as many files as we may: each agent's connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
