"""A controller in this process, for tests of what is said to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.served import Served, serve


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A controller that answers."""
    async with serve() as served:
        yield served
