"""Reads which tasks are meant: `12`, `1-5,7`, `last`, and an element of an array, `12_3`.

The rule: a selector names tasks and never guesses; ranges are spelled out before the controller is
asked, so that one unknown id is reported by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from controller.core.errors import InvalidRequest

TASKS_MAX = 10_000  # as many as one call takes
LAST = "last"

_ID = re.compile(r"[1-9]\d{0,17}(?:_\d{1,9})?", re.ASCII)
_RANGE = re.compile(r"([1-9]\d{0,17})-([1-9]\d{0,17})", re.ASCII)


def select_tasks(texts: Sequence[str], newest: Callable[[], str]) -> list[str]:
    """Return the ids the texts name, in order, each once; `newest` answers for `last`.

    Raises:
        InvalidRequest: not a selector, a range that runs backwards, or more than 10,000 ids.
    """
    # A dictionary keeps the order and drops what was named before.
    ids: dict[str, None] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        if part == LAST:
            ids[newest()] = None
        elif _ID.fullmatch(part):
            ids[part] = None
        elif match := _RANGE.fullmatch(part):
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise InvalidRequest(f"range '{part}' runs backwards; write {last}-{first}")
            if last - first >= TASKS_MAX:
                raise InvalidRequest(f"range '{part}' is above the bound of {TASKS_MAX:,} tasks")
            ids.update((str(number), None) for number in range(first, last + 1))
        else:
            raise InvalidRequest(f"'{part}' is no task id; write 12, 1-5,7 or last")
        if len(ids) > TASKS_MAX:
            raise InvalidRequest(
                f"more than {TASKS_MAX:,} tasks named; that is the bound of a call"
            )
    return list(ids)
