"""The demonstration's refusals; the whole of it is run in tests/e2e."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cli.fake_controller import GIB, FakeController, Served, node

from controller.cli.address import parse_address
from controller.cli.children import StopSignals
from controller.cli.client import Client
from controller.cli.demo import _hog, _introduce
from controller.cli.story import NotAsTold, Story
from controller.core.errors import MassError
from controller.core.limits import MIB


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def stop() -> StopSignals:
    return StopSignals()


@pytest.fixture
def story(
    served: Served, fake: FakeController, lines: list[str], stop: StopSignals
) -> Iterator[Story]:
    client = Client(parse_address(served.address), note=lambda _: None)
    yield Story(client, lines.append, (), stop)
    client.close()


@pytest.mark.parametrize(
    ("available", "promise", "shown"),
    [(2 * GIB - 1, GIB, "2 GiB are available"), (8 * GIB, GIB // 2, "512 MiB can be promised")],
)
def test_machine_with_too_little_memory_is_refused(
    story: Story, available: int, promise: int, shown: str
) -> None:
    small = node("demo", memory_available_bytes=available, memory_promise_bytes=promise)
    with pytest.raises(MassError, match=r"^the demonstration needs 2 GiB of available") as caught:
        _introduce(story, small)
    assert shown in caught.value.message


def test_watchdog_is_named_where_it_holds_the_limits(story: Story, lines: list[str]) -> None:
    fields = {"memory_available_bytes": 4 * GIB, "memory_promise_bytes": 3 * GIB}
    _introduce(story, node("demo", enforcement="watchdog", **fields))
    _introduce(story, node("demo", enforcement="cgroup2", **fields))
    assert "(the watchdog), so a task may be over its limit for a moment" in lines[0]
    assert lines[1].endswith("limits are enforced by the kernel (cgroup2)")


def test_what_does_not_happen_ends_the_story_with_its_name(story: Story) -> None:
    with pytest.raises(NotAsTold, match=r"^within 0 s this did not happen: a miracle$"):
        story.until(lambda: False, "a miracle", 0.0)


def test_user_who_stops_it_is_heard_while_it_waits(story: Story, stop: StopSignals) -> None:
    stop.ask()
    with pytest.raises(KeyboardInterrupt):
        story.until(lambda: False, "anything", 5.0)


def test_program_that_takes_memory_holds_it_only_for_the_block() -> None:
    with _hog(8 * MIB) as hog:
        assert hog.poll() is None
    assert hog.poll() is not None
