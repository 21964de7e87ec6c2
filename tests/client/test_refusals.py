"""What both clients make of a controller that refuses, goes away, or comes back."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import grpc
import mass
import pytest
from cli.fake_controller import FakeController, Served, task
from mass.flows import Patience
from mass.v1 import task_pb2
from support.cluster import free_port


def test_submit_is_repeated_with_the_same_request_id(client: Any, fake: FakeController) -> None:
    fake.unavailable_next = 2
    assert client.submit(["true"]).id == "1"
    assert len(fake.submits) == 3
    (request_id,) = {request.request_id for request in fake.submits}
    assert len(request_id) == 32
    assert fake.submits[0].user == "tester"
    assert client.submit(["true"], request_id="mine").id == "2"
    assert fake.submits[-1].request_id == "mine"


def test_unknown_task_is_not_found(client: Any) -> None:
    for call in (
        lambda: client.get("77"),
        lambda: client.wait(["77"]),
        lambda: client.cancel("77"),
        lambda: list(client.logs("77")),
        lambda: client.task("77").result(),
    ):
        with pytest.raises(mass.NotFound, match="no task 77") as caught:
            call()
        assert caught.value.reason == "NOT_FOUND"
        assert caught.value.details == {"task": "77"}


@pytest.mark.parametrize(
    ("code", "try_later"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, True),
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.FAILED_PRECONDITION, False),
        (grpc.StatusCode.INVALID_ARGUMENT, False),
    ],
)
def test_refusal_keeps_its_reason_and_its_numbers(
    client: Any, fake: FakeController, code: grpc.StatusCode, try_later: bool
) -> None:
    details = {"tasks": "200000", "a": "", "naïve": "Größe"}
    fake.refuse_next = (code, "it is full", "ITS_WORD", details)
    with pytest.raises(mass.Refused, match=r"^it is full$") as caught:
        client.submit(["true"])
    assert caught.value.reason == "ITS_WORD"
    assert caught.value.details == details
    assert caught.value.try_later is try_later
    assert len(fake.submits) == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, again.details, str(again)) == ("ITS_WORD", details, "it is full")


def test_status_without_details_is_named_by_its_code(client: Any, fake: FakeController) -> None:
    fake.abort_next = grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(mass.Refused, match="it says no") as caught:
        client.submit(["true"])
    assert caught.value.reason == "PERMISSION_DENIED"
    assert caught.value.details == {}


def test_silent_controller_is_unreachable_after_the_patience(make_client: Any) -> None:
    address = f"127.0.0.1:{free_port()}"
    client = make_client(address, patience_seconds=0.3)
    with pytest.raises(mass.Unreachable, match=f"{address} has not answered for 0.3 s"):
        client.get("1")
    with pytest.raises(mass.Unreachable, match=f"{address} has not answered for 0.3 s"):
        client.wait(["1"])


def test_wait_gives_up_in_time_while_nobody_answers(
    make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mass.flows.DELAY_FIRST_SECONDS", 5.0)
    client = make_client(f"127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(mass.WaitTimeout) as caught:
        client.wait(["1", "2"], timeout=0.2)
    assert caught.value.pending_ids == ("1", "2")
    assert time.monotonic() - began < 3


def test_pauses_grow_until_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    silence = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "away"
    )
    patience = Patience("127.0.0.1:1", 4.0)
    for wanted in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        delay = patience.delay_seconds(silence)
        assert delay == wanted
        now += delay
    with pytest.raises(mass.Unreachable, match="has not answered for 4 s"):
        patience.delay_seconds(silence)
    patience.reset()
    assert patience.delay_seconds(silence) == 0.1


def test_end_that_is_told_twice_counts_once(client: Any, fake: FakeController) -> None:
    for number in "12":
        fake.tasks[number] = task(number)
    fake.story["1"] = [task("1", "SUCCEEDED"), task("1", "SUCCEEDED")]
    fake.story["2"] = [task("2", "FAILED")]
    assert [info.id for info in client.as_completed(["1", "2"])] == ["1", "2"]
    assert [info.id for info in client.wait(["2", "1"])] == ["2", "1"]


def test_watch_goes_on_after_the_controller_was_away(client: Any, fake: FakeController) -> None:
    fake.tasks["1"] = task("1")
    fake.story["1"] = [task("1", "SUCCEEDED")]
    fake.unavailable_next = 2
    states = [info.state.value for info in client.watch(["1"])]
    assert states == ["RUNNING", "SUCCEEDED"]


def test_results_come_in_the_order_asked_and_as_they_end(client: Any, fake: FakeController) -> None:
    for number in "123":
        fake.tasks[number] = task(number)
        fake.story[number] = [task(number, "SUCCEEDED")]
    assert [info.id for info in client.as_completed(["3", "1", "2"])] == ["3", "1", "2"]
    assert [info.id for info in client.wait(["2", "3", "2", "1"])] == ["2", "3", "2", "1"]
    assert client.wait([]) == []
    assert list(client.as_completed([])) == []


def test_output_goes_on_where_it_broke_off(client: Any, fake: FakeController) -> None:
    fake.tasks["1"] = task("1")
    fake.output["1", 1] = b"0123456789"
    fake.log_breaks = 2
    assert b"".join(client.logs("1")) == b"0123456789"
    fake.log_breaks = 1
    with pytest.raises(mass.Refused):
        list(client.logs("1", tail_bytes=9))


def test_gap_in_the_output_is_warned_of(
    client: Any, fake: FakeController, caplog: pytest.LogCaptureFixture
) -> None:
    fake.tasks["1"] = task("1")
    fake.output["1", 2] = b"tail"
    fake.output_note = "only the last 4 bytes are kept here"
    with caplog.at_level(logging.WARNING, "mass.client"):
        assert list(client.logs("1", stream="stderr")) == [b"tail"]
    assert caplog.messages == ["task 1 stderr: only the last 4 bytes are kept here"]


def test_list_fetches_page_after_page(client: Any, fake: FakeController) -> None:
    for number in range(1, 6):
        fake.tasks[str(number)] = task(str(number), "FAILED" if number == 3 else "RUNNING")
    fake.page_size_max = 2
    assert [info.id for info in client.list()] == ["5", "4", "3", "2", "1"]
    assert [info.id for info in client.list([mass.TaskState.FAILED])] == ["3"]


def test_result_raises_the_error_of_its_end(client: Any, fake: FakeController) -> None:
    kinds = {
        "FAILED": mass.TaskFailed,
        "OUT_OF_MEMORY": mass.TaskOutOfMemory,
        "TIMED_OUT": mass.TaskTimedOut,
        "CANCELLED": mass.TaskCancelled,
        "LOST": mass.TaskLost,
    }
    for state, kind in kinds.items():
        fake.tasks["1"] = task("1", state, reason="the reason")
        with pytest.raises(mass.TaskFailed) as caught:
            client.task("1").result()
        assert type(caught.value) is kind
        assert caught.value.task.state.value == state
        assert str(caught.value) == f"task 1 (sleep) ended {state}: the reason"
        assert pickle.loads(pickle.dumps(caught.value)).task == caught.value.task


def test_map_submits_in_batches_and_only_two_ahead(
    client: Any, fake: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mass.flows.MAP_BATCH_TASKS_MAX", 2)
    for number in range(1, 9):
        fake.story[str(number)] = [task(str(number), "SUCCEEDED")]
    taken: list[int] = []

    def items() -> Any:
        for number in range(7):
            taken.append(number)
            yield number

    results = client.map(["tool", "{}", "--out={}.txt"], items(), mem="1GiB")
    assert next(results).id == "1"
    # Two batches are submitted, and one item was looked at to see that the second is full.
    assert len(taken) == 5
    assert [info.id for info in results] == ["2", "3", "4", "5", "6", "7"]
    assert [len(request.tasks) for request in fake.submits] == [2, 2, 2, 1]
    assert list(fake.submits[0].tasks[1].command) == ["tool", "1", "--out=1.txt"]
    assert list(client.map(["tool", "{}"], [])) == []


def test_map_takes_a_function_from_item_to_command(client: Any, fake: FakeController) -> None:
    fake.story["1"] = [task("1", "FAILED")]
    (info,) = client.map(lambda pair: ["join", *pair], [("a", "b")])
    assert not info.succeeded
    assert list(fake.submits[0].tasks[0].command) == ["join", "a", "b"]


def test_too_much_for_one_call_is_refused_before_it_is_sent(
    client: Any, fake: FakeController
) -> None:
    with pytest.raises(mass.InvalidValue, match="10001 tasks in one call; it takes 10000"):
        client.submit_many([mass.TaskSpec(["true"])] * 10_001)
    with pytest.raises(mass.InvalidValue, match="10001 tasks"):
        client.wait(map(str, range(10_001)))
    with pytest.raises(
        mass.InvalidValue, match=r"200 tasks have 19\.1 MiB; one call carries 16 MiB"
    ):
        client.submit_many([mass.TaskSpec(["x" * 100_000])] * 200)
    assert fake.submits == []
    assert client.submit_many([]) == []
    assert client.cancel([]) == []


def test_values_that_cannot_be_are_refused(client: Any) -> None:
    with pytest.raises(mass.InvalidValue, match=r"\['tool'\] must be a list of words with a {}"):
        list(client.map(["tool"], []))
    with pytest.raises(mass.InvalidValue, match="stream 'both' must be stdout or stderr"):
        list(client.logs("1", stream="both"))
    with pytest.raises(mass.InvalidValue, match="timeout 0 must be above 0 seconds"):
        client.wait(["1"], timeout=0)


def test_closed_client_says_so(make_client: Any, served: Served) -> None:
    client = make_client(served.address)
    client.submit(["true"])
    client.close()
    with pytest.raises(mass.MassClientError, match="the client is closed"):
        client.get("1")


class Watched(FakeController):
    """Tells of one running task until its watcher has left."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.left = threading.Event(), threading.Event()

    def WatchTasks(self, request: Any, context: Any) -> Any:  # noqa: N802
        context.add_callback(self.left.set)
        yield task_pb2.WatchTasksResponse(task=task("1"))
        self.begun.set()
        self.left.wait(10)


