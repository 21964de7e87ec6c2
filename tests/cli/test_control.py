"""Holding, pausing and reordering tasks, emptying and forgetting nodes, and which are meant."""

from __future__ import annotations

import grpc
import pytest
from cli.conftest import Mass
from cli.fake_controller import FakeController, node, task
from mass.v1 import task_pb2

ACTIONS = ("hold", "release", "pause", "resume")


@pytest.mark.parametrize("word", ACTIONS)
def test_action_is_asked_for_the_tasks_named(mass: Mass, fake: FakeController, word: str) -> None:
    fake.tasks = {str(number): task(str(number)) for number in range(1, 8)}
    outcome = mass("task", word, "2-4,6", "3", "last")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[1] for line in outcome.out.splitlines()] == ["2", "3", "4", "6", "7"]
    (request,) = fake.controls
    assert list(request.ids) == ["2", "3", "4", "6", "7"]
    action = task_pb2.TaskAction.Value(f"TASK_ACTION_{word.upper()}")
    assert (request.action, request.priority) == (action, 0)


@pytest.mark.parametrize("words", [["5", "1"], ["--", "-5", "1"]])
def test_priority_is_given(mass: Mass, fake: FakeController, words: list[str]) -> None:
    fake.tasks = {"1": task("1", "PENDING")}
    assert mass("task", "priority", *words).code == 0
    (request,) = fake.controls
    assert request.action == task_pb2.TASK_ACTION_PRIORITY
    assert str(request.priority) == words[-2]


def test_task_that_an_action_does_not_fit_is_named_and_the_others_are_done(
    mass: Mass, fake: FakeController
) -> None:
    fake.tasks = {"1": task("1"), "2": task("2", "PENDING")}
    fake.refused = {"2": "task 2 is PENDING; only RUNNING ones can be paused"}
    outcome = mass("task", "pause", "1", "2")
    assert outcome.code == 1
    assert len(outcome.out.splitlines()) == 1
    assert "task 2 is PENDING; only RUNNING ones can be paused" in outcome.err
    outcome = mass("task", "pause", "1", "2", "-o", "json")
    assert (outcome.code, [one["id"] for one in outcome.json]) == (1, ["1", "2"])
    assert mass("task", "pause", "1", "-q").out == ""


@pytest.mark.parametrize("word", ACTIONS)
def test_tasks_are_chosen_by_state(mass: Mass, fake: FakeController, word: str) -> None:
    fake.tasks = {"1": task("1"), "2": task("2", "HELD"), "3": task("3", "HELD")}
    assert mass("task", word, "--state", "held").code == 0
    assert sorted(fake.controls[0].ids) == ["2", "3"]


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ("4-2", "range '4-2' runs backwards; write 2-4"),
        ("1-10001", "range '1-10001' is above the bound of 10,000 tasks"),
        ("0", "'0' is no task id; write 12, 1-5,7 or last"),
        ("x", "'x' is no task id"),
        ("1,,2", "'' is no task id"),
    ],
)
def test_selector_that_cannot_be_is_refused(
    mass: Mass, fake: FakeController, selector: str, words: str
) -> None:
    outcome = mass("task", "hold", selector)
    assert outcome.code != 0
    assert words in outcome.err
    assert fake.controls == []


def test_unknown_task_of_a_range_is_reported_by_name(mass: Mass, fake: FakeController) -> None:
    fake.tasks = {"1": task("1")}
    outcome = mass("task", "hold", "1-2")
    assert outcome.code != 0
    assert "no task 2" in outcome.err


def test_element_of_an_array_is_named_as_it_is(mass: Mass, fake: FakeController) -> None:
    fake.tasks = {"12_3": task("15")}
    assert mass("task", "hold", "12_3").code == 0
    assert list(fake.controls[0].ids) == ["12_3"]


def test_node_is_drained_with_reason_and_deadline(mass: Mass, fake: FakeController) -> None:
    fake.nodes = {"n1": node("n1")}
    outcome = mass("node", "drain", "n1", "--reason", "new disks", "--deadline", "10m")
    assert (outcome.code, outcome.err) == (0, "")
    assert "DRAINING" in outcome.out
    assert "new disks" in outcome.out
    (request,) = fake.drains
    assert (request.id, request.reason, request.deadline.ToSeconds()) == ("n1", "new disks", 600)
    assert request.user
    assert mass("node", "drain", "n1").code == 0
    assert not fake.drains[1].HasField("deadline")


def test_drain_refuses_a_deadline_without_a_unit(mass: Mass, fake: FakeController) -> None:
    fake.nodes = {"n1": node("n1")}
    outcome = mass("node", "drain", "n1", "--deadline", "10")
    assert outcome.code != 0
    assert "deadline '10' has no unit" in outcome.err
    assert fake.drains == []


def test_node_is_forgotten(mass: Mass, fake: FakeController) -> None:
    fake.nodes = {"n1": node("n1"), "n2": node("n2")}
    assert mass("node", "forget", "n1").code == 0
    assert mass("node", "forget", "n2", "-o", "json").json == {"id": "n2"}
    assert fake.nodes == {}


def test_node_that_cannot_be_forgotten_is_told_why(mass: Mass, fake: FakeController) -> None:
    fake.nodes = {"n1": node("n1")}
    why = "node 'n1' is connected; stop its agent first"
    fake.refuse_next = (grpc.StatusCode.FAILED_PRECONDITION, why, "CONFLICT", {})
    outcome = mass("node", "forget", "n1")
    assert (outcome.code, outcome.out) == (1, "")
    assert why in outcome.err
    assert mass("node", "forget", "n9").code != 0
    assert list(fake.nodes) == ["n1"]
