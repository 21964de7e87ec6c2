"""Fits the tables of the live view into a terminal: how wide each column is, and which give way.

The rule: what names a thing and its state is always readable. Where there is too little room, whole
columns are left out, in the order that the caller gives; then the last column is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2
CELL_MAX = 24  # a longer name is cut, so that one of them cannot take the room of all others
LAST_WANTED = 24  # room for the beginning of a sentence
LAST_MIN = 8


@dataclass(frozen=True, slots=True)
class Fitted:
    """The columns that are shown, by index, and the width of each in cells."""

    indexes: tuple[int, ...]
    widths: tuple[int, ...]


def fit(
    columns: Sequence[str], rows: Sequence[Sequence[str]], give_way: Sequence[str], width: int
) -> Fitted:
    """Return what of a table is shown in `width` cells; its last column takes the room left."""
    from rich.cells import cell_len

    longest = [
        max([len(name), *(cell_len(row[index]) for row in rows)])
        for index, name in enumerate(columns)
    ]
    last = len(columns) - 1
    shown = list(range(last))

    def room() -> int:
        return width - sum(min(longest[index], CELL_MAX) + GAP for index in shown)

    for name in give_way:
        if room() >= min(longest[last], LAST_WANTED):
            break
        shown = [index for index in shown if columns[index] != name]
    widths = [min(longest[index], CELL_MAX) for index in shown]
    return Fitted((*shown, last), (*widths, max(LAST_MIN, room())))
