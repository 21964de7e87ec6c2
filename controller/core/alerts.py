"""The life of alerts: each rule on each node (or task, or the cluster), as a table of states.

What the data says (true, false, missing) and the time that has passed move an alert; missing data
is never a recovery. The states are columns by row of the rule's scope (a slot, a running task's
row, or the cluster's only one): just the rows that change cost an object.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from controller.core.limits import DEFAULT_LIMITS, Limits
from controller.core.metrics import Scope
from controller.core.model import Alert, AlertKey, AlertState
from controller.core.rules import Rule, RuleResult
from controller.core.templates import fill


class _Life(IntEnum):
    """The states of a row. RESOLVED is never kept in one: the row is then INACTIVE again."""

    INACTIVE = 0
    PENDING = 1
    FIRING = 2
    KEEP_FIRING = 3
    PENDING_NO_DATA = 4
    FIRING_NO_DATA = 5
    RESOLVED = 6


class _Sight(IntEnum):
    """What the rule says about a row: known + holds."""

    MISSING = 0
    FALSE = 1
    TRUE = 2


# What each sight makes of each state; where no entry is, the state stays. From PENDING to FIRING
# and from KEEP_FIRING to RESOLVED it is time that leads, see `_after_time`.
_NEXT = {
    (_Life.INACTIVE, _Sight.TRUE): _Life.PENDING,
    (_Life.PENDING, _Sight.FALSE): _Life.INACTIVE,
    (_Life.PENDING, _Sight.MISSING): _Life.PENDING_NO_DATA,
    (_Life.PENDING_NO_DATA, _Sight.TRUE): _Life.PENDING,
    (_Life.PENDING_NO_DATA, _Sight.FALSE): _Life.INACTIVE,
    (_Life.FIRING, _Sight.FALSE): _Life.KEEP_FIRING,
    (_Life.FIRING, _Sight.MISSING): _Life.FIRING_NO_DATA,
    (_Life.FIRING_NO_DATA, _Sight.TRUE): _Life.FIRING,
    (_Life.FIRING_NO_DATA, _Sight.FALSE): _Life.RESOLVED,
    (_Life.KEEP_FIRING, _Sight.TRUE): _Life.FIRING,
    (_Life.KEEP_FIRING, _Sight.MISSING): _Life.FIRING_NO_DATA,
}
# For each state, one bit for each sight that moves it: the whole column is tested with one `and`.
_MOVED_BY = np.array(
    [
        sum(1 << sight for sight in _Sight if (life, sight) in _NEXT)
        for life in _Life
        if life is not _Life.RESOLVED
    ],
    np.uint8,
)
_STATES = {
    _Life.INACTIVE: AlertState.INACTIVE,
    _Life.PENDING: AlertState.PENDING,
    _Life.FIRING: AlertState.FIRING,
    _Life.KEEP_FIRING: AlertState.KEEP_FIRING,
    _Life.PENDING_NO_DATA: AlertState.NO_DATA,
    _Life.FIRING_NO_DATA: AlertState.NO_DATA,
    _Life.RESOLVED: AlertState.RESOLVED,
}
_FIRED = frozenset({_Life.FIRING, _Life.KEEP_FIRING, _Life.FIRING_NO_DATA})
# Firing first, then what may still fire.
_ORDER = (AlertState.FIRING, AlertState.KEEP_FIRING, AlertState.NO_DATA, AlertState.PENDING)
_NEVER_NS = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Subject:
    """What a row stands for: a node, a task on its node, or (with neither) the whole cluster."""

    node_id: str = ""
    task_id: int = 0
    task_label: str = field(default="", compare=False)  # the task's id as people write it

    @property
    def labels(self) -> dict[str, str]:
        """The labels that its alerts carry."""
        labels = {"node": self.node_id} if self.node_id else {}
        return {**labels, "task": self.task_label} if self.task_id else labels


@dataclass(frozen=True, slots=True)
class AlertChange:
    """An alert has a new state; `notify` says that people are to be told (it fires, it ended).

    An alert that is INACTIVE is over and to be forgotten.
    """

    alert: Alert
    notify: bool


@dataclass(slots=True, eq=False)
class _Rows:
    """One rule's alerts by row. Instants are 0 where they have no meaning."""

    rule: Rule
    life: NDArray[np.uint8]
    moved_by: NDArray[np.uint8]  # _MOVED_BY of each row's life
    value: NDArray[np.float64]  # the number compared when the rule last held
    active_at_ns: NDArray[np.int64]
    fired_at_ns: NDArray[np.int64]
    ended_at_ns: NDArray[np.int64]  # when the condition ended, while KEEP_FIRING
    active_count: int = 0
    due_at_ns: int = _NEVER_NS  # when time alone moves the first row

    def put(self, slot: int, life: _Life) -> None:
        """Set the state of one row."""
        was_active = bool(self.life[slot] != _Life.INACTIVE)
        self.active_count += (life is not _Life.INACTIVE) - was_active
        self.life[slot] = life
        self.moved_by[slot] = _MOVED_BY[life]

    def find_due(self) -> None:
        """Find out anew when time alone moves the first row."""
        due_ns = _NEVER_NS
        for life, since_ns, wait_ns in self._waits():
            waiting = since_ns[self.life == life]
            if waiting.size:
                due_ns = min(due_ns, int(waiting.min()) + wait_ns)
        self.due_at_ns = due_ns

    def due(self, now_ns: int) -> NDArray[np.bool_]:
        """Return the rows that time alone moves now."""
        rows = np.zeros(self.life.shape, np.bool_)
        for life, since_ns, wait_ns in self._waits():
            rows |= (self.life == life) & (since_ns <= now_ns - wait_ns)
        return rows

    def _waits(self) -> tuple[tuple[_Life, NDArray[np.int64], int], ...]:
        return (
            (_Life.PENDING, self.active_at_ns, self.rule.hold_ns),
            (_Life.KEEP_FIRING, self.ended_at_ns, self.rule.keep_firing_ns),
        )


