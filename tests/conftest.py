"""What all tests share: the count of skips, and the list of those that CI allows."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which CI names the skips it allows."""
    parser.addoption(
        "--skips-allowed",
        default=None,
        metavar="FILE",
        help="fail when a test is skipped that no line of FILE (a part of 'id: reason') allows",
    )


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Count what was skipped, and name what was skipped without leave."""
    skipped = [f"{r.nodeid}: {_reason(r)}" for r in terminalreporter.stats.get("skipped", [])]
    terminalreporter.write_line(f"skipped: {len(skipped)}")
    for line in _without_leave(config, skipped):
        terminalreporter.write_line(f"skipped without leave: {line}", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run when something was skipped without leave."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or exitstatus != 0:
        return
    skipped = [f"{r.nodeid}: {_reason(r)}" for r in reporter.stats.get("skipped", [])]
    if _without_leave(session.config, skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _without_leave(config: pytest.Config, skipped: list[str]) -> list[str]:
    path = config.getoption("--skips-allowed")
    if path is None:
        return []
    lines = (line.strip() for line in Path(path).read_text().splitlines())
    allowed = [line for line in lines if line and not line.startswith("#")]
    return [line for line in skipped if not any(part in line for part in allowed)]


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr
    return str(text[2]) if isinstance(text, tuple) else str(text)
