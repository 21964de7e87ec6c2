"""What all tests share: the count of skips, and the list of those that CI allows.

Where the environment says CI, a skip that no line of .ci/skips-allowed allows fails the run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long one example takes depends on what else the machine does; a hang has pytest's bounds.
settings.register_profile("mass", deadline=None)
settings.load_profile("mass")

SKIPS_ALLOWED = Path(__file__).resolve().parent.parent / ".ci" / "skips-allowed"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Count what was skipped, and name what was skipped without leave."""
    skipped = [f"{r.nodeid}: {_reason(r)}" for r in terminalreporter.stats.get("skipped", [])]
    terminalreporter.write_line(f"skipped: {len(skipped)}")
    for line in _without_leave(skipped):
        terminalreporter.write_line(f"skipped without leave: {line}", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run when something was skipped without leave."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or exitstatus != 0:
        return
    skipped = [f"{r.nodeid}: {_reason(r)}" for r in reporter.stats.get("skipped", [])]
    if _without_leave(skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _without_leave(skipped: list[str]) -> list[str]:
    """Return the skips that CI does not allow; a line allows what has it as a part."""
    if not os.environ.get("CI"):
        return []
    lines = (line.strip() for line in SKIPS_ALLOWED.read_text().splitlines())
    allowed = [line for line in lines if line and not line.startswith("#")]
    return [line for line in skipped if not any(part in line for part in allowed)]


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr
    return str(text[2]) if isinstance(text, tuple) else str(text)
