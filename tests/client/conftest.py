"""A fake controller for errors, a real one for the rest, and both clients behind one face."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from cli.fake_controller import FakeController, Served
from mass import AsyncClient, Client
from support.cluster import Cluster

MakeClient = Callable[..., Any]


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


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One real controller with one agent; a test leaves no open task behind."""
    with Cluster(tmp_path_factory.mktemp("client")) as cluster:
        cluster.start_controller()
        cluster.start_agent("node-1", "--cpus", "8")
        cluster.wait_ready()
        yield cluster


class Awaited:
    """An AsyncClient (or one of its tasks) whose methods wait, so that a test fits both clients."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return self._waiting(value) if callable(value) else value

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            value = method(*arguments, **named)
            if inspect.isawaitable(value):
                value = self._runner.run(_awaited(value))
            if inspect.isasyncgen(value):
                return self._each(value)
            if isinstance(value, list):
                return [self._wrapped(one) for one in value]
            return self._wrapped(value)

        return call

    def _wrapped(self, value: Any) -> Any:
        return Awaited(value, self._runner) if type(value).__name__ == "AsyncTask" else value

    def _each(self, values: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(_awaited(anext(values)))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(values.aclose())  # type: ignore[attr-defined]


async def _awaited(value: Any) -> Any:
    return await value


@pytest.fixture(params=["blocking", "awaiting"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Make a client of either kind; the test's methods are the same for both."""
    with contextlib.ExitStack() as stack:
        if request.param == "blocking":

            def make(address: str, **options: Any) -> Any:
                return stack.enter_context(Client(address, **options))
        else:
            runner = stack.enter_context(asyncio.Runner())

            def make(address: str, **options: Any) -> Any:
                client = AsyncClient(address, **options)
                stack.callback(lambda: runner.run(client.close()))
                return Awaited(client, runner)

        yield make


@pytest.fixture
def client(make_client: MakeClient, served: Served) -> Any:
    """A client of the fake controller."""
    return make_client(served.address, user="tester", patience_seconds=3.0)


@pytest.fixture
def real(make_client: MakeClient, cluster: Cluster) -> Any:
    """A client of the real controller."""
    return make_client(cluster.address)