@pytest.fixture
def watched() -> Iterator[Served]:
    """A controller whose watches go on until they are left."""
    served = Served(Watched())
    yield served
    served.stop()


def test_leaving_an_iteration_closes_its_stream(make_client: Any, watched: Served) -> None:
    assert isinstance(watched.fake, Watched)
    changes = make_client(watched.address).watch(["1"])
    assert next(changes).state is mass.TaskState.RUNNING
    assert not watched.fake.left.is_set()
    changes.close()
    assert watched.fake.left.wait(5)


async def test_cancelled_wait_closes_its_stream(watched: Served) -> None:
    assert isinstance(watched.fake, Watched)
    async with mass.AsyncClient(watched.address) as client:
        waiting = asyncio.create_task(client.wait(["1"]))
        assert await asyncio.to_thread(watched.fake.begun.wait, 5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(watched.fake.left.wait, 5)


async def test_awaited_client_serves_many_waits_at_once(served: Served) -> None:
    for number in range(1, 21):
        served.fake.story[str(number)] = [task(str(number), "SUCCEEDED")]
    async with mass.AsyncClient(served.address) as client:
        tasks = await asyncio.gather(*(client.submit(["true"]) for _ in range(20)))
        infos = await asyncio.gather(*(one.result(timeout=10) for one in tasks))
    assert sorted(int(info.id) for info in infos) == list(range(1, 21))


@pytest.mark.parametrize("option", ["array", "array_running_max", "key"])
def test_executor_refuses_what_a_single_call_cannot_be(option: str) -> None:
    with pytest.raises(mass.InvalidValue, match=f"{option} cannot be an option of calls"):
        mass.Executor(**cast(Any, {option: "1"}))
