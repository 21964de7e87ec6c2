"""Events as lines and as JSON, over restarts of the controller; and the story made of them."""

from __future__ import annotations

import json

import pytest
from cli.conftest import Mass
from cli.fake_controller import FakeController, event
from mass.v1 import event_pb2

from controller.cli.exits import ExitCode
from controller.cli.story import Seen

WAITS = event(1, "TASK_STATE", "task 1 (true) waits", task="1", name="true", state="PENDING")
RUNS = event(2, "TASK_STATE", "task 1 (true) runs on n1", task="1", name="true", state="RUNNING")
READY = event(3, "NODE_STATE", "node n1 is ready", node_id="n1", state="READY")


def test_events_are_lines_with_their_time_oldest_first(mass: Mass, fake: FakeController) -> None:
    fake.events = [WAITS, RUNS, READY]
    assert mass("events").out.splitlines() == [
        "2023-11-14T22:13:21.000Z  TASK_STATE       task 1 (true) waits",
        "2023-11-14T22:13:22.000Z  TASK_STATE       task 1 (true) runs on n1",
        "2023-11-14T22:13:23.000Z  NODE_STATE       node n1 is ready",
    ]
    assert [(r.last, r.follow) for r in fake.event_requests] == [(100, False)]
    assert len(mass("events", "--last", "1").out.splitlines()) == 1
    assert mass("events", "--last", "-1").code == ExitCode.USAGE


def test_json_is_an_array_and_with_follow_an_object_a_line(
    mass: Mass, fake: FakeController
) -> None:
    fake.events = [WAITS, READY]
    shown = mass("events", "-o", "json").json
    assert shown[1] == {
        "sequence": 3,
        "at": "2023-11-14T22:13:23Z",
        "kind": "NODE_STATE",
        "subject": "node n1",
        "text": "node n1 is ready",
        "details": {"node_id": "n1", "state": "READY"},
    }
    followed = mass("events", "-f", "-o", "json").out.splitlines()
    assert [json.loads(line) for line in followed] == shown
    assert fake.event_requests[-1].follow


def test_follower_outlives_a_restart_and_is_told_nothing_twice(
    mass: Mass, fake: FakeController
) -> None:
    # First the stream breaks, later the controller is another one whose sequences begin anew.
    fake.events = [WAITS, RUNS]
    after = event(1, "NODE_STATE", "node n1 does not answer")
    after.at.FromSeconds(WAITS.at.seconds + 60)
    fake.events_later = [[WAITS, RUNS, READY], [after]]
    ran = mass("events", "-f", "--last", "2")
    assert [line.split("  ")[-1].strip() for line in ran.out.splitlines()] == [
        "task 1 (true) waits",
        "task 1 (true) runs on n1",
        "node n1 is ready",
        "node n1 does not answer",
    ]
    assert [request.last for request in fake.event_requests] == [2, 0, 0]
    assert "does not answer; trying" in ran.err


def test_text_of_others_cannot_steer_the_terminal(mass: Mass, fake: FakeController) -> None:
    fake.events = [event(1, "TASK_STATE", "task 1 (\x1b[2J) waits")]
    assert "\x1b" not in mass("events").out


def told(*events: event_pb2.Event) -> tuple[Seen, list[str]]:
    seen = Seen()
    sentences = [seen.take(event) for event in events]
    return seen, [sentence for sentence in sentences if sentence]


def task_event(sequence: int, task: str, state: str, name: str = "array") -> event_pb2.Event:
    text = f"task {task} is {state}"
    return event(sequence, "TASK_STATE", text, task=task, name=name, state=state)


def test_story_counts_how_many_of_a_name_run_at_once() -> None:
    seen, sentences = told(
        task_event(1, "1_1", "PENDING"),
        task_event(2, "1_1", "RUNNING"),
        task_event(3, "9", "RUNNING", "other"),
        task_event(4, "1_2", "RUNNING"),
        task_event(5, "1_1", "SUCCEEDED"),
        task_event(6, "1_3", "RUNNING"),
    )
    assert seen.running_max == {"array": 2, "other": 1}
    assert [life.end for life in seen.named("array")] == ["SUCCEEDED", "", ""]
    first = seen.tasks["1_1"]
    assert (first.ended_at_ns - first.started_at_ns) == 3 * 10**9
    assert sentences[0] == "task 1_1 is RUNNING", "that it waits is not worth a sentence"


@pytest.mark.parametrize(
    ("happened", "sentence"),
    [
        (event(1, "NODE_STATE", "node n1 has connected", node_id="n1", state="JOINING"), ""),
        (READY, "node n1 is ready"),
        (
            event(1, "CONFIGURATION", "reloaded rules=2", state="RELOADED"),
            "the controller has read its rules again: reloaded rules=2",
        ),
        (
            event(1, "ALERT", "alert A fires on n1", alert="A", state="FIRING"),
            "alert A fires on n1",
        ),
    ],
)
def test_story_tells_what_is_worth_a_sentence(happened: event_pb2.Event, sentence: str) -> None:
    assert Seen().take(happened) == sentence
