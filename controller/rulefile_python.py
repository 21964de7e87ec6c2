"""Rule files in Python's spelling: RULES, METRICS and INTERVAL, read and never executed."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from controller.core.expression_text import ExpressionError, did_you_mean
from controller.core.limits import Limits
from controller.core.metrics import Scope
from controller.core.rules import Rule
from controller.rulefile_parts import Loaded, Place, Words, expression_error, name_problem

ENTRY_KEYS = ("expression", "alert")
DECLARE = "; if it is your own, declare it in METRICS = ['{}']"


def read_python(text: str, place: Place, loaded: Loaded) -> None:
    """Read the rules of a file's text.

    Raises:
        RuleFileError: it says what no rule file may say.
    """
    assigned = _assignments(text, place)
    if "RULES" not in assigned:
        raise place.error("RULES = [...] is missing")
    words = Words(DECLARE, _python_metrics(assigned.get("METRICS"), place, loaded))
    rules = assigned["RULES"]
    if not isinstance(rules, ast.List | ast.Tuple):
        raise Place(place.file, rules.lineno).error("RULES is a list of {...} entries")
    if not rules.elts:
        raise Place(place.file, rules.lineno).error("RULES is an empty list")
    for number, element in enumerate(rules.elts, start=1):
        entry_place = Place(place.file, element.lineno, (f"rule {number}",))
        with loaded.going_on():
            entry = _entry(element, entry_place, loaded.limits)
            _add_entry(entry, Path(place.file).stem, entry_place, words, loaded)


def _assignments(text: str, place: Place) -> dict[str, ast.expr]:
    """Return what the file assigns to RULES, METRICS and INTERVAL; nothing else may be there."""
    assigned: dict[str, ast.expr] = {}
    for index, statement in enumerate(_statements(text, place)):
        here = Place(place.file, statement.lineno)
        match statement:
            case ast.Expr(value=ast.Constant(value=str())) if index == 0:
                continue
            case ast.Assign(targets=[ast.Name(id="RULES" | "METRICS" | "INTERVAL" as name)]):
                if name in assigned:
                    raise here.error(f"{name} is assigned twice")
                assigned[name] = statement.value
            case _:
                raise here.error(
                    "a rule file holds only RULES = [...], METRICS = [...] and INTERVAL = seconds"
                )
        seconds = _literal(assigned.get("INTERVAL", ast.Constant(1)))
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise here.error("INTERVAL is a number of seconds above 0")
    return assigned


def _python_metrics(node: ast.expr | None, place: Place, loaded: Loaded) -> tuple[str, ...]:
    """Return the names of METRICS = ['NAME', ...]."""
    if node is None:
        return ()
    if not isinstance(node, ast.List | ast.Tuple):
        raise Place(place.file, node.lineno).error("METRICS is a list of names in quotes")
    names: list[str] = []
    for element in node.elts:
        here = Place(place.file, element.lineno)
        with loaded.going_on():
            name = _literal(element)
            if not isinstance(name, str):
                raise here.error("METRICS is a list of names in quotes")
            if name in names:
                raise here.error(f"the metric '{name}' is declared twice")
            loaded.declare(name, here)
            names.append(name)
    return tuple(names)


def _statements(text: str, place: Place) -> Sequence[ast.stmt]:
    try:
        return ast.parse(text).body
    except SyntaxError as error:
        where = Place(place.file, error.lineno or 0)
        raise where.error(f"this is not Python: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError):
        raise place.error("this is not Python, or nests too deep") from None


def _entry(node: ast.expr, place: Place, limits: Limits) -> dict[str, str]:
    """Return one {'expression': ..., 'alert': ...}."""
    if not isinstance(node, ast.Dict):
        raise place.error("an entry is {'expression': ..., 'alert': ...}")
    entry: dict[str, str] = {}
    for key_node, value_node in zip(node.keys, node.values, strict=True):
        here = Place(place.file, value_node.lineno, place.path)
        key = _literal(key_node)
        if key not in ENTRY_KEYS:
            shown = str(key)[:64]
            hint = did_you_mean(shown, ENTRY_KEYS) or f"; there are {', '.join(ENTRY_KEYS)}"
            raise here.error(f"unknown key '{shown}'{hint}")
        value = _literal(value_node)
        if not isinstance(value, str) or not value.strip():
            raise here.error(f"'{key}' is a text in quotes")
        if key in entry:
            raise here.error(f"the key '{key}' is there twice")
        entry[str(key)] = value
    for key in ENTRY_KEYS:
        if key not in entry:
            raise place.error(f"the key '{key}' is missing")
    problem = name_problem(entry["alert"], limits)
    if problem:
        raise place.error(f"'alert' {problem}")
    return entry


def _literal(node: ast.expr | None) -> object:
    """Return what a plain text says, None for anything else."""
    return ast.literal_eval(node) if isinstance(node, ast.Constant) else None


def _add_entry(
    entry: dict[str, str], group: str, place: Place, words: Words, loaded: Loaded
) -> None:
    name = entry["alert"]
    try:
        expression = words.parse(entry["expression"], Scope.NODE)
    except ExpressionError as error:
        raise expression_error(place, "expression", error) from None
    loaded.add(Rule(name, group, expression, annotations={"summary": name}), place)
