"""A fake controller for each test, and a way to run `mass` against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cli.fake_controller import FakeController, Served
from typer.testing import CliRunner

from controller.cli.commands import app


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of `mass` gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed on stdout, read as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error that was printed on stderr, read as JSON."""
        return json.loads(self.err)["error"]


Mass = Callable[..., Outcome]


@pytest.fixture
def served() -> Iterator[Served]:
    """A fake controller on a port."""
    served = Served(FakeController())
    yield served
    served.stop()


@pytest.fixture
def fake(served: Served) -> FakeController:
    """What the fake controller holds."""
    return served.fake


@pytest.fixture
def mass(served: Served, monkeypatch: pytest.MonkeyPatch) -> Mass:
    """Run `mass` in this process against the fake controller."""
    monkeypatch.setenv("MASS_CONTROLLER", served.address)

    def run(*words: str, stdin: str | bytes | None = None) -> Outcome:
        result = CliRunner().invoke(app, list(words), input=stdin, prog_name="mass")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run
