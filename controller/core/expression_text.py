"""The text of rule expressions: what may stand in it, and errors that show the place.

The text is read once, character by character, before Python's parser sees it: that parser
recurses, knows far more than a rule may say, and explains little.
"""

from __future__ import annotations

import ast
import difflib
import keyword
from collections.abc import Iterable

from controller.core.errors import MassError
from controller.core.limits import GIB, KIB, MIB, MILLISECOND_NS, MINUTE_NS, SECOND_NS

# What an expression may cost. Brackets are what makes the parser recurse; length bounds the rest.
EXPRESSION_LENGTH_MAX = 2_000  # characters
BRACKETS_MAX = 40

UNITS = {
    "B": 1,
    **dict.fromkeys(("K", "Ki", "KiB"), KIB),
    **dict.fromkeys(("M", "Mi", "MiB"), MIB),
    **dict.fromkeys(("G", "Gi", "GiB"), GIB),
    **dict.fromkeys(("T", "Ti", "TiB"), 1 << 40),
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}

_DURATION_UNITS_NS = {
    "ms": MILLISECOND_NS,
    "s": SECOND_NS,
    "m": MINUTE_NS,
    "h": 60 * MINUTE_NS,
    "d": 24 * 60 * MINUTE_NS,
}
_EXCERPT_LENGTH_MAX = 76  # characters of a long line shown above the caret
_OPERATORS = ("**", "//", "<<", ">>", "==", "!=", "<=", ">=", *"<>+-*/,()")
_OPERATORS_REFUSED = ("**", "//", "<<", ">>")
_HINTS = {
    "&": "write 'and'",
    "|": "write 'or'",
    "!": "write 'not'",
    "=": "write '==' to compare",
    "%": "a percentage is a plain number, for example mem_percent > 80",
}
_WORDS = frozenset({"and", "or", "not"})
# What a value must follow: each operator, an open bracket, and the beginning of the text.
_NEEDS_VALUE = frozenset({*_WORDS, *_OPERATORS, ""}) - {")"}
_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"


class ExpressionError(MassError):
    """An expression cannot be used; the message shows the place. Do not repeat it unchanged.

    `problem` is the sentence alone, `shown` the text with a caret; line and column count from 1.
    """

    reason = "INVALID_EXPRESSION"

    def __init__(self, problem: str, text: str, line: int = 1, column: int = 1) -> None:
        shown = _caret(text, line, column)
        message = f"line {line}, column {column}: {problem}\n{shown}"
        super().__init__(message, line=line, column=column)
        self.problem = problem
        self.shown = shown
        self.line = line
        self.column = column


