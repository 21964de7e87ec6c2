"""Prints what commands have to say: tables for people, JSON for programs, errors on stderr.

The rule: data goes to stdout, everything else to stderr. Text that came from elsewhere is printed
without control characters, so that a task's name cannot steer somebody's terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TextIO

from controller.core.errors import MassError

COLUMN_GAP = "  "


class OutputFormat(StrEnum):
    """How a command prints its data."""

    TABLE = "table"
    JSON = "json"


def printable(text: str) -> str:
    """Return the text with every control character shown as a question mark."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a header and rows to stdout, columns aligned; the last column is not padded."""
    cells = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(COLUMN_GAP.join(padded).rstrip())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print one `name  value` line for each field to stdout."""
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        print(f"{name.ljust(width)}{COLUMN_GAP}{printable(value)}".rstrip())


def print_json(value: object) -> None:
    """Print a value as indented JSON to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_error(error: MassError, output: OutputFormat, stream: TextIO | None = None) -> None:
    """Print an error to stderr: a sentence, or with JSON its reason, message and details."""
    target = stream or sys.stderr
    if output is OutputFormat.JSON:
        body = {"reason": error.reason, "message": error.message, "details": error.details}
        print(json.dumps({"error": body}, ensure_ascii=False), file=target)
        return
    # A message may span lines: a rules file error shows the place with a caret below it.
    lines = [printable(line) for line in error.message.split("\n")]
    print("mass: " + "\n".join(lines), file=target)
