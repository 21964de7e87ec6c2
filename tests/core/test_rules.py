"""Rules: their results over slots, and where they block placement."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.core.expressions import FloatColumn, Window, WindowFunction, parse
from controller.core.limits import MINUTE_NS
from controller.core.metrics import METRIC_NAMES, WINDOWLESS_NAMES
from controller.core.rules import Rule, RuleSet, blocked, evaluate, holding

LOADS = np.array([1.0, 9.0, math.nan, 9.0])
MEMORY = np.array([50.0, 90.0, 90.0, 10.0])
AVERAGES = np.array([50.0, 90.0, 70.0, 90.0])


def rule(name: str, text: str, blocks: bool = False) -> Rule:
    expression = parse(text, METRIC_NAMES, WINDOWLESS_NAMES)
    return Rule(name, "test", expression, blocks_placement=blocks)


RULES = RuleSet(
    (
        rule("Loaded", "load1 > 5"),
        rule("Full", "mem_percent > 80", blocks=True),
        rule("LongFull", "avg(mem_percent, '5m') > 80 and load1 > 5", blocks=True),
    )
)


def column(key: str | Window) -> FloatColumn:
    if isinstance(key, Window):
        assert key == Window(WindowFunction.AVG, "mem_percent", 5 * MINUTE_NS)
        return AVERAGES
    return {"load1": LOADS, "mem_percent": MEMORY}[key]


def test_results_come_in_the_order_of_the_rules() -> None:
    results = evaluate(RULES, column, 4)
    assert [result.rule for result in results] == list(RULES.rules)
    assert [result.holds.tolist() for result in results] == [
        [False, True, False, True],
        [False, True, True, False],
        [False, True, False, True],
    ]
    assert results[0].known.tolist() == [True, True, False, True]
    assert results[2].known.tolist() == [True, True, True, True]


def test_each_column_is_asked_for_once() -> None:
    asked: list[str | Window] = []

    def counted(key: str | Window) -> FloatColumn:
        asked.append(key)
        return column(key)

    evaluate(RULES, counted, 4)
    assert len(asked) == len(set(asked)) == 3


def test_rule_set_knows_what_its_rules_ask_for() -> None:
    assert RULES.metrics == {"load1", "mem_percent"}
    assert RULES.windows == (Window(WindowFunction.AVG, "mem_percent", 5 * MINUTE_NS),)
    assert RULES.window_metrics == {"mem_percent"}
    assert len(RULES) == 3


def test_only_rules_that_block_placement_keep_tasks_off() -> None:
    assert blocked(evaluate(RULES, column, 4), 4).tolist() == [False, True, True, True]
    quiet = RuleSet(RULES.rules[:1])
    assert not blocked(evaluate(quiet, column, 4), 4).any()


def test_missing_data_blocks_nothing() -> None:
    rules = RuleSet((rule("Loaded", "load1 > 5 or not load1 > 5", blocks=True),))
    assert blocked(evaluate(rules, column, 4), 4).tolist() == [True, True, False, True]


def test_slot_without_a_node_is_unknown_whatever_its_columns_say() -> None:
    used = np.array([True, False, True, True])
    results = evaluate(RULES, column, 4, used)
    assert not any(result.holds[1] or result.known[1] for result in results)
    assert blocked(results, 4).tolist() == [False, False, True, True]


def test_rules_that_hold_on_a_node_come_with_their_numbers() -> None:
    results = evaluate(RULES, column, 4)
    assert holding(results, 1) == (
        (RULES.rules[0], 9.0),
        (RULES.rules[1], 90.0),
        (RULES.rules[2], 90.0),
    )
    assert holding(results, 0) == ()


def test_no_rules_have_no_results() -> None:
    assert evaluate(RuleSet(), column, 4) == ()
    assert blocked((), 4).tolist() == [False] * 4


def test_two_rules_of_one_name_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="unique"):
        RuleSet((rule("A", "load1 > 1"), rule("A", "load1 > 2")))
