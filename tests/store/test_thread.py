"""The store's threads: order, bound, cancelled waiters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from threading import Event

import pytest

from controller.core.errors import LimitReached
from controller.store.base import StoreError
from controller.store.thread import StoreThread


@pytest.fixture
async def thread() -> AsyncIterator[StoreThread]:
    thread = StoreThread("test", pending_max=2)
    yield thread
    await thread.stop()


async def test_calls_are_made_in_their_order_and_answered(thread: StoreThread) -> None:
    made: list[int] = []

    def call(number: int) -> int:
        made.append(number)
        return number * 10

    answers = await asyncio.gather(*(thread.run(partial(call, number)) for number in (1, 2)))
    assert (made, answers) == ([1, 2], [10, 20])


async def test_an_error_reaches_who_waits_and_the_thread_goes_on(thread: StoreThread) -> None:
    def fail() -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        await thread.run(fail)
    assert await thread.run(lambda: 1) == 1


async def test_a_call_beyond_the_bound_is_refused(thread: StoreThread) -> None:
    go = Event()
    waiting = [asyncio.create_task(thread.run(go.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(LimitReached, match="2 calls wait for the store, the most is 2"):
        await thread.run(lambda: None)
    go.set()
    assert await asyncio.gather(*waiting) == [True, True]
    assert await thread.run(lambda: 1) == 1


async def test_a_call_whose_waiter_was_cancelled_is_made_nevertheless(
    thread: StoreThread,
) -> None:
    go, made = Event(), Event()
    first = asyncio.create_task(thread.run(go.wait))
    second = asyncio.create_task(thread.run(made.set))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go.set()
    await first
    # The next call is answered after the cancelled one was made.
    await thread.run(lambda: None)
    assert made.is_set()


async def test_what_was_asked_before_the_stop_is_done(thread: StoreThread) -> None:
    go = Event()
    first = asyncio.create_task(thread.run(go.wait))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(thread.stop())
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="the store is closed"):
        await thread.run(lambda: None)
    go.set()
    assert await first
    await stopping


def test_an_error_after_the_loop_was_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    go = Event()
    thread = StoreThread("test")

    def fail() -> None:
        go.wait()
        raise StoreError("nobody waits for this")

    async def ask_and_leave() -> None:
        asked = asyncio.create_task(thread.run(fail))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(ask_and_leave())
    with caplog.at_level(logging.ERROR, logger="mass.store"):
        go.set()
        asyncio.run(thread.stop())
    assert "nobody waits for this" in caplog.text
