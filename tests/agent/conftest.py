"""An agent and the controller it talks to, each made anew for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.fake_controller import FakeController
from support.lone_agent import Agent


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    fake = FakeController()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def agent(controller: FakeController, tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(controller, tmp_path)
    yield made
    await made.crash()