def _caret(text: str, line: int, column: int) -> str:
    """Return the line of text with a caret below the column, cut to a screen's width."""
    lines = text.split("\n")
    shown = lines[line - 1] if line <= len(lines) else ""
    shown = "".join(letter if " " <= letter <= "~" else " " for letter in shown)
    start = max(0, min(column - 1 - _EXCERPT_LENGTH_MAX // 2, len(shown) - _EXCERPT_LENGTH_MAX))
    excerpt = shown[start : start + _EXCERPT_LENGTH_MAX]
    return f"    {excerpt}\n    {' ' * (column - 1 - start)}^"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " - did you mean 'x'?" for the known name nearest to this one, or ""."""
    names = list(known)
    same = [known_name for known_name in names if known_name.lower() == name.lower()]
    # A name of any length would make difflib slow; what is typed by hand is short.
    near = same or difflib.get_close_matches(name[:64], names, n=1)
    return f" - did you mean '{near[0]}'?" if near else ""


def duration_ns(text: str) -> int | None:
    """Return the duration '500ms', '30s', '5m', '1h30m', '1d' in nanoseconds, else None.

    Numbers are whole, units (ms s m h d) stand from large to small, the total is below 10 years.
    """
    if len(text) > 32 or not text.isascii():
        return None
    total_ns, rest, last_unit_ns = 0, text, _DURATION_UNITS_NS["d"] + 1
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        number, rest = rest[:digits], rest[digits:]
        letters = len(rest) - len(rest.lstrip("msdh"))
        unit_ns, rest = _DURATION_UNITS_NS.get(rest[:letters]), rest[letters:]
        if not number or len(number) > 9 or unit_ns is None or unit_ns >= last_unit_ns:
            return None
        total_ns, last_unit_ns = total_ns + int(number) * unit_ns, unit_ns
    return total_ns if text and total_ns < 3_650 * _DURATION_UNITS_NS["d"] else None


def parse_python(text: str) -> ast.expr:
    """Return the text as Python's parser reads it; every place in the tree is one of the text.

    What comes out holds only names, numbers, durations in quotes, calls, tuples, the operators
    + - * / and comparisons, and `and`, `or`, `not`. It may still be deep.

    Raises:
        ExpressionError: the text is empty, too long, or holds what no rule may say.
    """
    _Scanner(text).scan()
    try:
        # In brackets, so that a line may end anywhere; the first line's columns move by one.
        tree = ast.parse(f"({text}\n)", mode="eval").body
    except SyntaxError as error:
        line, column = error.lineno or 1, error.offset or 1
        column = max(1, column - (line == 1))
        raise ExpressionError("this cannot be read", text, line, column) from None
    except (ValueError, MemoryError, RecursionError):
        raise ExpressionError("the expression nests too deep", text) from None
    return tree


class _Scanner:
    """Reads a text from left to right and refuses what no rule may say."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._after = ""  # the word, number or operator before

    def scan(self) -> None:
        text = self._text
        if len(text) > EXPRESSION_LENGTH_MAX:
            raise ExpressionError(
                f"the expression has {len(text):,} characters, at most {EXPRESSION_LENGTH_MAX:,} "
                "are allowed",
                text[:EXPRESSION_LENGTH_MAX],
            )
        if not text.strip():
            raise ExpressionError("the expression is empty", "")
        self._brackets()
        while self._at < len(text):
            start, letter = self._at, text[self._at]
            if letter in " \t\n":
                self._at += 1
                continue
            if letter in _LETTERS:
                self._word()
            elif letter in _DIGITS or (letter == "." and text[start + 1 : start + 2].isdigit()):
                self._number()
            elif letter in "'\"":
                self._quoted()
            else:
                self._operator()
            self._in_order(start, text[start : self._at])
        if self._after in _NEEDS_VALUE:
            raise self._error(
                len(text.rstrip()), "the expression ends too early: a number or a metric is missing"
            )

    def _in_order(self, start: int, token: str) -> None:
        """Refuse two values in a row, or two operators."""
        after, self._after = self._after, token
        if token in ("+", "-") or (token == "not" and after in _NEEDS_VALUE):
            return  # may stand behind a value and in front of one
        if token == "(":
            missing = "an operator" if after == ")" or after[:1] in tuple("0123456789.'\"") else ""
        elif token == ")":
            missing = "a number or a metric" if after in _NEEDS_VALUE - {"("} else ""
        elif token in _NEEDS_VALUE:
            missing = "a number or a metric" if after in _NEEDS_VALUE else ""
            missing = "an operator" if token == "not" else missing
        else:
            missing = "" if after in _NEEDS_VALUE else "an operator"
        if missing:
            raise self._error(start, f"{missing} is missing before '{token[:20]}'")

    def _brackets(self) -> None:
        open_at: list[int] = []
        for at, letter in enumerate(self._text):
            if letter == "(":
                open_at.append(at)
                if self._text.count("(", 0, at + 1) > BRACKETS_MAX:
                    raise self._error(at, f"more than {BRACKETS_MAX} brackets")
            elif letter == ")":
                if not open_at:
                    raise self._error(at, "')' closes nothing")
                open_at.pop()
        if open_at:
            raise self._error(open_at[-1], "'(' is never closed")

    def _word(self) -> None:
        start = self._at
        self._at = self._end_of(_LETTERS + _DIGITS)
        word = self._text[start : self._at]
        if keyword.iskeyword(word) and word not in _WORDS:
            raise self._error(start, f"'{word}' has no meaning in a rule")
        if self._text[self._at : self._at + 1] in ("'", '"'):
            raise self._error(start, f"'{word}' has no meaning before a quote")

    def _number(self) -> None:
        start = self._at
        self._at = self._end_of(_DIGITS + "._")
        tail = self._text[self._at : self._at + 3]
        exponent = tail[1:].lstrip("+-") if tail[:1] in ("e", "E") else ""
        if exponent[:1].isdigit():
            self._at += 2
            self._at = self._end_of(_DIGITS)
        number, suffix_at = self._text[start : self._at], self._at
        suffix = self._text[suffix_at : self._end_of(_LETTERS + _DIGITS)]
        if not suffix:
            return
        unit = next((unit for unit in UNITS if unit.lower() == suffix.lower()), None)
        if suffix in _DURATION_UNITS_NS:
            hint = f"a duration stands in quotes: '{number}{suffix}'"
        elif unit is not None:
            hint = f"write {number}*{unit}"
        else:
            hint = "a number ends with its digits"
        raise self._error(suffix_at, f"'{suffix[:20]}' cannot follow a number: {hint}")

    def _quoted(self) -> None:
        start, quote = self._at, self._text[self._at]
        end = self._text.find(quote, start + 1)
        if end < 0 or any(letter in "\\\n" for letter in self._text[start:end]):
            raise self._error(start, "the quote is not closed, or holds what no duration may")
        self._at = end + 1

    def _operator(self) -> None:
        text, at = self._text, self._at
        operator = next((o for o in _OPERATORS if text.startswith(o, at)), None)
        if operator is not None and operator not in _OPERATORS_REFUSED:
            self._at += len(operator)
            return
        letter = operator or text[at]
        shown = f"'{letter}'" if letter.isprintable() else f"U+{ord(letter):04X}"
        hint = _HINTS.get(letter)
        raise self._error(at, f"{shown} has no meaning in a rule" + (f": {hint}" if hint else ""))

    def _end_of(self, letters: str) -> int:
        end = self._at
        while end < len(self._text) and self._text[end] in letters:
            end += 1
        return end

    def _error(self, at: int, problem: str) -> ExpressionError:
        before = self._text[:at]
        line = before.count("\n") + 1
        return ExpressionError(problem, self._text, line, at - (before.rfind("\n") + 1) + 1)
