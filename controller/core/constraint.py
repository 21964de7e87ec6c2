"""What a node must be like to take a task: the language of `--constraint`.

    constraint = either {"or" either};  either = all {"and" all};  all = "not" all | part
    part = "(" constraint ")" | NAME [OPERATOR VALUE | ["not"] "in" "(" VALUE {"," VALUE} ")"]

OPERATOR is = (or ==), !=, <, <=, >, >=. `cpus`, `gpus` and `memory` (the machine's; sizes as
64GiB) are numbers, `node` is the node's name, every other name is a label; a name alone holds
where there is a label of that name, and `label = NAME` says the same. A label that a node lacks
equals nothing. Numbers are compared as numbers, also in labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from controller.core.errors import InvalidRequest

_TOKEN = re.compile(
    r"\s*(?:(?P<operator><=|>=|!=|==|=|<|>)|(?P<mark>[(),])"
    r"|(?P<quoted>'[^']*'|\"[^\"]*\")|(?P<word>[A-Za-z0-9_][A-Za-z0-9_./:+-]*))",
    re.ASCII,
)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_UNITS = {"": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}i"] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power
NUMBERS = ("cpus", "gpus", "memory")
_DEPTH_MAX = 50


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a constraint may ask of a node."""

    name: str
    labels: Mapping[str, str]
    cpus: float
    gpus: int
    memory_bytes: int


Constraint = Callable[[NodeFacts], bool]


def parse_constraint(text: str) -> Constraint:
    """Return the function that says whether a node may take the task.

    Raises:
        InvalidRequest: it cannot be read; the message shows the place with a caret.
    """
    return _Parser(text).parse()


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        return None
    return float(match[1]) * _UNITS[match[2].lower()]


class _Parser:
    """A recursive descent over the tokens, each with its place."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        self._position = 0
        self._depth = 0
        place = 0
        end = len(text.rstrip())
        while place < end:
            match = _TOKEN.match(text, place)
            if match is None:
                start = place + len(text[place:]) - len(text[place:].lstrip())
                raise self._error("this is not understood", start)
            kind = str(match.lastgroup)
            self._tokens.append((kind, match[kind], match.start(kind)))
            place = match.end()

    def parse(self) -> Constraint:
        found = self._either()
        if self._position < len(self._tokens):
            raise self._error("'and', 'or' or the end is expected here", self._place())
        return found

    def _either(self) -> Constraint:
        parts = [self._all()]
        while self._take("word", "or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else lambda node: any(part(node) for part in parts)

    def _all(self) -> Constraint:
        parts = [self._one()]
        while self._take("word", "and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda node: all(part(node) for part in parts)

    def _one(self) -> Constraint:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise self._error(f"nested more than {_DEPTH_MAX} deep", self._place())
        try:
            if self._take("word", "not"):
                inner = self._one()
                return lambda node: not inner(node)
            if self._take("mark", "("):
                found = self._either()
                if not self._take("mark", ")"):
                    raise self._error("')' is expected here", self._place())
                return found
            return self._part()
        finally:
            self._depth -= 1

    def _part(self) -> Constraint:
        kind, name, place = self._next("the name of a label, cpus, gpus, memory or node")
        if kind != "word" or name in ("and", "or", "in"):
            raise self._error("a name is expected here", place)
        if self._take("word", "in"):
            return self._among(name, self._values())
        if self._peek() == ("word", "not"):
            self._position += 1
            if not self._take("word", "in"):
                raise self._error("'in' is expected here", self._place())
            among = self._among(name, self._values())
            return lambda node: not among(node)
        kind, operator, _ = self._peeked()
        if kind != "operator":
            if name in NUMBERS or name in ("node", "label"):
                raise self._error(f"a comparison of {name} is expected here", self._place())
            return lambda node: name in node.labels
        self._position += 1
        value_place = self._place()
        value = self._value()
        return self._comparison(name, operator, value, value_place)

    def _among(self, name: str, values: list[tuple[str, int]]) -> Constraint:
        parts = [self._comparison(name, "=", value, place) for value, place in values]
        return lambda node: any(part(node) for part in parts)

    def _comparison(self, name: str, operator: str, value: str, place: int) -> Constraint:
        if name in NUMBERS:
            number = _number(value)
            if number is None:
                raise self._error(f"{name} is compared with a number", place)
            return lambda node: _compare(_fact(node, name), operator, number)
        if operator in ("=", "==", "!="):
            return lambda node: _equals(node, name, value) is (operator != "!=")
        bound = _number(value)
        if bound is None or name in ("node", "label"):
            raise self._error(f"'{operator}' needs numbers", place)

        def ordered(node: NodeFacts) -> bool:
            found = _number(node.labels.get(name, ""))
            return found is not None and _compare(found, operator, bound)

        return ordered

    def _values(self) -> list[tuple[str, int]]:
        if not self._take("mark", "("):
            raise self._error("'(' is expected here", self._place())
        values = []
        while True:
            place = self._place()
            values.append((self._value(), place))
            if self._take("mark", ")"):
                return values
            if not self._take("mark", ","):
                raise self._error("',' or ')' is expected here", self._place())

    def _value(self) -> str:
        kind, value, place = self._next("a value")
        if kind == "quoted":
            return value[1:-1]
        if kind != "word":
            raise self._error("a value is expected here", place)
        return value

    def _next(self, wanted: str) -> tuple[str, str, int]:
        if self._position >= len(self._tokens):
            raise self._error(f"{wanted} is expected here", self._place())
        self._position += 1
        return self._tokens[self._position - 1]

    def _peeked(self) -> tuple[str, str, int]:
        if self._position >= len(self._tokens):
            return "", "", len(self._text)
        return self._tokens[self._position]

    def _peek(self) -> tuple[str, str]:
        kind, value, _ = self._peeked()
        return kind, value

    def _take(self, kind: str, value: str) -> bool:
        if self._peek() != (kind, value):
            return False
        self._position += 1
        return True

    def _place(self) -> int:
        return self._peeked()[2]

    def _error(self, what: str, place: int) -> InvalidRequest:
        return InvalidRequest(f"constraint: {what}\n  {self._text}\n  {' ' * place}^")


def _fact(node: NodeFacts, name: str) -> float:
    if name == "cpus":
        return node.cpus
    return float(node.gpus if name == "gpus" else node.memory_bytes)


def _equals(node: NodeFacts, name: str, value: str) -> bool:
    if name == "node":
        return node.name == value
    if name == "label" and value in node.labels:
        return True
    return node.labels.get(name) == value


def _compare(found: float, operator: str, wanted: float) -> bool:
    match operator:
        case "<":
            return found < wanted
        case "<=":
            return found <= wanted
        case ">":
            return found > wanted
        case ">=":
            return found >= wanted
        case "!=":
            return found != wanted
    return found == wanted
