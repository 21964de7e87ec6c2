"""Other rules and settings while the core runs: what goes on, what ends, what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from allocator.pool import Pool
from controller.core.alerts import AlertChange, Alerts
from controller.core.cluster import Cluster
from controller.core.commands import SendSampling
from controller.core.errors import InvalidRequest
from controller.core.events import NodeJoined, NodeLeft, Reconfigured
from controller.core.expressions import parse
from controller.core.limits import GIB, MIB, SECOND_NS, Limits
from controller.core.metrics import METRIC_NAMES
from controller.core.model import AlertState
from controller.core.rules import Rule, RuleResult, RuleSet
from controller.core.scheduler import Scheduler

START_NS = 1_700_000_000 * SECOND_NS
LIMITS = Limits(nodes_max=4, tasks_running_max=4)


def make_rule(name: str, text: str = "mem_percent > 80", **fields: object) -> Rule:
    return Rule(name, "test", parse(text, METRIC_NAMES), **fields)  # type: ignore[arg-type]


def seen(rule: Rule, holds: bool = True) -> RuleResult:
    known = np.array([True])
    return RuleResult(rule, np.array([holds]), known, np.where(known, 90.0, math.nan))


def advance(alerts: Alerts, at_s: int, *results: RuleResult) -> list[tuple[str, AlertState, bool]]:
    changes: tuple[AlertChange, ...] = alerts.advance(results, ["n1"], START_NS + at_s * SECOND_NS)
    alerts.check()
    return [(change.alert.name, change.alert.state, change.notify) for change in changes]


def test_alert_of_a_rule_that_stays_goes_on_with_its_instants() -> None:
    first = make_rule("Full", hold_ns=10 * SECOND_NS)
    alerts = Alerts((first,), LIMITS)
    assert advance(alerts, 0, seen(first)) == [("Full", AlertState.PENDING, False)]
    # Another rule comes before it, and its own text and times change.
    other, second = make_rule("Other"), make_rule("Full", "mem_percent > 70", hold_ns=5 * SECOND_NS)
    alerts.replace_rules((other, second), START_NS + SECOND_NS)
    assert advance(alerts, 2, seen(other, False), seen(second)) == []
    assert advance(alerts, 5, seen(other, False), seen(second)) == [
        ("Full", AlertState.FIRING, True)
    ]
    assert alerts.active()[0].active_at_ns == START_NS


def test_alert_that_keeps_firing_counts_on() -> None:
    rule = make_rule("Full", keep_firing_ns=10 * SECOND_NS)
    alerts = Alerts((rule,), LIMITS)
    advance(alerts, 0, seen(rule))
    advance(alerts, 1, seen(rule, False))
    same = make_rule("Full", keep_firing_ns=10 * SECOND_NS)
    alerts.replace_rules((same,), START_NS + 9 * SECOND_NS)
    assert advance(alerts, 11, seen(same, False)) == [("Full", AlertState.RESOLVED, True)]


@pytest.mark.parametrize(
    ("hold_s", "state", "told"), [(0, AlertState.RESOLVED, True), (60, AlertState.INACTIVE, False)]
)
def test_alerts_of_a_rule_that_is_gone_end(hold_s: int, state: AlertState, told: bool) -> None:
    rule, stays = make_rule("Full", hold_ns=hold_s * SECOND_NS), make_rule("Stays")
    alerts = Alerts((rule, stays), LIMITS)
    advance(alerts, 0, seen(rule), seen(stays, False))
    alerts.replace_rules((stays,), START_NS + SECOND_NS)
    assert alerts.active() == []
    assert advance(alerts, 1, seen(stays, False)) == [("Full", state, told)]
    assert advance(alerts, 2, seen(stays, False)) == []


def test_rule_with_other_labels_is_another_rule() -> None:
    rule = make_rule("Full", labels={"severity": "warning"})
    alerts = Alerts((rule,), LIMITS)
    advance(alerts, 0, seen(rule))
    page = make_rule("Full", labels={"severity": "page"})
    alerts.replace_rules((page,), START_NS + SECOND_NS)
    changes = alerts.advance([seen(page)], ["n1"], START_NS + 2 * SECOND_NS)
    assert [(c.alert.state, c.alert.labels["severity"]) for c in changes] == [
        (AlertState.RESOLVED, "warning"),
        (AlertState.FIRING, "page"),
    ]
    assert [alert.labels["severity"] for alert in alerts.listing()] == ["page"]


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    with Pool(64 * MIB) as pool:
        cluster = Cluster(LIMITS, RuleSet((make_rule("Full", "avg(mem_used, '5m') > 1"),)), pool)
        yield Scheduler(cluster)
        cluster.check()
        cluster.close()


def joined(node_id: str, stream: int) -> NodeJoined:
    return NodeJoined(
        at_ns=START_NS,
        node_id=node_id,
        instance_id=f"i-{node_id}",
        machine_id=f"m-{node_id}",
        boot_id="b",
        agent_version="0",
        memory_total_bytes=8 * GIB,
        memory_declared_bytes=None,
        cpus=2.0,
        enforcement="test",
        attempts=(),
        stream=stream,
    )


def test_rules_that_need_no_more_history_are_taken(scheduler: Scheduler) -> None:
    rules = RuleSet((make_rule("Fast", "max(mem_used, '1m') > 1"), make_rule("Plain")))
    limits = replace(LIMITS, history_tasks_max=5)
    scheduler.cycle_wanted = False
    assert scheduler.handle(Reconfigured(START_NS, rules, limits)) == ()
    assert scheduler.cluster.rules is rules
    assert scheduler.cluster.limits.history_tasks_max == 5
    assert scheduler.cycle_wanted
    scheduler.run_cycle(START_NS)
    assert scheduler.displayed is not None
    assert [result.rule.name for result in scheduler.displayed.rules] == ["Fast", "Plain"]


def test_window_over_a_metric_without_history_is_refused_and_nothing_changes(
    scheduler: Scheduler,
) -> None:
    cluster = scheduler.cluster
    before = cluster.rules
    rules = RuleSet((make_rule("Disk", "max(disk_percent, '1m') > 1"),))
    with pytest.raises(InvalidRequest, match="no history of disk_percent is kept"):
        scheduler.handle(Reconfigured(START_NS, rules, replace(LIMITS, history_tasks_max=5)))
    assert (cluster.rules, cluster.limits) == (before, LIMITS)
    scheduler.run_cycle(START_NS)


def test_connected_agents_are_told_another_sampling_interval(scheduler: Scheduler) -> None:
    for number, node_id in enumerate(("n2", "n1", "gone"), start=1):
        scheduler.handle(joined(node_id, number))
    scheduler.handle(NodeLeft(START_NS, "gone", 3, "ended"))
    rules = scheduler.cluster.rules
    slower = replace(LIMITS, sample_interval_ns=5 * SECOND_NS)
    assert scheduler.handle(Reconfigured(START_NS, rules, slower)) == (
        SendSampling("n1"),
        SendSampling("n2"),
    )
    assert scheduler.handle(Reconfigured(START_NS, rules, slower)) == ()
