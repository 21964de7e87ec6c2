"""Reads rule files into rules; every message names the file, the line, the rule and the key.

Two shapes: YAML as Prometheus has it (groups of rules), and a Python file with one list `RULES`
of an expression and an alert each. A Python file is read, never executed. `interval` and INTERVAL
are checked and change nothing: rules are evaluated whenever samples arrive. Each file declares the
metrics of one's own that it names, so that it can be read alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import yaml
from mass.units import size_words

from controller.core.expression_text import ExpressionError, did_you_mean, duration_ns
from controller.core.expressions import Expression
from controller.core.limits import DEFAULT_LIMITS, Limits
from controller.core.metrics import Scope
from controller.core.rules import Rule, RuleSet
from controller.core.templates import template_problem
from controller.rulefile_parts import (
    Loaded,
    Place,
    RuleFileError,
    TooManyMistakes,
    Words,
    expression_error,
    name_problem,
)
from controller.rulefile_python import read_python

__all__ = ["RULE_KEYS", "RuleFileError", "default_rules", "find_mistakes", "load_rules"]

FILE_KEYS = ("groups", "metrics")
GROUP_KEYS = ("name", "interval", "rules")
RULE_KEYS = (
    "alert", "expr", "scope", "for", "keep_firing_for", "labels", "annotations", "placement",
)  # fmt: skip
# The labels that MASS sets on the alerts of each scope.
OWN_LABELS = {
    Scope.NODE: ("alertname", "node"),
    Scope.CLUSTER: ("alertname",),
    Scope.TASK: ("alertname", "node", "task"),
}
_DECLARE = "; if it is your own, declare it under metrics: [{}]"
TEXT_LENGTH_MAX = 2_000  # of one annotation; every alert carries its own copy
ENTRIES_MAX = 32  # labels or annotations of one rule

_DEFAULT_FILE = Path(__file__).with_name("default_rules.yaml")


def load_rules(paths: Iterable[str | Path], limits: Limits = DEFAULT_LIMITS) -> RuleSet:
    """Return the rules of all files, in the order given.

    Raises:
        RuleFileError: a file cannot be read, is too large, or says what no rule may say; an
            alert name occurs twice; there are more than limits.rules_max rules.
    """
    loaded = Loaded(limits)
    for path in paths:
        _read_file(Path(path), loaded)
    return RuleSet(tuple(loaded.rules), tuple(loaded.metrics))


def find_mistakes(
    paths: Iterable[str | Path], limits: Limits = DEFAULT_LIMITS
) -> tuple[list[RuleFileError], bool]:
    """Return the mistakes of all files together, in their order, and whether these are all.

    At most MISTAKES_MAX, and one for each rule: what a broken rule says further is not looked at.
    """
    mistakes: list[RuleFileError] = []
    loaded = Loaded(limits, mistakes=mistakes)
    try:
        for path in paths:
            with loaded.going_on():
                _read_file(Path(path), loaded)
    except TooManyMistakes:
        return mistakes, False
    return mistakes, True


def default_rules() -> RuleSet:
    """Return the rules that hold where no file is given."""
    return load_rules([_DEFAULT_FILE])


def _read_file(path: Path, loaded: Loaded) -> None:
    place, bytes_max = Place(str(path)), loaded.limits.rule_file_bytes_max
    readers = {".yaml": _read_yaml, ".yml": _read_yaml, ".py": read_python}
    reader = readers.get(path.suffix)
    if reader is None:
        raise place.error("the name of a rule file ends in .yaml, .yml or .py")
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise place.error(f"the file cannot be read: {error.strerror or error}") from None
    if len(data) > bytes_max:
        raise place.error(f"the file is larger than {size_words(bytes_max)}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Place(place.file, line).error("the text is not UTF-8") from None
    if not text.strip():
        raise place.error("the file is empty; a rule file holds at least one rule")
    reader(text, place, loaded)


# YAML


def _read_yaml(text: str, place: Place, loaded: Loaded) -> None:
    try:
        # Nodes with their marks; no object is made of them. Not the C loader: it is ten times as
        # quick, but a file of nothing but '[' overruns its stack and ends the process.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Place(place.file, mark.line + 1 if mark else 0)
        raise where.error(f"this is not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        where = Place(place.file, text.count("\n", 0, error.position) + 1)
        raise where.error("this is not YAML: a control character is not allowed") from None
    except RecursionError:
        raise place.error("the YAML nests too deep") from None
    if root is None:
        raise place.error("the file is empty; a rule file holds at least one rule")
    top = _mapping(root, place.at(root), FILE_KEYS)
    if "groups" not in top:
        raise place.at(root).error("the key 'groups' is missing")
    words = Words(_DECLARE, _metrics(top.get("metrics"), place, loaded))
    names: set[str] = set()
    for node in _sequence(top["groups"], place.at(top["groups"]), "groups"):
        with loaded.going_on():
            _read_group(node, place.at(node), names, words, loaded)


def _metrics(node: yaml.Node | None, place: Place, loaded: Loaded) -> tuple[str, ...]:
    if node is None:
        return ()
    names: list[str] = []
    for item in _sequence(node, place.at(node), "metrics"):
        with loaded.going_on():
            name = _text(item, place, "metrics")
            if name in names:
                raise place.at(item).error(f"the metric '{name}' is declared twice")
            loaded.declare(name, place.at(item, "metrics"))
            names.append(name)
    return tuple(names)


def _read_group(
    node: yaml.Node, place: Place, names: set[str], words: Words, loaded: Loaded
) -> None:
    keys = _mapping(node, place, GROUP_KEYS, naming=("name", "group"))
    if "name" not in keys:
        raise place.error("a group needs a 'name'")
    name = _name(keys["name"], place, "name", loaded.limits)
    place = place.at(node, f"group '{name}'")
    if name in names:
        raise place.error("there are two groups of this name in the file")
    names.add(name)
    if "interval" in keys and _duration_ns(keys["interval"], place, "interval") == 0:
        raise place.at(keys["interval"]).error("'interval' must be longer than 0")
    if "rules" not in keys:
        raise place.error("the key 'rules' is missing")
    for rule_node in _sequence(keys["rules"], place.at(keys["rules"]), "rules"):
        with loaded.going_on():
            _read_rule(rule_node, place, name, words, loaded)


def _read_rule(
    node: yaml.Node, group_place: Place, group: str, words: Words, loaded: Loaded
) -> None:
    place = group_place.at(node)
    keys = _mapping(node, place, RULE_KEYS, naming=("alert", "rule"))
    for key in ("alert", "expr"):
        if key not in keys:
            raise place.error(f"a rule needs the key '{key}'")
    name = _name(keys["alert"], place, "alert", loaded.limits)
    place = group_place.at(node, f"rule '{name}'")
    scope = _scope(keys.get("scope"), place)
    labels = _labels(keys.get("labels"), place, loaded.limits)
    rule = Rule(
        name=name,
        group=group,
        expression=_expression(keys["expr"], place, words, scope),
        hold_ns=_duration_ns(keys.get("for"), place, "for"),
        keep_firing_ns=_duration_ns(keys.get("keep_firing_for"), place, "keep_firing_for"),
        labels=labels,
        annotations=_annotations(keys.get("annotations"), place, (*labels, *OWN_LABELS[scope])),
        blocks_placement=_blocks_placement(keys.get("placement"), place, scope),
        scope=scope,
    )
    loaded.add(rule, place)


def _mapping(
    node: yaml.Node,
    place: Place,
    known: Collection[str] = (),
    naming: tuple[str, str] | None = None,
) -> dict[str, yaml.Node]:
    """Return the entries of a mapping; with `known`, no others are allowed.

    `naming` is the key whose value names the mapping in messages, and the word before it.
    """
    if not isinstance(node, yaml.MappingNode):
        expected = f"keys ({', '.join(known)})" if known else "names and values"
        raise place.error(f"{expected} are expected here, not {_kind(node)}")
    if naming is not None:
        for key, value in node.value:
            if key.value == naming[0] and isinstance(value, yaml.ScalarNode):
                place = place.at(node, f"{naming[1]} '{value.value[:64]}'")
    entries: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise place.at(key).error("a key is a plain word")
        if known and key.value not in known:
            hint = did_you_mean(key.value, known) or f"; there are {', '.join(known)}"
            raise place.at(key).error(f"unknown key '{key.value[:64]}'{hint}")
        if key.value in entries:
            raise place.at(key).error(f"the key '{key.value[:64]}' is there twice")
        entries[key.value] = value
    return entries


def _sequence(node: yaml.Node, place: Place, key: str) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise place.error(f"'{key}' is a list, not {_kind(node)}")
    if not node.value:
        raise place.error(f"'{key}' is an empty list")
    items: list[yaml.Node] = node.value
    return items


def _text(node: yaml.Node, place: Place, key: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise place.at(node).error(f"'{key}' is a text, not {_kind(node)}")
    value: str = node.value
    if node.tag.endswith(":null") or not value.strip():
        raise place.at(node).error(f"'{key}' is empty")
    return value


def _name(node: yaml.Node, place: Place, key: str, limits: Limits) -> str:
    value = _text(node, place, key)
    problem = name_problem(value, limits)
    if problem:
        raise place.at(node).error(f"'{key}' {problem}")
    return value


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"'{node.value[:40]}'" if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _duration_ns(node: yaml.Node | None, place: Place, key: str) -> int:
    """Return a duration; 0 where there is none."""
    if node is None:
        return 0
    text = _text(node, place, key)
    duration = 0 if text == "0" else duration_ns(text)
    if duration is None:
        raise place.at(node).error(
            f"'{key}' is a duration such as 30s, 5m or 1h30m, not '{text[:40]}'"
        )
    return duration


def _expression(node: yaml.Node, place: Place, words: Words, scope: Scope) -> Expression:
    text = _text(node, place, "expr")
    block = isinstance(node, yaml.ScalarNode) and node.style == "|"
    try:
        return words.parse(text, scope)
    except ExpressionError as error:
        # The lines of a block begin below its sign; what is folded has one line only.
        line = node.start_mark.line + 1 + (error.line if block else 0)
        raise expression_error(Place(place.file, line, place.path), "expr", error) from None


def _labels(node: yaml.Node | None, place: Place, limits: Limits) -> dict[str, str]:
    labels: dict[str, str] = {}
    for key, value in _entries(node, place, "labels").items():
        text = _text(value, place, key)
        if key in OWN_LABELS[Scope.TASK]:
            raise place.at(value).error(f"the label '{key}' is set by MASS on every alert")
        if "{{" in text:
            # A label that moves with the value would make a new alert of each sample.
            raise place.at(value).error(f"the label '{key}' is fixed; templates go to annotations")
        if len(text) > limits.name_length_max:
            raise place.at(value).error(
                f"the label '{key}' has {len(text):,} characters, "
                f"at most {limits.name_length_max} are allowed"
            )
        labels[key] = text
    return labels


def _annotations(node: yaml.Node | None, place: Place, labels: Collection[str]) -> dict[str, str]:
    annotations: dict[str, str] = {}
    for key, value in _entries(node, place, "annotations").items():
        text = _text(value, place, key)
        if len(text) > TEXT_LENGTH_MAX:
            raise place.at(value).error(
                f"the annotation '{key}' has {len(text):,} characters, "
                f"at most {TEXT_LENGTH_MAX:,} are allowed"
            )
        problem = template_problem(text, labels)
        if problem:
            raise place.at(value).error(f"the annotation '{key}': {problem}")
        annotations[key] = text
    return annotations


def _entries(node: yaml.Node | None, place: Place, key: str) -> dict[str, yaml.Node]:
    if node is None:
        return {}
    entries = _mapping(node, place.at(node, key))
    if len(entries) > ENTRIES_MAX:
        raise place.at(node).error(f"'{key}' has more than {ENTRIES_MAX} entries")
    for name, value in entries.items():
        if not (name.isascii() and name.isidentifier()) or len(name) > 64:
            raise place.at(value, key).error(
                f"'{name[:64]}' is no name; use letters, digits and _, at most 64 of them"
            )
    return entries


def _scope(node: yaml.Node | None, place: Place) -> Scope:
    if node is None:
        return Scope.NODE
    text = _text(node, place, "scope")
    names = [scope.value for scope in Scope]
    if text not in names:
        hint = did_you_mean(text, names) or f"; there are {', '.join(names)}"
        raise place.at(node).error(f"unknown scope '{text[:40]}'{hint}")
    return Scope(text)


def _blocks_placement(node: yaml.Node | None, place: Place, scope: Scope) -> bool:
    if node is None:
        return False
    if scope is Scope.TASK:
        raise place.at(node).error("a rule over tasks cannot keep tasks off nodes ('placement')")
    text = _text(node, place, "placement")
    if text != "block":
        raise place.at(node).error(f"'placement' can only be 'block', not '{text[:40]}'")
    return True
