"""A thread that does the store's blocking calls one after another, and wakes who waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from controller.core.errors import LimitReached
from controller.store.base import StoreError

_log = logging.getLogger("mass.store")

# Calls that may wait; beyond, a new one is refused. The engine has one commit under way, and a
# reader holds one call of the service, so only a flood of readers comes here.
PENDING_MAX = 1_000

_Result = TypeVar("_Result")
# What a call gives is known to its caller alone.
_Call = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class StoreThread:
    """One thread with a queue; a plain one, as an executor costs twice as much for each call."""

    def __init__(self, name: str, pending_max: int = PENDING_MAX) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._pending_max = pending_max
        self._pending = 0  # read and changed on the loop only
        self._stopped = False
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Say, on the loop, whether it has nothing to do and is not stopped: what it owns may be
        used on the loop then, until the next await."""
        return self._pending == 0 and not self._stopped

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Return what the call returns, or raise what it raises.

        Calls are made in the order of run(). One whose waiter is cancelled is made nevertheless.

        Raises:
            LimitReached: too many calls wait already.
            StoreError: the thread was stopped.
        """
        if self._stopped:
            raise StoreError("the store is closed")
        if self._pending >= self._pending_max:
            raise LimitReached(
                f"{self._pending} calls wait for the store, the most is {self._pending_max}",
                pending=self._pending,
                pending_max=self._pending_max,
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._pending += 1
        self._calls.put((call, loop, future))
        return await future

    async def stop(self) -> None:
        """Make the calls that wait, then end the thread."""
        if not self._stopped:
            self._stopped = True
            self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, loop, future = item
            result, error = None, None
            try:
                result = call()
            except BaseException as caught:  # whatever it is, it belongs to who waits
                error = caught
            try:
                loop.call_soon_threadsafe(self._settle, future, result, error)
            except RuntimeError:
                # The loop is closed: nobody is left to be told, which only matters for an error.
                if error is not None:
                    _log.exception("a call failed after its loop was closed", exc_info=error)
            # Else they would live on until the next call.
            del item, call, loop, future, result, error

    def _settle(
        self, future: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        self._pending -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
