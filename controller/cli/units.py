"""Reads sizes and durations as people write them on the command line, and tells durations.

The rule: what is read means what it means everywhere else, so the reading is `mass.units`'; a value
that cannot be is an InvalidRequest here, as every mistake of a command line.
"""

from __future__ import annotations

from mass.errors import InvalidValue
from mass.units import duration_ns, size_bytes

from controller.core.errors import InvalidRequest


def parse_size(value: str | int, what: str = "memory") -> int:
    """Return a size in bytes, 1 to 1 PiB; `what` names the thing in messages.

    Raises:
        InvalidRequest: no unit, an unknown unit, not a size, or outside the bounds.
    """
    try:
        return size_bytes(value, what)
    except InvalidValue as error:
        raise InvalidRequest(error.message, **error.details) from error


def parse_duration(text: str, what: str = "time") -> int:
    """Return a duration in nanoseconds, above 0 and at most 365 days; `what` names it in messages.

    Raises:
        InvalidRequest: no unit, not a duration, or outside the bounds.
    """
    try:
        return duration_ns(text, what)
    except InvalidValue as error:
        raise InvalidRequest(error.message, **error.details) from error


def format_instant(text: str) -> str:
    """Return an instant of a record, RFC 3339 in UTC, to the second: `2026-11-23T17:23:34Z`."""
    return text.partition(".")[0] + "Z" if "." in text else text


def format_duration(seconds: float) -> str:
    """Return a duration with its two largest units, for example `1h30m`; below 10 s with tenths."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{second:02}s"
    hours, minute = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minute:02}m"
    days, hour = divmod(hours, 24)
    return f"{days}d{hour:02}h"
