"""Rules and their results: which conditions hold on which nodes, with which numbers.

Everything is a column over the rows of the rule's scope: the nodes' slots, the running tasks, or
one row for the cluster. A rule decides nothing by itself: alerts read its results, and a rule that
blocks placement says where no new task may go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from controller.core.expressions import BoolColumn, Column, Expression, FloatColumn, Window
from controller.core.metrics import Scope


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition and what to tell people while it holds. Times in nanoseconds."""

    name: str  # of its alerts; unique among all rules, for an alert is known by it
    group: str
    expression: Expression
    hold_ns: int = 0  # how long the condition holds before the alert fires
    keep_firing_ns: int = 0  # how long the alert still fires after the condition has ended
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    blocks_placement: bool = False  # no new task goes to a node while the condition holds there
    scope: Scope = Scope.NODE


class RuleSet:
    """The rules in force, in the order of their files, and all that they ask for."""

    __slots__ = ("custom_metrics", "metrics", "rules", "scopes", "window_metrics", "windows")

    def __init__(self, rules: tuple[Rule, ...] = (), custom_metrics: tuple[str, ...] = ()) -> None:
        assert len({rule.name for rule in rules}) == len(rules), "alert names are unique"
        self.rules = rules
        self.custom_metrics = custom_metrics  # declared, in the order of their columns
        self.scopes = frozenset(rule.scope for rule in rules)
        windows = [window for rule in rules for window in rule.expression.windows]
        self.windows: tuple[Window, ...] = tuple(dict.fromkeys(windows))
        # The metrics named plainly, and those of which a history must be kept.
        self.metrics = frozenset(name for rule in rules for name in rule.expression.metrics)
        self.window_metrics = frozenset(window.metric for window in windows)

    def __len__(self) -> int:
        return len(self.rules)


@dataclass(frozen=True, slots=True, eq=False)
class RuleResult:
    """What a rule says about each row of its scope; the columns are valid for one cycle.

    Where it does not hold and is not known, data is missing. `value` is finite where it holds.
    """

    rule: Rule
    holds: BoolColumn
    known: BoolColumn
    value: FloatColumn

    def blocks(self, slot: int) -> bool:
        """Say whether it keeps new tasks off a slot; a rule over the cluster does so everywhere."""
        if not self.rule.blocks_placement:
            return False
        return bool(self.holds[0 if self.rule.scope is Scope.CLUSTER else slot])


def evaluate(
    rules: RuleSet,
    column: Column,
    slots_count: int,
    used: BoolColumn | None = None,
    cluster: Column | None = None,
    tasks: Column | None = None,
) -> tuple[RuleResult, ...]:
    """Return each rule's result, in the order of the rules, over slots 0 to slots_count - 1.

    `column` is asked once for each metric and window. `used` marks the slots that have a node;
    without it a slot that has none must be NaN in each column. `cluster` gives the cluster's own
    metrics as one row and those of nodes by slot, `tasks` those of running tasks by row; both are
    needed only where a rule has that scope. Cost: a few numpy calls a rule.
    """
    asked: dict[str | Window, FloatColumn] = {}

    def once(key: str | Window) -> FloatColumn:
        values = asked.get(key)
        if values is None:
            values = asked[key] = column(key)
            assert values.shape == (slots_count,), key
        return values

    columns: dict[Scope, Column | None] = {
        Scope.NODE: once,
        Scope.CLUSTER: cluster,
        Scope.TASK: tasks,
    }
    results = []
    for rule in rules.rules:
        rows = columns[rule.scope]
        assert rows is not None, f"{rule.name} has a scope without columns"
        answer = rule.expression.evaluate(rows)
        holds, known = answer.holds, answer.known
        if used is not None and rule.scope is Scope.NODE:
            holds, known = holds & used, known & used
        results.append(RuleResult(rule, holds, known, answer.value))
    return tuple(results)


def blocked(results: tuple[RuleResult, ...], slots_count: int) -> BoolColumn:
    """Return the slots on which a rule that blocks placement holds; one of the cluster, on all."""
    mask = np.zeros(slots_count, np.bool_)
    for result in results:
        if result.rule.blocks_placement:
            assert result.rule.scope is not Scope.TASK
            mask |= result.holds
    return mask


def holding(results: tuple[RuleResult, ...], slot: int) -> tuple[tuple[Rule, float], ...]:
    """Return the nodes' rules that hold on one slot, each with the number that it compared."""
    return tuple(
        (result.rule, float(result.value[slot]))
        for result in results
        if result.rule.scope is Scope.NODE and result.holds[slot]
    )