def _new_rows(rule: Rule, limits: Limits) -> _Rows:
    bounds = {Scope.NODE: limits.nodes_max, Scope.CLUSTER: 1, Scope.TASK: limits.tasks_running_max}
    slots = bounds[rule.scope]
    return _Rows(
        rule,
        np.zeros(slots, np.uint8),
        np.full(slots, _MOVED_BY[_Life.INACTIVE], np.uint8),
        # Zeros take no memory until a row is used: most rules are silent everywhere.
        np.zeros(slots, np.float64),
        np.zeros(slots, np.int64),
        np.zeros(slots, np.int64),
        np.zeros(slots, np.int64),
    )


def _subject_of(
    scope: Scope, slot: int, node_ids: Sequence[str | None], tasks: Sequence[Subject | None]
) -> Subject | None:
    if scope is Scope.NODE:
        node_id = node_ids[slot]
        return None if node_id is None else Subject(node_id)
    return Subject() if scope is Scope.CLUSTER else tasks[slot]


class Alerts:
    """All alerts of a set of rules on at most `nodes_max` nodes and `tasks_running_max` tasks."""

    def __init__(self, rules: tuple[Rule, ...], limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._rows = [_new_rows(rule, limits) for rule in rules]
        self._by_name = {rule.name: index for index, rule in enumerate(rules)}
        # Of the rows with an alert that is not INACTIVE.
        self._subjects: dict[Scope, dict[int, Subject]] = {scope: {} for scope in Scope}
        # The lately ended ones, in the order of their end.
        self._resolved: OrderedDict[AlertKey, Alert] = OrderedDict()
        self._waiting: list[AlertChange] = []  # what restore found out
        # Results by which no rule holds, seen when no alert was active: seen again, they change
        # nothing. The scheduler keeps results for cycles between samples.
        self._quiet: Sequence[RuleResult] | None = None

    def advance(
        self,
        results: Sequence[RuleResult],
        node_ids: Sequence[str | None],
        now_ns: int,
        tasks: Sequence[Subject | None] = (),
    ) -> tuple[AlertChange, ...]:
        """Move every alert by what its rule says now; return what changed, by rule and row.

        The results are of the rules given at the start, in their order, over the same slots as
        `node_ids`, or the same rows as `tasks`; no rule may hold on a row that stands for nothing.
        A node or task that has gone must have been forgotten before its row is used again.
        """
        changes, self._waiting = self._waiting, []
        if results is not self._quiet:
            changes += self._advance(results, node_ids, now_ns, tasks)
        changes += self._forget_resolved(now_ns)
        return tuple(changes)

    def _advance(
        self,
        results: Sequence[RuleResult],
        node_ids: Sequence[str | None],
        now_ns: int,
        tasks: Sequence[Subject | None],
    ) -> list[AlertChange]:
        changes: list[AlertChange] = []
        assert len(results) == len(self._rows)
        quiet = True
        for rows, result in zip(self._rows, results, strict=True):
            assert result.rule is rows.rule
            if rows.active_count == 0 and not result.holds.any():
                continue
            quiet = False
            sights = result.holds.view(np.uint8) + result.known.view(np.uint8)
            moved = self._moved(rows, sights, now_ns)
            np.putmask(rows.value[: sights.size], result.holds, result.value)
            for slot in moved:
                subject = _subject_of(rows.rule.scope, slot, node_ids, tasks)
                assert subject is not None, f"{rows.rule.name} holds on row {slot} of nothing"
                changes.append(self._move(rows, slot, subject, _Sight(int(sights[slot])), now_ns))
            if moved:
                rows.find_due()
        self._quiet = results if quiet else None
        return changes

    def _moved(self, rows: _Rows, sights: NDArray[np.uint8], now_ns: int) -> list[int]:
        """Return the slots whose alert changes, in order."""
        bits = np.left_shift(np.uint8(1), sights)
        bits &= rows.moved_by[: sights.size]
        if now_ns >= rows.due_at_ns:
            bits |= rows.due(now_ns)[: sights.size]
        moved: list[int] = np.flatnonzero(bits).tolist() if bits.any() else []
        return moved

    def _move(
        self, rows: _Rows, slot: int, subject: Subject, sight: _Sight, now_ns: int
    ) -> AlertChange:
        """Move one alert: first by what is seen, then by time."""
        before = _Life(int(rows.life[slot]))
        life = _NEXT.get((before, sight), before)
        if before is _Life.INACTIVE:
            assert life is _Life.PENDING
            known = self._subjects[rows.rule.scope].setdefault(slot, subject)
            assert known == subject, "a row was not forgotten"
            self._resolved.pop((rows.rule.name, subject.node_id, subject.task_id), None)
            rows.active_at_ns[slot], rows.fired_at_ns[slot] = now_ns, 0
        if life is _Life.KEEP_FIRING and before is not life:
            rows.ended_at_ns[slot] = now_ns
        life = self._after_time(rows, slot, life, now_ns)
        if life in _FIRED and before not in _FIRED:
            rows.fired_at_ns[slot] = now_ns
            return self._change(rows, slot, life, now_ns, notify=True)
        return self._change(rows, slot, life, now_ns, notify=life is _Life.RESOLVED)

    def _after_time(self, rows: _Rows, slot: int, life: _Life, now_ns: int) -> _Life:
        if life is _Life.PENDING and now_ns - rows.active_at_ns[slot] >= rows.rule.hold_ns:
            return _Life.FIRING
        if (
            life is _Life.KEEP_FIRING
            and now_ns - rows.ended_at_ns[slot] >= rows.rule.keep_firing_ns
        ):
            return _Life.RESOLVED
        return life

    def _change(
        self, rows: _Rows, slot: int, life: _Life, now_ns: int, notify: bool
    ) -> AlertChange:
        """Write a row's new state down and tell it."""
        alert = self._alert(rows, slot, _STATES[life])
        if life is _Life.RESOLVED:
            alert = replace(alert, resolved_at_ns=now_ns)
            self._resolved[alert.key] = alert
        rows.put(slot, _Life.INACTIVE if life is _Life.RESOLVED else life)
        return AlertChange(alert, notify)

    def _alert(self, rows: _Rows, slot: int, state: AlertState) -> Alert:
        rule, value = rows.rule, float(rows.value[slot])
        subject = self._subjects[rule.scope][slot]
        labels = {**rule.labels, "alertname": rule.name, **subject.labels}
        return Alert(
            name=rule.name,
            node_id=subject.node_id,
            task_id=subject.task_id,
            state=state,
            labels=labels,
            annotations={key: fill(text, labels, value) for key, text in rule.annotations.items()},
            value=value,
            active_at_ns=int(rows.active_at_ns[slot]),
            fired_at_ns=int(rows.fired_at_ns[slot]),
        )

    def forget(self, slot: int, now_ns: int, scope: Scope = Scope.NODE) -> tuple[AlertChange, ...]:
        """End all alerts of a node (or task) that is no more; its row may then be another's."""
        changes = []
        if slot in self._subjects[scope]:
            for rows in self._rows:
                if rows.rule.scope is scope and rows.life[slot] != _Life.INACTIVE:
                    changes.append(self._end(rows, slot, now_ns))
                    rows.find_due()
            del self._subjects[scope][slot]
        changes += self._forget_resolved(now_ns)
        return tuple(changes)

    def _end(self, rows: _Rows, slot: int, now_ns: int) -> AlertChange:
        """End one alert, whatever its rule says: one that has fired is resolved."""
        fired = _Life(int(rows.life[slot])) in _FIRED
        life = _Life.RESOLVED if fired else _Life.INACTIVE
        return self._change(rows, slot, life, now_ns, notify=fired)

    def replace_rules(self, rules: tuple[Rule, ...], now_ns: int) -> None:
        """Go on with other rules; results of the old ones are not taken any more.

        The alerts of a rule whose name, scope and labels are as before stay as they are. All others
        end, also where only the labels differ: to whoever was told of them those are other alerts.
        The next `advance` tells the ends.
        """
        before = {rows.rule.name: rows for rows in self._rows}
        self._rows = []
        for rule in rules:
            rows = before.get(rule.name)
            same = rows is not None and rows.rule.scope is rule.scope
            if rows is not None and same and rows.rule.labels == rule.labels:
                del before[rule.name]
                rows.rule = rule
                rows.find_due()  # the rule's times may be others
            else:
                rows = _new_rows(rule, self._limits)
            self._rows.append(rows)
        for rows in before.values():
            for slot in np.flatnonzero(rows.life).tolist():
                self._waiting.append(self._end(rows, slot, now_ns))
        self._by_name = {rule.name: index for index, rule in enumerate(rules)}
        self._waiting += self._forget_resolved(now_ns)

    def _forget_resolved(self, now_ns: int) -> list[AlertChange]:
        """Forget the ended alerts that are old, or one too many."""
        changes = []
        while self._resolved:
            oldest = next(iter(self._resolved.values()))
            old = now_ns - oldest.resolved_at_ns >= self._limits.alerts_resolved_kept_ns
            if not old and len(self._resolved) <= self._limits.alerts_resolved_max:
                break
            self._resolved.popitem(last=False)
            changes.append(AlertChange(replace(oldest, state=AlertState.INACTIVE), notify=False))
        return changes

    def restore(
        self,
        alerts: Iterable[Alert],
        slots: Mapping[str, int],
        now_ns: int,
        tasks: Mapping[Subject, int] | None = None,
    ) -> None:
        """Take over the alerts of an earlier controller; `slots` are those of the known nodes.

        `tasks` are the rows of the running tasks. Instants are kept, but how long an alert has been
        KEEP_FIRING is counted anew. Alerts of rules, nodes or tasks that are no more end: the next
        `advance` tells it.
        """
        self._quiet = None
        places: dict[Subject, tuple[Scope, int]] = {Subject(): (Scope.CLUSTER, 0)}
        places.update({Subject(node_id): (Scope.NODE, slot) for node_id, slot in slots.items()})
        places.update({task: (Scope.TASK, row) for task, row in (tasks or {}).items()})
        for alert in sorted(alerts, key=lambda alert: alert.resolved_at_ns):
            subject = Subject(alert.node_id, alert.task_id, alert.labels.get("task", ""))
            index, (scope, slot) = self._by_name.get(alert.name), places.get(subject, (None, 0))
            if index is not None and self._rows[index].rule.scope is not scope:
                index = None
            if alert.state is AlertState.RESOLVED:
                self._resolved[alert.key] = alert
            elif index is None:
                self._end_restored(alert, now_ns)
            elif alert.state is not AlertState.INACTIVE:
                rows, no_data = self._rows[index], alert.state is AlertState.NO_DATA
                if no_data:
                    life = _Life.FIRING_NO_DATA if alert.fired_at_ns else _Life.PENDING_NO_DATA
                else:
                    life = _Life[alert.state.name]
                self._subjects[rows.rule.scope][slot] = subject
                rows.value[slot] = alert.value
                rows.active_at_ns[slot] = alert.active_at_ns
                rows.fired_at_ns[slot] = alert.fired_at_ns
                rows.ended_at_ns[slot] = now_ns
                rows.put(slot, life)
        for rows in self._rows:
            rows.find_due()
        self._waiting += self._forget_resolved(now_ns)

    def _end_restored(self, alert: Alert, now_ns: int) -> None:
        if alert.fired_at_ns:
            alert = replace(alert, state=AlertState.RESOLVED, resolved_at_ns=now_ns)
            self._resolved[alert.key] = alert
        else:
            alert = replace(alert, state=AlertState.INACTIVE)
        self._waiting.append(AlertChange(alert, notify=alert.state is AlertState.RESOLVED))

    def active(self) -> list[Alert]:
        """Return all alerts that have not ended, firing ones first, then by rule, node and task."""
        found = [
            self._alert(rows, slot, _STATES[_Life(int(rows.life[slot]))])
            for rows in self._rows
            if rows.active_count
            for slot in np.flatnonzero(rows.life).tolist()
        ]
        order = {state: rank for rank, state in enumerate(_ORDER)}
        return sorted(found, key=lambda a: (order[a.state], self._by_name[a.name], *a.key[1:]))

    def listing(self) -> list[Alert]:
        """Return the active alerts, firing ones first, then the lately ended, newest first."""
        return self.active() + list(reversed(self._resolved.values()))

    def counts(self) -> dict[AlertState, int]:
        """Return how many alerts are in each state, INACTIVE ones left out."""
        counts = dict.fromkeys(_ORDER, 0)
        for rows in self._rows:
            if rows.active_count:
                for life, count in enumerate(np.bincount(rows.life).tolist()):
                    if count and life != _Life.INACTIVE:
                        counts[_STATES[_Life(life)]] += count
        return {**counts, AlertState.RESOLVED: len(self._resolved)}

    def check(self) -> None:
        """Assert every invariant. Cost: linear in rules times rows."""
        for rows in self._rows:
            slots = np.flatnonzero(rows.life)
            assert rows.active_count == slots.size
            assert (rows.moved_by == _MOVED_BY[rows.life]).all()
            fired = np.isin(rows.life, [int(life) for life in _FIRED])
            assert (rows.fired_at_ns[fired] > 0).all()
            assert not rows.fired_at_ns[(rows.life != _Life.INACTIVE) & ~fired].any()
            due_at_ns = rows.due_at_ns
            rows.find_due()
            assert due_at_ns == rows.due_at_ns, "the first due row is known"
            known = self._subjects[rows.rule.scope]
            assert all(slot in known for slot in slots.tolist()), "active alerts know their subject"
        assert len(self._resolved) <= self._limits.alerts_resolved_max
