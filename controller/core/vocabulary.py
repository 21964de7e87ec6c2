"""Which names a rule of each scope may use, and what to say about the others.

A name has one meaning: a metric that a rule file declares may not be called like anything else.
"""

from __future__ import annotations

import keyword

from controller.core.expression_text import UNITS
from controller.core.expressions import REDUCTION_NAMES, Vocabulary, WindowFunction
from controller.core.metrics import (
    BUILT_IN_NAMES,
    CUSTOM_NAME,
    CUSTOM_NAME_RULE,
    METRIC_NAMES,
    SCOPE_METRICS,
    WINDOWLESS_NAMES,
    Scope,
)

_NAMES = {scope: tuple(metric.name for metric in table) for scope, table in SCOPE_METRICS.items()}
_FUNCTIONS = frozenset((*REDUCTION_NAMES, *(function.value for function in WindowFunction)))


def custom_problem(name: str) -> str:
    """Return why no metric can be declared by this name, or ""."""
    if name in BUILT_IN_NAMES:
        return f"'{name}' is a metric that MASS has itself"
    if name in _FUNCTIONS or name in UNITS or keyword.iskeyword(name):
        return f"'{name}' has a meaning of its own in rules"
    if not CUSTOM_NAME.fullmatch(name):
        return f"'{name[:80]}' is no metric's name: {CUSTOM_NAME_RULE}"
    return ""


def vocabulary(scope: Scope, custom: tuple[str, ...] = (), unknown_hint: str = "") -> Vocabulary:
    """Return the names that a rule of this scope may use; `custom` are the declared metrics."""
    of_nodes = METRIC_NAMES + custom
    over_nodes = dict.fromkeys(("sum", "count"), _needs(Scope.CLUSTER, "is over all nodes"))
    of_cluster = dict.fromkeys(
        _NAMES[Scope.CLUSTER], _needs(Scope.CLUSTER, "is of the whole cluster")
    )
    of_task = dict.fromkeys(_NAMES[Scope.TASK], _needs(Scope.TASK, "is of a task"))
    match scope:
        case Scope.NODE:
            elsewhere = {**over_nodes, **of_cluster, **of_task}
            return Vocabulary(
                of_nodes, WINDOWLESS_NAMES, elsewhere=elsewhere, unknown_hint=unknown_hint
            )
        case Scope.CLUSTER:
            windowless = WINDOWLESS_NAMES.union(_NAMES[Scope.CLUSTER])
            return Vocabulary(
                _NAMES[Scope.CLUSTER],
                windowless,
                over_nodes=of_nodes,
                elsewhere=of_task,
                unknown_hint=unknown_hint,
            )
        case Scope.TASK:
            of_node = dict.fromkeys(of_nodes, "is of a node: a rule over tasks cannot use it")
            elsewhere = {**over_nodes, **of_cluster, **of_node}
            return Vocabulary(_NAMES[Scope.TASK], _NAMES[Scope.TASK], elsewhere=elsewhere)


def _needs(scope: Scope, what: str) -> str:
    return f"{what}: the rule needs 'scope: {scope.value}'"
