"""Rule expressions: text that people write, checked once and compiled to numpy columns.

The grammar is a whitelist over Python's own expression grammar: what is not named here is
refused with its line, its column and a caret. Nothing that a user writes is ever executed.
Values are three-valued (Kleene): a comparison that touches a missing or not finite number is
unknown, and what is unknown never holds.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from controller.core.expression_text import (
    UNITS,
    ExpressionError,
    did_you_mean,
    duration_ns,
    parse_python,
)
from controller.core.limits import MINUTE_NS

BoolColumn = NDArray[np.bool_]
FloatColumn = NDArray[np.float64]

NODES_MAX = 300
DEPTH_MAX = 40
CONSTANT_MAX = 1e30  # keeps arithmetic on a few constants and a metric far from overflow
WINDOW_NS_MAX = 60 * MINUTE_NS  # what a node's history reaches back to


class WindowFunction(Enum):
    """What a window of one metric's samples is reduced to; values are weighted by time."""

    AVG = "avg"
    MIN = "min"
    MAX = "max"
    LAST = "last"
    DELTA = "delta"
    RATE = "rate"


@dataclass(frozen=True, slots=True)
class Window:
    """One function of one metric over (now - window_ns, now], 0 < window_ns <= 60 min."""

    function: WindowFunction
    metric: str
    window_ns: int


# Gives the column of a metric (by its name) or of a window: float64, one row per node, NaN where
# the node has no data. It is asked anew at each mention; whoever gives it keeps the columns.
Column = Callable[[str | Window], FloatColumn]

