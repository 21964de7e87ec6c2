"""Takes in changed rules and settings while the controller runs: all of them, or none.

What cannot change while it runs needs a restart and is named; then nothing at all is taken over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mass.systemd import Systemd

from controller.config import Settings, changed_keys
from controller.core.errors import InvalidRequest, MassError
from controller.core.events import Reconfigured
from controller.core.model import Alert
from controller.core.rules import RuleSet
from controller.engine import Engine
from controller.journal import Reloaded
from controller.notify import Notifier
from controller.rulefile import default_rules, load_rules

log = logging.getLogger("mass.controller")

LoadSettings = Callable[[], Settings]


def read_rules(settings: Settings) -> RuleSet:
    """Return the rules of the settings' files, or the default ones.

    Raises:
        RuleFileError: a file cannot be used.
    """
    return load_rules(settings.rules) if settings.rules else default_rules()


class Notices:
    """The present notifier; another one may take its place."""

    def __init__(self, webhook: str | None) -> None:
        """Raises InvalidRequest when the webhook cannot be posted to."""
        self.notifier = Notifier(webhook)

    def notify(self, alert: Alert) -> None:
        """Hand a notice to the present notifier."""
        self.notifier.notify(alert)

    def replace(self, notifier: Notifier) -> Notifier:
        """Make another one the present one and return the one before; the caller closes it."""
        before, self.notifier = self.notifier, notifier
        return before

    async def close(self) -> None:
        """Close the present one."""
        await self.notifier.close()


class Reloader:
    """Reloads when asked, one reload at a time; requests during one are one more."""

    def __init__(
        self,
        engine: Engine,
        notices: Notices,
        settings: Settings,
        load: LoadSettings,
        systemd: Systemd,
    ) -> None:
        self._engine = engine
        self._notices = notices
        self._settings = settings
        self._load = load
        self._systemd = systemd
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Ask for a reload, from a signal handler for example."""
        self._asked.set()

    async def run(self) -> None:
        """Reload whenever asked, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._systemd.tell_reloading()
            try:
                outcome = f"reloaded {await self.reload()}"
                log.info("%s", outcome)
                self._note(True, outcome)
            except MassError as error:
                outcome = f"reload refused, nothing was changed: {error.message}"
                log.error("%s", outcome)
                self._note(False, outcome)
            self._systemd.tell("READY=1", f"STATUS={' '.join(outcome.split())}")

    def _note(self, taken: bool, outcome: str) -> None:
        self._engine.journal.add(self._engine.now_ns(), Reloaded(taken, " ".join(outcome.split())))

    async def reload(self) -> str:
        """Take in what settings and rules files say now; return what changed.

        Raises:
            MassError: why nothing changed.
        """
        # Files may be large and disks slow: samples and heartbeats go on meanwhile.
        settings = await asyncio.to_thread(self._load)
        changed, fixed = changed_keys(self._settings, settings)
        if fixed:
            raise InvalidRequest(f"{', '.join(fixed)} cannot change while the controller runs: "
                                 "it needs a restart")  # fmt: skip
        rules = await asyncio.to_thread(read_rules, settings)
        before = self._engine.cluster.rules
        # In place before the rules are: the cycle that takes them may fire alerts at once.
        replaced = None
        if "webhook" in changed:
            replaced = self._notices.replace(Notifier(settings.webhook))
        try:
            await self._engine.ask(Reconfigured(self._engine.now_ns(), rules, settings.limits()))
        except BaseException:
            if replaced is not None:
                replaced = self._notices.replace(replaced)
            raise
        finally:
            if replaced is not None:
                await replaced.close()
        self._settings = settings
        return f"changed={','.join(changed) or 'nothing'} {_difference(before, rules)}"


def _difference(before: RuleSet, after: RuleSet) -> str:
    old = {rule.name: rule for rule in before.rules}
    new = {rule.name: rule for rule in after.rules}
    changed = sum(1 for name, rule in new.items() if name in old and old[name] != rule)
    return (
        f"rules={len(new)} rules_added={len(new.keys() - old.keys())}"
        f" rules_removed={len(old.keys() - new.keys())} rules_changed={changed}"
    )
