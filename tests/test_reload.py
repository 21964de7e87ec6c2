"""Reloads step by step, with an engine that only takes or refuses what it is given."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mass.systemd import Systemd

from controller.config import Settings
from controller.core.errors import InvalidRequest
from controller.core.events import Reconfigured
from controller.core.rules import RuleSet
from controller.journal import Reloaded
from controller.reload import Notices, Reloader, read_rules

WEBHOOK = "http://127.0.0.1:9/alerts"


class FakeEngine:
    """Keeps what it is asked to take in, and who is notified at that moment."""

    def __init__(self, notices: Notices) -> None:
        self.cluster = SimpleNamespace(rules=RuleSet())
        self.taken: list[Reconfigured] = []
        self.present: list[object] = []
        self.refusal: InvalidRequest | None = None
        self.journal = self
        self.noted: list[tuple[int, Reloaded]] = []
        self._notices = notices

    def now_ns(self) -> int:
        return 5

    def add(self, at_ns: int, reloaded: Reloaded) -> None:
        self.noted.append((at_ns, reloaded))

    async def ask(self, event: Reconfigured) -> None:
        self.present.append(self._notices.notifier)
        if self.refusal is not None:
            raise self.refusal
        self.taken.append(event)
        self.cluster.rules = event.rules


class Bench:
    """A reloader and all that it works on."""

    def __init__(self, manager: Path) -> None:
        self.notices = Notices(None)
        self.engine = FakeEngine(self.notices)
        self.settings = Settings()
        self.load: Callable[[], Settings] = lambda: self.settings
        engine: Any = self.engine
        systemd = Systemd({"NOTIFY_SOCKET": str(manager)})
        self.reloader = Reloader(engine, self.notices, self.settings, self.read, systemd)

    def read(self) -> Settings:
        return self.load()

    @property
    def notifier(self) -> object:
        return self.notices.notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


@pytest.fixture
async def bench(manager: socket.socket, tmp_path: Path) -> Bench:
    return Bench(tmp_path / "notify")


async def test_what_has_changed_is_taken_in_and_told(bench: Bench, tmp_path: Path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text("RULES = [{'expression': 'load1 > 1', 'alert': 'Busy'}]\n")
    bench.settings = Settings(rules=(rules,), history_tasks_max=7)
    assert await bench.reloader.reload() == (
        "changed=rules,history_tasks_max rules=1 rules_added=1 rules_removed=0 rules_changed=0"
    )
    (event,) = bench.engine.taken
    assert (event.at_ns, event.limits.history_tasks_max) == (5, 7)
    rules.write_text("RULES = [{'expression': 'load1 > 2', 'alert': 'Busy'}]\n")
    assert await bench.reloader.reload() == (
        "changed=nothing rules=1 rules_added=0 rules_removed=0 rules_changed=1"
    )
    assert [rule.expression.text for rule in bench.engine.cluster.rules.rules] == ["load1 > 2"]


async def test_webhook_is_in_place_before_the_rules_are(bench: Bench) -> None:
    before = bench.notifier
    bench.settings = Settings(webhook=WEBHOOK)
    await bench.reloader.reload()
    assert bench.engine.present == [bench.notifier]
    assert bench.notifier is not before
    after = bench.notifier
    await bench.reloader.reload()
    assert bench.notifier is after, "an unchanged webhook keeps its queue"
    await bench.notices.close()


async def test_refused_reload_leaves_the_webhook_and_the_settings(bench: Bench) -> None:
    before = bench.notifier
    bench.engine.refusal = InvalidRequest("a reason")
    bench.settings = Settings(webhook=WEBHOOK, history_tasks_max=7)
    with pytest.raises(InvalidRequest, match="a reason"):
        await bench.reloader.reload()
    assert bench.notifier is before
    bench.engine.refusal = None
    assert "changed=webhook,history_tasks_max " in await bench.reloader.reload()
    await bench.notices.close()


async def test_what_needs_a_restart_is_named_and_nothing_is_asked(bench: Bench) -> None:
    bench.settings = Settings(webhook=WEBHOOK, data=Path("elsewhere"), nodes_max=3)
    with pytest.raises(InvalidRequest, match=r"^data, nodes_max cannot change while"):
        await bench.reloader.reload()
    assert bench.engine.present == []


async def test_systemd_hears_of_each_reload_and_requests_during_one_are_one_more(
    bench: Bench, manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    loads = 0

    def load() -> Settings:
        nonlocal loads
        loads += 1
        if loads == 1:
            for _ in range(5):
                loop.call_soon_threadsafe(bench.reloader.ask)
            return bench.settings
        raise InvalidRequest("controller.toml:1: unknown\n key 'x'")

    bench.load = load
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(bench.reloader.run())
    bench.reloader.ask()
    said = [(await loop.sock_recv(manager, 4_096)).decode().splitlines() for _ in range(4)]
    running.cancel()
    assert [lines[0] for lines in said] == ["RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]
    count = len(read_rules(Settings()))
    assert said[1][1] == (
        f"STATUS=reloaded changed=nothing rules={count} rules_added={count}"
        " rules_removed=0 rules_changed=0"
    )
    assert said[3][1:] == [
        "STATUS=reload refused, nothing was changed: controller.toml:1: unknown key 'x'"
    ]
    assert loads == 2
    assert bench.engine.noted == [
        (5, Reloaded(True, said[1][1].removeprefix("STATUS="))),
        (5, Reloaded(False, said[3][1].removeprefix("STATUS="))),
    ]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