# A condition answers with the rows where it is true, the rows where it is false (the others are
# unknown), and the number compared.
_Answer = tuple[BoolColumn, BoolColumn, FloatColumn]
_Condition = Callable[[Column], _Answer]
_Values = Callable[[Column], FloatColumn]
_Number = float | _Values  # a constant, or a column to be asked for


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an expression says about each row.

    `holds` is true only where the answer is known. `value` is the first number compared (of an
    `or`, in its first part that holds); where it holds the number is finite, elsewhere it may be
    NaN. It may be the caller's own column.
    """

    holds: BoolColumn
    known: BoolColumn
    value: FloatColumn


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression; two of the same text are equal."""

    text: str
    metrics: frozenset[str]  # those named plainly, outside windows
    windows: tuple[Window, ...]  # each once, in the order of the text
    condition: _Condition = field(repr=False, compare=False)

    def evaluate(self, column: Column) -> Evaluation:
        """Return what the expression says about each row of the columns, all of one length."""
        with np.errstate(all="ignore"):  # what is not finite is told as unknown, not as a warning
            holds, fails, value = self.condition(column)
        return Evaluation(holds, holds | fails, value)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The names that an expression may use.

    With `over_nodes`, the expression is about all nodes together: sum, avg, min, max and count
    reduce these metrics to one number, and they stand nowhere else.
    """

    known: Collection[str]
    windowless: Collection[str] = ()  # these have no history to look back on
    over_nodes: Collection[str] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # a name, and why not here
    unknown_hint: str = ""  # what to do about a name like no other, {} being it


def parse(
    text: str, known: Collection[str] | Vocabulary, windowless: Collection[str] = ()
) -> Expression:
    """Return the checked expression.

    `known` are the metrics' names; those in `windowless` have no history to look back on.
    Cost: at most a few milliseconds for any text.

    Raises:
        ExpressionError: the text is no condition over these metrics, or exceeds a bound.
    """
    tree = parse_python(text)
    words = known if isinstance(known, Vocabulary) else Vocabulary(known, windowless)
    compiler = _Compiler(text, words)
    compiler.check_size(tree)
    condition = compiler.condition(tree)
    windows = tuple(dict.fromkeys(compiler.windows))
    return Expression(text, frozenset(compiler.metrics), windows, condition)


_FUNCTIONS = {function.value: function for function in WindowFunction}
# What makes one number of all nodes' values; `count` is of a condition.
_REDUCTIONS: dict[str, Callable[[FloatColumn], np.float64]] = {
    "sum": np.sum,
    "avg": np.mean,
    "min": np.min,
    "max": np.max,
    "count": np.sum,
}
REDUCTION_NAMES = tuple(_REDUCTIONS)
_ARITHMETIC: dict[type[ast.operator], np.ufunc] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
}
_COMPARISONS: dict[type[ast.cmpop], np.ufunc] = {
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}


class _Compiler:
    """Walks a tree once: checks names, types and bounds, and makes the functions over columns."""

    def __init__(self, text: str, words: Vocabulary) -> None:
        self._text = text
        self._words = words
        self._within = ""  # the function over nodes whose argument is read
        self.metrics: list[str] = []
        self.windows: list[Window] = []

    def check_size(self, tree: ast.expr) -> None:
        """Refuse a tree with too many parts or levels, without recursion."""
        waiting, count = [(tree, 1)], 0
        while waiting:
            node, depth = waiting.pop()
            count += 1
            if count > NODES_MAX:
                raise self._error(tree, f"the expression has more than {NODES_MAX} parts")
            if depth > DEPTH_MAX:
                raise self._error(tree, f"the expression nests deeper than {DEPTH_MAX} levels")
            waiting += [
                (child, depth + 1)
                for child in ast.iter_child_nodes(node)
                if isinstance(child, ast.expr)
            ]

    def condition(self, node: ast.expr, negated: bool = False) -> _Condition:
        """Return the function of a part that must be true or false, or of its opposite.

        A `not` moves inwards to the comparisons, so that wherever an expression holds the number
        it gives belongs to a comparison that holds, and is finite.
        """
        match node:
            case ast.BoolOp(op=operator, values=values):
                parts = [self.condition(value, negated) for value in values]
                return _joined(parts, isinstance(operator, ast.And) is not negated)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.condition(operand, not negated)
            case ast.Compare():
                return self._comparisons(node, negated)
        number, shown = self._number(node), self._shown(node)
        if isinstance(number, float):
            raise self._error(node, f"{shown} is a number; compare a metric with it")
        raise self._error(node, f"'{shown}' is a number; compare it, for example {shown} > 80")

    def _comparisons(self, node: ast.Compare, negated: bool) -> _Condition:
        sides = [node.left, *node.comparators]
        numbers = [self._number(side) for side in sides]
        parts = []
        for at, operator in enumerate(node.ops):
            left, right = numbers[at], numbers[at + 1]
            compare = _COMPARISONS.get(type(operator))
            if compare is None:
                raise self._error(node, "this comparison has no meaning in a rule")
            if isinstance(left, float) and isinstance(right, float):
                raise self._error(sides[at], "two fixed numbers are compared; compare a metric")
            parts.append(_comparison(compare, left, right, negated))
        return _joined(parts, not negated)

    def _number(self, node: ast.expr) -> _Number:
        """Return the constant or the function of a part that must be a number."""
        match node:
            case ast.Constant(value=value):
                return self._constant(node, value)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if (
                self._words.over_nodes and name in _REDUCTIONS
            ):
                return self._reduction(node, name, argument)
            case ast.Call():
                return self._window(node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._arithmetic(node, np.subtract, 0.0, self._number(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._number(operand)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return self._quotient(node, self._number(left), self._number(right))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
                function = _ARITHMETIC[type(operator)]
                return self._arithmetic(node, function, self._number(left), self._number(right))
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                shown = self._shown(node)
                raise self._error(node, f"'{shown}' is true or false; a number is needed here")
        raise self._error(node, "this has no meaning in a rule")

    def _constant(self, node: ast.expr, value: object) -> float:
        if isinstance(value, str):
            raise self._error(
                node, "text stands only in a window, for example avg(mem_percent, '5m')"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(node, f"{self._shown(node)} is no number")
        if not abs(value) < CONSTANT_MAX:
            raise self._error(node, f"a number must be below {CONSTANT_MAX:g}")
        return float(value)

    def _name(self, node: ast.expr, name: str) -> _Number:
        words = self._words
        if name in (words.over_nodes if self._within else words.known):
            self.metrics.append(name)
            return lambda column: column(name)
        if name in UNITS:
            return float(UNITS[name])
        if name in words.over_nodes:
            raise self._error(node, f"'{name}' is a number of each node: write sum({name})")
        if name in _FUNCTIONS:
            raise self._error(node, f"'{name}' is a function: write {name}(metric, '5m')")
        self._refuse_elsewhere(node, name)
        raise self._unknown(node, name, [*UNITS, *_FUNCTIONS])

    def _refuse_elsewhere(self, node: ast.expr, name: str) -> None:
        if self._within and name in self._words.known:
            problem = f"is one number of the whole cluster: use it outside of {self._within}()"
        else:
            problem = self._words.elsewhere.get(name, "")
        if problem:
            raise self._error(node, f"'{name}' {problem}")

    def _unknown(self, node: ast.expr, name: str, more: Collection[str] = ()) -> ExpressionError:
        words = self._words
        names = words.over_nodes if self._within else [*words.known, *words.over_nodes]
        hint = did_you_mean(name, [*names, *more]) or words.unknown_hint.format(name[:64])
        return self._error(node, f"'{name[:64]}' is not a metric{hint}")

    def _reduction(self, node: ast.Call, name: str, argument: ast.expr) -> _Values:
        """Return the function of all nodes' values, or of a condition on them: one row."""
        if self._within:
            raise self._error(node, f"{name}() stands inside of {self._within}()")
        self._within = name
        if name == "count":
            condition = self.condition(argument)
            self._within = ""
            return _count_of(condition)
        number = self._number(argument)
        self._within = ""
        if isinstance(number, float):
            raise self._error(argument, f"{name}() of a fixed number; it needs a metric")
        return _reduced(_REDUCTIONS[name], number)

    def _window(self, node: ast.Call) -> _Number:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        function, words = _FUNCTIONS.get(name), self._words
        if function is None:
            if name in words.known or name in words.over_nodes:
                raise self._error(node, f"'{name}' is a metric, not a function")
            if words.over_nodes and name in _REDUCTIONS:
                raise self._error(node, f"{name} takes one argument, over all nodes")
            self._refuse_elsewhere(node, name)
            functions = [*_FUNCTIONS, *(_REDUCTIONS if words.over_nodes else ())]
            known = ", ".join(dict.fromkeys(functions))
            hint = did_you_mean(name, functions) or f"; there are {known}"
            raise self._error(node, f"'{name[:64]}' is not a function{hint}")
        if len(node.args) != 2 or node.keywords:
            raise self._error(node, f"{name} takes a metric and a duration: {name}(metric, '5m')")
        metric, duration = node.args
        if not isinstance(metric, ast.Name):
            raise self._error(metric, f"{name} looks back on a metric, not on a calculation")
        if metric.id in words.windowless:
            raise self._error(metric, f"'{metric.id}' has no history; use it without {name}()")
        if metric.id in words.over_nodes and not self._within:
            shown = self._shown(node)
            raise self._error(node, f"'{shown}' is a number of each node: write sum({shown})")
        if metric.id not in (words.over_nodes if self._within else words.known):
            self._refuse_elsewhere(metric, metric.id)
            raise self._unknown(metric, metric.id)
        window = Window(function, metric.id, self._window_ns(duration))
        self.windows.append(window)
        return lambda column: column(window)

    def _window_ns(self, node: ast.expr) -> int:
        text = node.value if isinstance(node, ast.Constant) else None
        if not isinstance(text, str):
            raise self._error(node, "a duration in quotes is needed here, for example '5m'")
        window_ns = duration_ns(text)
        if window_ns is None:
            raise self._error(node, f"'{text[:20]}' is not a duration; write '30s', '5m' or '1h'")
        if not 0 < window_ns <= WINDOW_NS_MAX:
            raise self._error(
                node, f"a window is longer than 0 and at most 60m, this is '{text[:20]}'"
            )
        return window_ns

    def _arithmetic(
        self, node: ast.expr, function: np.ufunc, left: _Number, right: _Number
    ) -> _Number:
        if isinstance(left, float) and isinstance(right, float):
            with np.errstate(all="ignore"):
                result = float(function(left, right))
            if not math.isfinite(result):
                raise self._error(node, "the result is no finite number")
            return result
        return lambda column: function(_values(left, column), _values(right, column))

    def _quotient(self, node: ast.expr, left: _Number, right: _Number) -> _Number:
        if not isinstance(right, float):
            return _quotient_by_column(left, right)
        if right == 0:
            raise self._error(node, "this divides by zero")
        return self._arithmetic(node, np.divide, left, right)

    def _shown(self, node: ast.expr) -> str:
        shown = ast.unparse(node)
        return shown if len(shown) <= 40 else shown[:37] + "..."

    def _error(self, node: ast.expr, problem: str) -> ExpressionError:
        # The parser saw one bracket more at the start of the first line.
        column = node.col_offset + 1 - (node.lineno == 1)
        return ExpressionError(problem, self._text, node.lineno, max(1, column))


