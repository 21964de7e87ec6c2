"""Alerts: stories of one alert told step by step, and the columns behind many of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.alerts import AlertChange, Alerts
from controller.core.expressions import parse
from controller.core.limits import MINUTE_NS, SECOND_NS, Limits
from controller.core.model import Alert, AlertState
from controller.core.rules import Rule, RuleResult

START_NS = 1_700_000_000 * SECOND_NS
LIMITS = Limits(nodes_max=4)
LETTERS = {
    AlertState.INACTIVE: ".",
    AlertState.PENDING: "P",
    AlertState.FIRING: "F",
    AlertState.KEEP_FIRING: "K",
    AlertState.RESOLVED: "R",
    AlertState.NO_DATA: "N",
}


def make_rule(hold_s: int = 0, keep_s: int = 0, name: str = "Full") -> Rule:
    return Rule(
        name=name,
        group="test",
        expression=parse("mem_percent > 80", ["mem_percent"]),
        hold_ns=hold_s * SECOND_NS,
        keep_firing_ns=keep_s * SECOND_NS,
        labels={"severity": "warning"},
        annotations={"summary": "{{ $labels.node }} ({{$labels.severity}}) is {{ $value }} % full"},
    )


def seen(rule: Rule, sights: str, value: float = 90.0) -> RuleResult:
    """Make a result from one letter a slot: T holds, F does not, ? unknown."""
    holds = np.array([letter == "T" for letter in sights])
    known = np.array([letter != "?" for letter in sights])
    return RuleResult(rule, holds, known, np.where(known, value, math.nan))


class Story:
    """One rule on a few nodes, moved by hand a step of 5 s at a time."""

    def __init__(self, rule: Rule, nodes: int = 1, limits: Limits = LIMITS) -> None:
        self.rule = rule
        self.alerts = Alerts((rule,), limits)
        self.node_ids: list[str | None] = [f"node-{slot}" for slot in range(nodes)]
        self.now_ns = START_NS

    def step(self, sights: str, value: float = 90.0, seconds: int = 5) -> tuple[AlertChange, ...]:
        results = (seen(self.rule, sights, value),)
        changes = self.alerts.advance(results, self.node_ids, self.now_ns)
        self.alerts.check()
        self.now_ns += seconds * SECOND_NS
        return changes


@pytest.mark.parametrize(
    ("hold_s", "keep_s", "sights", "states", "told"),
    [
        # Without a hold time it fires at once, and once only.
        (0, 0, "FTTTF", ".FFFR", "FR"),
        # It fires when its hold time is over, not before.
        (10, 0, "TTTT", "PPFF", "F"),
        (11, 0, "TTTT", "PPPF", "F"),
        # A gap starts the hold time anew.
        (10, 0, "TTFTTT", "PP.PPF", "F"),
        # What never fired ends in silence.
        (10, 0, "TFFF", "P...", ""),
        # It may fire again after it has ended.
        (0, 0, "TFTFT", "FRFRF", "FRFRF"),
        # Missing data is no recovery; when data is back and true it fires on, untold.
        (0, 0, "T??T", "FNNF", "F"),
        (0, 0, "T??F", "FNNR", "FR"),
        (0, 0, "T" + "?" * 500, "F" + "N" * 500, "F"),
        # Nor does it start or end a pending one, whose hold time runs on.
        (10, 0, "T?T", "PNF", "F"),
        (20, 0, "T?TTT", "PNPPF", "F"),
        (10, 0, "T?F", "PN.", ""),
        (10, 0, "T????T", "PNNNNF", "F"),
        # Missing data starts nothing.
        (0, 0, "???F?", ".....", ""),
        # It keeps firing for a while after the condition has ended.
        (0, 10, "TFFFF", "FKKR.", "FR"),
        (0, 10, "TFTFFF", "FKFKKR", "FR"),
        (10, 10, "TTTFFF", "PPFKKR", "FR"),
        (0, 10, "TF?F", "FKNR", "FR"),
        (0, 10, "TF?T", "FKNF", "F"),
    ],
)
def test_alert_lives_by_its_table(
    hold_s: int, keep_s: int, sights: str, states: str, told: str
) -> None:
    story, seen_states, notices, state = Story(make_rule(hold_s, keep_s)), "", "", "."
    for sight in sights:
        changes = story.step(sight)
        assert len(changes) <= 1
        for change in changes:
            state = LETTERS[change.alert.state]
            notices += state if change.notify else ""
        seen_states += state
        # Of an ended alert nothing more is said.
        state = "." if state == "R" else state
    assert (seen_states, notices) == (states, told)


def test_change_carries_the_whole_alert() -> None:
    story = Story(make_rule(hold_s=5))
    (pending,) = story.step("T", value=81.23456789)
    assert not pending.notify
    assert pending.alert == Alert(
        name="Full",
        node_id="node-0",
        state=AlertState.PENDING,
        labels={"severity": "warning", "alertname": "Full", "node": "node-0"},
        annotations={"summary": "node-0 (warning) is 81.2346 % full"},
        value=81.23456789,
        active_at_ns=START_NS,
    )
    (firing,) = story.step("T", value=95.0)
    assert firing.notify
    assert firing.alert == replace(
        pending.alert,
        state=AlertState.FIRING,
        annotations={"summary": "node-0 (warning) is 95 % full"},
        value=95.0,
        fired_at_ns=START_NS + 5 * SECOND_NS,
    )
    (resolved,) = story.step("F", value=20.0)
    assert resolved.notify
    # Its value is the one of when it was last true.
    assert resolved.alert == replace(
        firing.alert, state=AlertState.RESOLVED, resolved_at_ns=START_NS + 10 * SECOND_NS
    )


def test_instants_of_an_earlier_life_are_not_carried_into_the_next() -> None:
    story = Story(make_rule(hold_s=5))
    for sight in "TTF":
        story.step(sight)
    (pending,) = story.step("T")
    assert pending.alert.state is AlertState.PENDING
    assert pending.alert.active_at_ns == START_NS + 15 * SECOND_NS
    assert (pending.alert.fired_at_ns, pending.alert.resolved_at_ns) == (0, 0)


def test_active_alert_shows_its_newest_true_value() -> None:
    story = Story(make_rule())
    story.step("T", value=90.0)
    assert story.step("T", value=93.0) == ()
    assert [alert.value for alert in story.alerts.active()] == [93.0]
    story.step("?")
    assert [alert.value for alert in story.alerts.active()] == [93.0]


def test_steady_alerts_change_nothing() -> None:
    story = Story(make_rule(hold_s=5), nodes=4)
    story.step("TTF?")
    assert [change.alert.node_id for change in story.step("TTF?")] == ["node-0", "node-1"]
    for _ in range(10):
        assert story.step("TTF?") == ()


def test_changes_come_by_rule_and_slot() -> None:
    rules = (make_rule(name="B"), make_rule(name="A"))
    alerts = Alerts(rules, LIMITS)
    results = tuple(seen(rule, "TFT") for rule in rules)
    changes = alerts.advance(results, ["z", "y", "x"], START_NS)
    names = [(change.alert.name, change.alert.node_id) for change in changes]
    assert names == [("B", "z"), ("B", "x"), ("A", "z"), ("A", "x")]
    alerts.check()


def test_nodes_live_apart() -> None:
    story = Story(make_rule(hold_s=10), nodes=3)
    story.step("TFF")
    story.step("TTF")
    assert [c.alert.node_id for c in story.step("TT?") if c.notify] == ["node-0"]
    assert [c.alert.node_id for c in story.step("F?T")] == ["node-0", "node-1", "node-2"]


def test_listing_shows_firing_first_and_the_newest_end_before_older_ones() -> None:
    story = Story(make_rule(hold_s=10), nodes=4)
    for sights in ("TTTF", "TTTF", "TTTF", "FTTT", "FF?T", "FF?T", "TF?T"):
        story.step(sights)
    shown = [(LETTERS[alert.state], alert.node_id) for alert in story.alerts.listing()]
    assert shown == [("F", "node-3"), ("N", "node-2"), ("P", "node-0"), ("R", "node-1")]
    assert story.alerts.counts() == {
        AlertState.FIRING: 1,
        AlertState.KEEP_FIRING: 0,
        AlertState.NO_DATA: 1,
        AlertState.PENDING: 1,
        AlertState.RESOLVED: 1,
    }


def test_ended_alert_is_kept_for_a_while_and_then_forgotten() -> None:
    story = Story(make_rule())
    story.step("T")
    (resolved,) = story.step("F")
    story.now_ns = resolved.alert.resolved_at_ns + LIMITS.alerts_resolved_kept_ns - 1
    assert story.step("F") == ()
    assert story.alerts.listing() == [resolved.alert]
    (forgotten,) = story.step("F")
    assert forgotten == AlertChange(replace(resolved.alert, state=AlertState.INACTIVE), False)
    assert story.alerts.listing() == []


def test_alert_that_is_active_again_takes_the_place_of_its_ended_one() -> None:
    story = Story(make_rule(hold_s=10))
    for sight in "TTTFT":
        story.step(sight)
    assert [LETTERS[alert.state] for alert in story.alerts.listing()] == ["P"]
    # Nothing may tell the store to forget the pair while it is active.
    assert story.step("T", seconds=3_600) == ()
    (fires,) = story.step("T")
    assert fires.alert.state is AlertState.FIRING


def test_beyond_the_bound_the_oldest_ended_alert_is_forgotten() -> None:
    story = Story(make_rule(), nodes=3, limits=Limits(nodes_max=3, alerts_resolved_max=2))
    story.step("TTT")
    story.step("FTT")
    changes = story.step("FFF")
    assert [(LETTERS[c.alert.state], c.alert.node_id, c.notify) for c in changes] == [
        ("R", "node-1", True),
        ("R", "node-2", True),
        (".", "node-0", False),
    ]
    assert [alert.node_id for alert in story.alerts.listing()] == ["node-2", "node-1"]


def test_bound_of_ended_alerts_holds_after_a_restart_and_after_a_node_is_forgotten() -> None:
    limits = Limits(nodes_max=3, alerts_resolved_max=1)
    roomy = Story(make_rule(), nodes=3)
    roomy.step("TTT")
    stored = [change.alert for change in roomy.step("FFT")]
    story = Story(make_rule(), nodes=3, limits=limits)
    story.alerts.restore(stored, {}, story.now_ns)
    assert [alert.node_id for alert in story.alerts.listing()] == ["node-1"]
    changes = story.step("FFT")
    assert [(LETTERS[c.alert.state], c.alert.node_id) for c in changes] == [
        (".", "node-0"),
        ("F", "node-2"),
    ]
    changes = story.alerts.forget(2, story.now_ns)
    assert [(LETTERS[c.alert.state], c.alert.node_id) for c in changes] == [
        ("R", "node-2"),
        (".", "node-1"),
    ]
    story.alerts.check()


def test_alerts_of_a_forgotten_node_end_and_its_slot_starts_anew() -> None:
    story = Story(make_rule(hold_s=10), nodes=2)
    for sights in ("TF", "TF", "TT", "?T"):
        story.step(sights)
    (ended,) = story.alerts.forget(0, story.now_ns)
    assert (ended.alert.state, ended.alert.node_id, ended.notify) == (
        AlertState.RESOLVED,
        "node-0",
        True,
    )
    (silent,) = story.alerts.forget(1, story.now_ns)
    assert (silent.alert.state, silent.notify) == (AlertState.INACTIVE, False)
    assert story.alerts.forget(1, story.now_ns) == ()
    story.node_ids[0] = "other"
    (pending,) = story.step("TF")
    assert (pending.alert.state, pending.alert.node_id) == (AlertState.PENDING, "other")
    assert pending.alert.active_at_ns == story.now_ns - 5 * SECOND_NS


def test_slot_used_again_without_forgetting_is_our_mistake() -> None:
    story = Story(make_rule(), nodes=2)
    story.step("TF")
    story.step("FF")
    story.node_ids[0] = "other"
    with pytest.raises(AssertionError, match="not forgotten"):
        story.step("TF")


def test_rule_that_holds_on_a_slot_without_a_node_is_our_mistake() -> None:
    story = Story(make_rule(), nodes=2)
    story.node_ids[1] = None
    assert len(story.step("TF")) == 1
    with pytest.raises(AssertionError, match="row 1 of nothing"):
        story.step("TT")


def test_slots_may_grow_while_alerts_are_active() -> None:
    story = Story(make_rule(hold_s=5))
    story.step("T")
    story.node_ids.append("node-1")
    changes = story.step("TT")
    assert [LETTERS[change.alert.state] for change in changes] == ["F", "P"]


def restored(story: Story, alerts: list[Alert], **slots: int) -> Alerts:
    found = Alerts((story.rule,), LIMITS)
    found.restore(alerts, {name.replace("_", "-"): slot for name, slot in slots.items()}, 1)
    found.check()
    return found


def test_pending_alert_survives_a_restart_with_its_hold_time() -> None:
    story = Story(make_rule(hold_s=10))
    (pending,) = story.step("T")
    story.alerts = restored(story, [pending.alert], node_0=3)
    story.node_ids = [None, None, None, "node-0"]
    assert story.alerts.active() == [pending.alert]
    assert story.step("???T") == ()
    (firing,) = story.step("???T")
    assert (firing.alert.state, firing.notify) == (AlertState.FIRING, True)
    assert firing.alert.active_at_ns == START_NS


def test_firing_alert_survives_a_restart_untold() -> None:
    story = Story(make_rule())
    (firing,) = story.step("T")
    story.alerts = restored(story, [firing.alert], node_0=0)
    assert story.step("T") == ()
    (missing,) = story.step("?")
    assert missing.alert == replace(firing.alert, state=AlertState.NO_DATA)
    story.alerts = restored(story, [missing.alert], node_0=0)
    (resolved,) = story.step("F")
    assert resolved.notify
    assert resolved.alert.fired_at_ns == firing.alert.fired_at_ns


def test_pending_alert_without_data_survives_a_restart() -> None:
    story = Story(make_rule(hold_s=10))
    story.step("T")
    (missing,) = story.step("?")
    assert missing.alert.state is AlertState.NO_DATA
    story.alerts = restored(story, [missing.alert], node_0=0)
    (firing,) = story.step("T")
    assert (firing.alert.state, firing.notify) == (AlertState.FIRING, True)


def test_time_of_keeping_to_fire_is_counted_anew_after_a_restart() -> None:
    story = Story(make_rule(keep_s=10))
    story.step("T")
    (kept,) = story.step("F")
    assert kept.alert.state is AlertState.KEEP_FIRING
    story.alerts = Alerts((story.rule,), LIMITS)
    story.alerts.restore([kept.alert], {"node-0": 0}, story.now_ns)
    assert story.step("F") == story.step("F") == ()
    (resolved,) = story.step("F")
    assert resolved.alert.state is AlertState.RESOLVED


def test_ended_alerts_survive_a_restart_in_their_order() -> None:
    story = Story(make_rule(), nodes=2)
    story.step("TT")
    (first,) = story.step("TF")
    (second,) = story.step("FF")
    story.alerts = restored(story, [second.alert, first.alert], node_0=0, node_1=1)
    assert story.alerts.listing() == [second.alert, first.alert]
    story.now_ns = first.alert.resolved_at_ns + 15 * MINUTE_NS
    (forgotten,) = story.step("FF")
    assert forgotten.alert.node_id == "node-1"


@pytest.mark.parametrize("gone", ["rule", "node"])
def test_restored_alerts_of_what_is_no_more_end_at_the_next_step(gone: str) -> None:
    story = Story(make_rule(hold_s=5), nodes=2)
    story.step("TF")
    changes = story.step("TT")
    stored = [change.alert for change in changes]
    rule = make_rule(name="Other" if gone == "rule" else "Full")
    alerts = Alerts((rule,), LIMITS)
    slots = {"node-0": 0, "node-1": 1} if gone == "rule" else {}
    alerts.restore(stored, slots, story.now_ns)
    ended = alerts.advance((seen(rule, "FF"),), ["a", "b"], story.now_ns)
    assert [(LETTERS[c.alert.state], c.alert.node_id, c.notify) for c in ended] == [
        ("R", "node-0", True),
        (".", "node-1", False),
    ]
    assert ended[0].alert.resolved_at_ns == story.now_ns
    assert alerts.advance((seen(rule, "FF"),), ["a", "b"], story.now_ns) == ()
    assert [alert.node_id for alert in alerts.listing()] == ["node-0"]


def test_clock_that_steps_back_only_delays() -> None:
    story = Story(make_rule(hold_s=10))
    story.step("T")
    story.now_ns = START_NS - 60 * SECOND_NS
    assert story.step("T") == ()
    story.now_ns = START_NS + 10 * SECOND_NS
    (firing,) = story.step("T")
    assert firing.notify


class OneAlert:
    """One alert by plain conditions: a second opinion on the columns and their table."""

    def __init__(self, hold_s: int, keep_s: int) -> None:
        self.hold_s, self.keep_s = hold_s, keep_s
        self.active_s: int | None = None
        self.ended_s: int | None = None
        self.fired = self.missing = False

    def step(self, sight: str, now_s: int) -> str:
        """Return the letter of its state now; R in the step in which it ends."""
        if sight == "?":
            self.missing = self.active_s is not None
        elif sight == "T":
            self.missing, self.ended_s = False, None
            self.active_s = now_s if self.active_s is None else self.active_s
            self.fired = self.fired or now_s - self.active_s >= self.hold_s
        elif self.active_s is not None:
            # Keeping to fire is for alerts that were seen to be true; missing data ends it.
            if self.ended_s is None and not self.missing:
                self.ended_s = now_s
            over = self.missing or self.ended_s is None or now_s - self.ended_s >= self.keep_s
            if over or not self.fired:
                letter = "R" if self.fired else "."
                self.active_s = self.ended_s = None
                self.fired = self.missing = False
                return letter
        if self.active_s is None:
            return "."
        if self.missing:
            return "N"
        if self.ended_s is not None:
            return "K"
        return "F" if self.fired else "P"


@settings(max_examples=200)
@given(
    st.sampled_from([0, 3, 10]),
    st.sampled_from([0, 4, 12]),
    st.lists(
        st.tuples(st.text("TF?", min_size=3, max_size=3), st.integers(1, 6)),
        min_size=1,
        max_size=25,
    ),
)
def test_columns_live_as_each_alert_would_alone(
    hold_s: int, keep_s: int, steps: list[tuple[str, int]]
) -> None:
    story = Story(make_rule(hold_s, keep_s), nodes=3)
    alone = [OneAlert(hold_s, keep_s) for _ in range(3)]
    states = ["."] * 3
    for sights, seconds in steps:
        now_s = story.now_ns // SECOND_NS
        expected = [one.step(sight, now_s) for one, sight in zip(alone, sights, strict=True)]
        states = ["." if state == "R" else state for state in states]
        for change in story.step(sights, seconds=seconds):
            slot = story.node_ids.index(change.alert.node_id)
            assert LETTERS[change.alert.state] != states[slot], "a change changes something"
            states[slot] = LETTERS[change.alert.state]
        assert states == expected
