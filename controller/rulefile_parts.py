"""What both shapes of rule files share: where something stands, and what was read so far.

Every message names the file, the line, the rule and the key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import yaml

from controller.core.errors import MassError
from controller.core.expression_text import ExpressionError
from controller.core.expressions import Expression, parse
from controller.core.limits import Limits
from controller.core.metrics import CUSTOM_METRICS_MAX, Scope
from controller.core.rules import Rule
from controller.core.vocabulary import custom_problem, vocabulary

MISTAKES_MAX = 20  # told at once


class RuleFileError(MassError):
    """A rule file cannot be used; the message says where and why. Do not retry it unchanged."""

    reason = "INVALID_RULES"


class TooManyMistakes(Exception):
    """There are more mistakes than are told."""


@dataclass(slots=True)
class Loaded:
    """The rules read so far."""

    limits: Limits
    rules: list[Rule] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)  # alert name: FILE:LINE
    mistakes: list[RuleFileError] | None = None  # None: the first one ends it
    metrics: dict[str, None] = field(default_factory=dict)  # declared, in their order

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Note a mistake of one rule, group or declaration and go on behind it, where all of them
        are asked for.

        Raises:
            RuleFileError: the first one, where they are not; the one too many, where they are.
        """
        try:
            yield
        except RuleFileError as error:
            if self.mistakes is None:
                raise
            if len(self.mistakes) >= MISTAKES_MAX:
                raise TooManyMistakes("") from None
            self.mistakes.append(error)

    def declare(self, name: str, place: Place) -> None:
        """Keep a metric's name. Raises RuleFileError where it cannot be one."""
        problem = custom_problem(name)
        if problem:
            raise place.error(problem)
        self.metrics[name] = None
        if len(self.metrics) > CUSTOM_METRICS_MAX:
            raise place.error(f"more than {CUSTOM_METRICS_MAX} metrics are declared")

    def add(self, rule: Rule, place: Place) -> None:
        """Keep a rule. Raises RuleFileError where its name is taken, or it is one too many."""
        first = self.seen.get(rule.name)
        if first is not None:
            # An alert is known by its name and its node, so a name stands for one rule.
            raise place.error(f"the alert name is taken by the rule at {first}")
        if len(self.rules) >= self.limits.rules_max:
            raise place.error(f"more than {self.limits.rules_max:,} rules")
        self.seen[rule.name] = place.where
        self.rules.append(rule)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which file something stands, for messages."""

    file: str
    line: int = 0
    path: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """FILE:LINE, or FILE."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def at(self, node: yaml.Node, *path: str) -> Place:
        """Return the place of a part of this one."""
        return Place(self.file, node.start_mark.line + 1, self.path + path)

    def error(self, problem: str) -> RuleFileError:
        """Return the error that says what is wrong here."""
        return RuleFileError(": ".join(filter(None, (self.where, ", ".join(self.path), problem))))


@dataclass(frozen=True, slots=True)
class Words:
    """What the expressions of one file may name."""

    hint: str
    metrics: tuple[str, ...]

    def parse(self, text: str, scope: Scope) -> Expression:
        """Return the checked expression. Raises ExpressionError."""
        return parse(text, vocabulary(scope, self.metrics, self.hint))


def name_problem(name: str, limits: Limits) -> str:
    """Return why this cannot be a name, or ""."""
    if len(name) > limits.name_length_max:
        return f"has {len(name):,} characters, at most {limits.name_length_max} are allowed"
    return "" if name.isprintable() else "has characters that cannot be printed"


def expression_error(place: Place, key: str, error: ExpressionError) -> RuleFileError:
    """Return the error of a key's expression, with its caret."""
    return place.error(f"'{key}', column {error.column}: {error.problem}\n{error.shown}")