def _values(number: _Number, column: Column) -> FloatColumn | float:
    return number if isinstance(number, float) else number(column)


def _quotient_by_column(left: _Number, right: _Values) -> _Values:
    def evaluate(column: Column) -> FloatColumn:
        divisor = right(column)
        # An infinite divisor is the only way in which something not finite could become an
        # ordinary number again (1 / (x / 0) = 0); as NaN it stays unknown to the end.
        quotient = np.divide(_values(left, column), divisor)
        return np.where(np.isfinite(divisor), quotient, np.nan)

    return evaluate


def _reduced(reduce: Callable[[FloatColumn], np.float64], number: _Values) -> _Values:
    """Return one row: the reduction of the rows that have a number, NaN where none has."""

    def evaluate(column: Column) -> FloatColumn:
        values = number(column)
        values = values[np.isfinite(values)]
        return np.array([reduce(values) if values.size else np.nan])

    return evaluate


def _count_of(condition: _Condition) -> _Values:
    """Return one row: on how many rows the condition holds, NaN where it is known on none."""

    def evaluate(column: Column) -> FloatColumn:
        holds, fails, _ = condition(column)
        known = bool((holds | fails).any())
        return np.array([float(np.count_nonzero(holds)) if known else np.nan])

    return evaluate


def _comparison(compare: np.ufunc, left: _Number, right: _Number, negated: bool) -> _Condition:
    def answer(column: Column) -> _Answer:
        left_values, right_values = _values(left, column), _values(right, column)
        if isinstance(left_values, float):
            assert not isinstance(right_values, float)
            known, value = np.isfinite(right_values), right_values
        else:
            known, value = np.isfinite(left_values), left_values
            if not isinstance(right_values, float):
                known &= np.isfinite(right_values)
        holds: BoolColumn = compare(left_values, right_values)
        holds &= known
        fails = known ^ holds
        return (fails, holds, value) if negated else (holds, fails, value)

    return answer


def _joined(parts: list[_Condition], every: bool) -> _Condition:
    """Return `and` (every) or `or` of the parts."""
    if len(parts) == 1:
        return parts[0]
    return _every_of(parts) if every else _any_of(parts)


def _every_of(parts: list[_Condition]) -> _Condition:
    def answer(column: Column) -> _Answer:
        holds, fails, value = parts[0](column)
        for part in parts[1:]:
            part_holds, part_fails, _ = part(column)
            holds, fails = holds & part_holds, fails | part_fails
        return holds, fails, value

    return answer


def _any_of(parts: list[_Condition]) -> _Condition:
    def answer(column: Column) -> _Answer:
        holds, fails, value = parts[0](column)
        for part in parts[1:]:
            part_holds, part_fails, part_value = part(column)
            # Take the number of the part that decides: true here, and in no part before.
            value = np.where(part_holds > holds, part_value, value)
            holds, fails = holds | part_holds, fails & part_fails
        return holds, fails, value

    return answer
