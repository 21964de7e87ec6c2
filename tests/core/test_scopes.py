"""Rules over the cluster and over tasks: expressions, and whole stories with time moved by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from support.builders import spec
from support.harness import SMALL, Harness

from controller.core.commands import Notify, SaveAlert
from controller.core.explain import node_refusals
from controller.core.expressions import FloatColumn, Window, parse
from controller.core.limits import SECOND_NS
from controller.core.metrics import CLUSTER_NAMES, Scope
from controller.core.model import TaskState
from controller.core.rules import Rule, RuleSet
from controller.core.task_rows import TaskRows
from controller.core.vocabulary import vocabulary

NAN = math.nan


def rule(
    name: str, text: str, scope: Scope, *, hold_s: int = 0, keep_s: int = 0, block: bool = False
) -> Rule:
    return Rule(
        name,
        "test",
        parse(text, vocabulary(scope)),
        hold_ns=hold_s * SECOND_NS,
        keep_firing_ns=keep_s * SECOND_NS,
        blocks_placement=block,
        scope=scope,
    )


def over_cluster(text: str, **columns: list[float]) -> tuple[str, float]:
    """Return T, F or ? for an expression over all nodes, and the number compared."""

    def column(key: str | Window) -> FloatColumn:
        name = key if isinstance(key, str) else f"{key.function.value}_{key.metric}"
        return np.array(columns[name], np.float64)

    answer = parse(text, vocabulary(Scope.CLUSTER)).evaluate(column)
    assert answer.holds.shape == answer.known.shape == (1,)
    return ("T" if answer.holds[0] else "F" if answer.known[0] else "?"), float(answer.value[0])


@pytest.mark.parametrize(
    ("text", "columns", "expected", "value"),
    [
        ("sum(load1) > 5", {"load1": [1, 2, 3]}, "T", 6),
        ("sum(load1) > 5", {"load1": [1, NAN, 3]}, "F", 4),
        ("avg(load1) == 2", {"load1": [1, NAN, 3]}, "T", 2),
        ("min(load1) < 1", {"load1": [1, NAN, 3]}, "F", 1),
        ("max(load1) >= 3", {"load1": [1, math.inf, 3]}, "T", 3),
        ("sum(load1) > 5", {"load1": [NAN, NAN]}, "?", NAN),
        ("not sum(load1) > 5", {"load1": [NAN]}, "?", NAN),
        ("sum(load1) > 5", {"load1": []}, "?", NAN),
        ("count(load1 > 1) >= 2", {"load1": [1, 2, 3, NAN]}, "T", 2),
        ("count(load1 > 9) == 0", {"load1": [1, 2, NAN]}, "T", 0),
        ("count(load1 > 9) == 0", {"load1": [NAN, NAN]}, "?", NAN),
        ("count(load1 > 9) == 0", {"load1": []}, "?", NAN),
        (
            "count(load1 > 1 and load5 > 1) > 0",
            {"load1": [2, 0, 2], "load5": [0, 2, 2]},
            "T",
            1,
        ),
        ("sum(load1 * 2 - load5) == 3", {"load1": [1, 2], "load5": [1, 2]}, "T", 3),
        ("sum(avg(load1, '5m')) > 5", {"avg_load1": [1, 5]}, "T", 6),
        ("max(max(load1, '5m')) > 5", {"max_load1": [1, 5]}, "F", 5),
        (
            "sum(mem_used) / sum(mem_total) > 0.5",
            {"mem_used": [6, 0], "mem_total": [8, 2]},
            "T",
            0.6,
        ),
        ("tasks_pending > 3 and nodes_ready > 0", {"tasks_pending": [4], "nodes_ready": [1]},
         "T", 4),
        ("tasks_pending > count(load1 > 1)", {"tasks_pending": [4], "load1": [2, 2, 2]}, "T", 4),
        ("count(load1 > 1) > nodes_ready or nodes_ready < 1",
         {"nodes_ready": [0], "load1": [NAN]}, "T", 0),
    ],
)  # fmt: skip
def test_functions_over_all_nodes_leave_out_nodes_without_data(
    text: str, columns: dict[str, list[float]], expected: str, value: float
) -> None:
    answer, compared = over_cluster(text, **columns)
    assert answer == expected
    assert compared == value or (math.isnan(compared) and math.isnan(value))


def test_expression_over_the_cluster_knows_what_it_asks_for() -> None:
    text = "sum(mem_used) > 1 and max(avg(load1, '5m')) > 1 and tasks_pending > 1"
    expression = parse(text, vocabulary(Scope.CLUSTER))
    assert expression.metrics == {"mem_used", "tasks_pending"}
    assert [window.metric for window in expression.windows] == ["load1"]


@pytest.fixture
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """A harness with the rules that the test names."""
    with Harness(rules=request.param) as harness:
        yield harness


def told(harness: Harness) -> list[str]:
    """Return the alerts that the last call saved: name, subject, state; ! where people are told."""
    notices = [command.alert for command in harness.commands if isinstance(command, Notify)]
    return [
        f"{a.name} {a.labels.get('task', a.node_id)} {a.state.value}{'!' * (a in notices)}"
        for a in (c.alert for c in harness.commands if isinstance(c, SaveAlert))
    ]


SHORT = rule("Short", "sum(mem_available) < 6*GiB", Scope.CLUSTER, hold_s=10, keep_s=5)


@pytest.mark.parametrize("harness", [(SHORT,)], indirect=True)
def test_alert_of_the_cluster_lives_as_one_of_a_node(harness: Harness) -> None:
    for node in ("n1", "n2"):
        harness.ready(node, total="4GiB")
    assert told(harness) == ["Short  INACTIVE"]  # it was pending while n1 was alone
    harness.sample("n1", used="3GiB")
    assert told(harness) == ["Short  PENDING"]
    harness.now_ns += 10 * SECOND_NS
    harness.sample("n1", used="3GiB")
    assert told(harness) == ["Short  FIRING!"]
    (alert,) = harness.cluster.alerts.active()
    assert (alert.node_id, alert.labels, alert.value) == ("", {"alertname": "Short"}, 5 * 2**30)
    harness.sample("n1", used="1GiB")
    assert told(harness) == ["Short  KEEP_FIRING"]
    harness.now_ns += 5 * SECOND_NS
    harness.sample("n1", used="1GiB")
    assert told(harness) == ["Short  RESOLVED!"]


@pytest.mark.parametrize("harness", [(SHORT,)], indirect=True)
def test_cluster_without_any_data_is_no_recovery(harness: Harness) -> None:
    harness.ready("n1", total="4GiB")
    harness.advance("10s")
    assert [alert.state.value for alert in harness.cluster.alerts.active()] == ["FIRING"]
    harness.advance("31s")
    assert told(harness) == ["Short  NO_DATA"]


@pytest.mark.parametrize("harness", [(SHORT,)], indirect=True)
def test_after_a_restart_nothing_is_known_of_all_nodes_until_they_are_back(
    harness: Harness,
) -> None:
    for node in ("n1", "n2"):
        harness.ready(node, total="4GiB")
    harness.restart()
    harness.ready("n1", total="4GiB")
    harness.advance("12s")
    harness.sample("n1")
    assert harness.cluster.alerts.listing() == []
    harness.ready("n2", total="4GiB")
    assert harness.cluster.alerts.listing() == []
    harness.restart()
    harness.ready("n1", total="4GiB")
    harness.now_ns += 30 * SECOND_NS
    harness.sample("n1")
    assert told(harness) == ["Short  PENDING"]  # n2 has had its time


BUSY = rule("Busy", "tasks_running_total >= 1", Scope.CLUSTER, block=True)


@pytest.mark.parametrize("harness", [(BUSY,)], indirect=True)
def test_rule_over_the_cluster_blocks_every_node(harness: Harness) -> None:
    for node in ("n1", "n2"):
        harness.ready(node)
    first, second = harness.submit(spec("1GiB")), harness.submit(spec("1GiB"))
    assert harness.states(*first, *second) == ["ASSIGNED", "PENDING"]
    harness.ended(*first)
    assert harness.states(*second) == ["ASSIGNED"]


@pytest.mark.parametrize("harness", [(BUSY,)], indirect=True)
def test_task_kept_off_by_a_rule_over_the_cluster_is_told_the_rule(harness: Harness) -> None:
    for node in ("n1", "n2"):
        harness.ready(node)
    harness.submit(spec("1GiB"))
    (waiting,) = harness.submit(spec("1GiB"))
    task, results = harness.task(waiting), harness.scheduler.displayed
    refusals = node_refusals(harness.cluster, results, task)
    assert {(r.node_id, r.code, r.reason) for r in refusals} == {
        (node, "BLOCKED_BY_RULE", "rule Busy holds on it") for node in ("n1", "n2")
    }


COUNTS = tuple(rule(name, f"{name} != -1", Scope.CLUSTER) for name in sorted(CLUSTER_NAMES))


@pytest.mark.parametrize("harness", [COUNTS], indirect=True)
def test_metrics_of_the_cluster_count_what_they_say(harness: Harness) -> None:
    def counted() -> dict[str, float]:
        harness.cycle()
        assert harness.scheduler.displayed is not None
        return {r.rule.name: float(r.value[0]) for r in harness.scheduler.displayed.rules}

    harness.ready("n1", total="4GiB")
    harness.ready("n2", total="4GiB")
    harness.submit(*[spec("3GiB") for _ in range(5)])
    found = counted()
    assert 0 < found.pop("pool_used_percent") < 100
    assert found == {
        "nodes_ready": 2, "nodes_down": 0, "tasks_pending": 3, "tasks_running_total": 2,
    }  # fmt: skip
    harness.advance("31s")
    assert (counted()["nodes_ready"], counted()["nodes_down"]) == (0, 2)


BIG = rule("Big", "task_mem_percent > 90", Scope.TASK, hold_s=5)
LONG = rule("Long", "task_runtime_seconds > 60 and task_mem_used < 100*MiB", Scope.TASK)


@pytest.mark.parametrize("harness", [(BIG, LONG)], indirect=True)
def test_alert_of_a_task_fires_and_ends_with_the_task(harness: Harness) -> None:
    harness.ready("n1")
    first, second = harness.submit(spec("1GiB"), spec("1GiB"))
    for task_id in (first, second):
        harness.started(task_id)
    harness.sample("n1", used="1.3GiB", tasks={first: "0.95GiB", second: "0.3GiB"})
    assert told(harness) == [f"Big {first} PENDING"]
    harness.now_ns += 5 * SECOND_NS
    harness.sample("n1", used="1.3GiB", tasks={first: "0.95GiB", second: "0.3GiB"})
    assert told(harness) == [f"Big {first} FIRING!"]
    (alert,) = harness.cluster.alerts.active()
    assert alert.labels == {"alertname": "Big", "node": "n1", "task": str(first)}
    assert (alert.node_id, alert.task_id, round(alert.value, 3)) == ("n1", first, 95.0)
    harness.ended(first)
    assert told(harness) == [f"Big {first} RESOLVED!"]
    assert harness.states(second) == ["RUNNING"]


@pytest.mark.parametrize("harness", [(BIG, LONG)], indirect=True)
def test_task_without_a_reading_has_no_memory_yet(harness: Harness) -> None:
    harness.ready("n1")
    (task_id,) = harness.submit(spec("1GiB"))
    harness.started(task_id)
    harness.now_ns += 61 * SECOND_NS
    harness.sample("n1")
    assert told(harness) == []
    harness.sample("n1", used="50MiB", tasks={task_id: "50MiB"})
    assert told(harness) == [f"Long {task_id} FIRING!"]


@pytest.mark.parametrize("harness", [(BIG,)], indirect=True)
def test_next_attempt_of_a_task_begins_its_alert_anew(harness: Harness) -> None:
    for node in ("n1", "n2"):
        harness.ready(node)
    (task_id,) = harness.submit(spec("1GiB", retries=1))
    harness.started(task_id)
    node = harness.task(task_id).node_id
    for _ in range(2):
        harness.sample(node, used="1GiB", tasks={task_id: "1GiB"})
        harness.now_ns += 5 * SECOND_NS
    assert told(harness) == [f"Big {task_id} FIRING!"]
    harness.ended(task_id, exit_code=1)
    assert told(harness) == [f"Big {task_id} RESOLVED!"]
    assert harness.states(task_id) == ["ASSIGNED"]
    harness.started(task_id)
    node = harness.task(task_id).node_id
    harness.sample(node, used="1GiB", tasks={task_id: "1GiB"})
    assert told(harness) == [f"Big {task_id} PENDING"]


@pytest.mark.parametrize("harness", [(BIG,)], indirect=True)
def test_alert_of_a_task_goes_on_after_a_restart(harness: Harness) -> None:
    harness.ready("n1")
    (task_id,) = harness.submit(spec("1GiB"))
    harness.started(task_id)
    harness.sample("n1", used="1GiB", tasks={task_id: "1GiB"})
    harness.now_ns += 5 * SECOND_NS
    harness.sample("n1", used="1GiB", tasks={task_id: "1GiB"})
    (before,) = harness.cluster.alerts.active()
    harness.restart()
    (after,) = harness.cluster.alerts.active()
    assert (after.key, after.fired_at_ns) == (before.key, before.fired_at_ns)
    assert after.labels == before.labels
    assert after.state.value == "NO_DATA"


def test_rows_of_tasks_are_used_again_and_never_grow_beyond_the_bound() -> None:
    with Harness(SMALL, rules=(BIG,)) as harness:
        harness.ready("n1", total="64GiB", cpus=64.0)
        for _ in range(5):
            tasks = harness.submit(*[spec("100MiB", cpus=0.1) for _ in range(20)])
            for task_id in tasks:
                harness.started(task_id)
            harness.sample("n1", used="4GiB", tasks=dict.fromkeys(tasks, "100MiB"))
            rows = harness.cluster.task_rows
            assert len(rows.by_subject()) == 20
            for task_id in tasks:
                harness.ended(task_id)
        assert len(harness.cluster.task_rows.subjects) == 20
        harness.cycle()
        assert harness.cluster.task_rows.by_subject() == {}
        assert harness.cluster.alerts.active() == []
        assert {task.state for task in harness.saved.tasks.values()} == {TaskState.SUCCEEDED}


def test_element_of_an_array_is_labelled_as_people_write_it() -> None:
    with Harness() as harness:
        (task_id,) = harness.submit(spec("1GiB"))
        element = replace(harness.task(task_id), node_id="n1", array_id=12, array_index=3)
    rows = TaskRows(1)
    rows.update([element])
    assert rows.subjects[0] is not None
    assert rows.subjects[0].labels == {"node": "n1", "task": "12_3"}


def test_more_rows_than_tasks_may_run_are_our_mistake() -> None:
    rows = TaskRows(1)
    with Harness() as harness:
        harness.ready("n1")
        ids = harness.submit(spec("1GiB"), spec("1GiB"))
        with pytest.raises(AssertionError, match="more attempts run"):
            rows.update([harness.task(task_id) for task_id in ids])


def test_rules_over_nodes_alone_keep_no_rows_of_tasks() -> None:
    with Harness(rules=(BUSY,)) as harness:
        harness.ready("n1")
        (task_id,) = harness.submit(spec("1GiB"))
        harness.started(task_id)
        assert harness.cluster.task_rows.subjects == []


@pytest.mark.parametrize("harness", [(BIG,)], indirect=True)
def test_alerts_of_two_tasks_on_one_node_are_two(harness: Harness) -> None:
    harness.ready("n1")
    tasks = harness.submit(spec("1GiB"), spec("1GiB"))
    for task_id in tasks:
        harness.started(task_id)
    for _ in range(2):
        harness.sample("n1", used="2GiB", tasks=dict.fromkeys(tasks, "1GiB"))
        harness.now_ns += 5 * SECOND_NS
    assert told(harness) == [f"Big {task_id} FIRING!" for task_id in tasks]
    harness.restart()
    listed = [alert.task_id for alert in harness.cluster.alerts.listing()]
    assert listed == list(tasks)
    harness.ended(tasks[0])
    assert [(a.task_id, a.state.value) for a in harness.cluster.alerts.listing()] == [
        (tasks[1], "NO_DATA"),
        (tasks[0], "RESOLVED"),
    ]


NODE_FULL = rule("NodeFull", "mem_used > 1", Scope.NODE)


@pytest.mark.parametrize("harness", [(NODE_FULL, BIG, SHORT)], indirect=True)
def test_end_of_a_task_ends_no_other_alert_of_the_same_row(harness: Harness) -> None:
    harness.ready("n1", total="4GiB")
    (task_id,) = harness.submit(spec("1GiB"))
    harness.started(task_id)
    harness.sample("n1", used="1GiB", tasks={task_id: "1GiB"})
    harness.now_ns += 10 * SECOND_NS
    harness.sample("n1", used="1GiB", tasks={task_id: "1GiB"})
    firing = [(a.name, a.task_id) for a in harness.cluster.alerts.active()]
    assert firing == [("NodeFull", 0), ("Big", task_id), ("Short", 0)]
    harness.ended(task_id)
    assert told(harness) == [f"Big {task_id} RESOLVED!"]


@pytest.mark.parametrize("harness", [(BUSY,)], indirect=True)
def test_rule_of_the_same_name_with_another_scope_ends_its_alert(harness: Harness) -> None:
    harness.ready("n1")
    harness.submit(spec("1GiB"))
    harness.cycle()
    assert told(harness) == ["Busy  FIRING!"]
    rules = RuleSet((rule("Busy", "tasks_running >= 1", Scope.NODE),))
    harness.cluster.reconfigure(rules, SMALL, harness.now_ns)
    harness.cycle()
    assert told(harness) == ["Busy  RESOLVED!", "Busy n1 FIRING!"]
