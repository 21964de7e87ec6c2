"""Rules and their results: which conditions hold on which nodes, with which numbers.

Everything is a column over the nodes' slots. A rule decides nothing by itself: alerts read its
results, and a rule that blocks placement says where no new task may go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from controller.core.expressions import BoolColumn, Column, Expression, FloatColumn, Window


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition and what to tell people while it holds. Times in nanoseconds."""

    name: str  # of its alerts; unique among all rules, for an alert is known by name and node
    group: str
    expression: Expression
    hold_ns: int = 0  # how long the condition holds before the alert fires
    keep_firing_ns: int = 0  # how long the alert still fires after the condition has ended
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    blocks_placement: bool = False  # no new task goes to a node while the condition holds there


class RuleSet:
    """The rules in force, in the order of their files, and all that they ask for."""

    __slots__ = ("metrics", "rules", "window_metrics", "windows")

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        assert len({rule.name for rule in rules}) == len(rules), "alert names are unique"
        self.rules = rules
        windows = [window for rule in rules for window in rule.expression.windows]
        self.windows: tuple[Window, ...] = tuple(dict.fromkeys(windows))
        # The metrics named plainly, and those of which a history must be kept.
        self.metrics = frozenset(name for rule in rules for name in rule.expression.metrics)
        self.window_metrics = frozenset(window.metric for window in windows)

    def __len__(self) -> int:
        return len(self.rules)


@dataclass(frozen=True, slots=True, eq=False)
class RuleResult:
    """What a rule says about each slot; the columns are valid for one cycle.

    Where it does not hold and is not known, data is missing. `value` is finite where it holds.
    """

    rule: Rule
    holds: BoolColumn
    known: BoolColumn
    value: FloatColumn


def evaluate(
    rules: RuleSet, column: Column, slots_count: int, used: BoolColumn | None = None
) -> tuple[RuleResult, ...]:
    """Return each rule's result, in the order of the rules, over slots 0 to slots_count - 1.

    `column` is asked once for each metric and window. `used` marks the slots that have a node;
    without it a slot that has none must be NaN in each column. Cost: a few numpy calls a rule.
    """
    asked: dict[str | Window, FloatColumn] = {}

    def once(key: str | Window) -> FloatColumn:
        values = asked.get(key)
        if values is None:
            values = asked[key] = column(key)
            assert values.shape == (slots_count,), key
        return values

    results = []
    for rule in rules.rules:
        answer = rule.expression.evaluate(once)
        holds, known = answer.holds, answer.known
        if used is not None:
            holds, known = holds & used, known & used
        results.append(RuleResult(rule, holds, known, answer.value))
    return tuple(results)


def blocked(results: tuple[RuleResult, ...], slots_count: int) -> BoolColumn:
    """Return the slots on which a rule that blocks placement holds."""
    mask = np.zeros(slots_count, np.bool_)
    for result in results:
        if result.rule.blocks_placement:
            mask |= result.holds
    return mask


def holding(results: tuple[RuleResult, ...], slot: int) -> tuple[tuple[Rule, float], ...]:
    """Return the rules that hold on one slot, each with the number that it compared."""
    return tuple(
        (result.rule, float(result.value[slot])) for result in results if result.holds[slot]
    )
