"""Reads and writes sizes and durations as people write them.

The rule: a bare number is refused, because no two schedulers agree on what it would mean. `G`, `Gi`
and `GiB` are 2^30, `GB` is 10^9, and the same for K, M, T and P; upper and lower case are equal.
"""

from __future__ import annotations

import re
from fractions import Fraction

from controller.core.errors import InvalidRequest

SIZE_MAX_BYTES = 1 << 50  # 1 PiB
TEXT_LENGTH_MAX = 40  # no size or duration is longer; keeps the exact arithmetic below small
SECOND_NS = 1_000_000_000
DURATION_MAX_NS = 365 * 24 * 3600 * SECOND_NS

_LETTERS = "kmgtp"
_SIZE_UNITS: dict[str, int] = {"b": 1}
for _power, _letter in enumerate(_LETTERS, start=1):
    _SIZE_UNITS[_letter] = _SIZE_UNITS[f"{_letter}i"] = _SIZE_UNITS[f"{_letter}ib"] = 1024**_power
    _SIZE_UNITS[f"{_letter}b"] = 1000**_power

_SIZE = re.compile(r"([+-]?)(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)", re.ASCII)

_DURATION_UNITS_NS = {
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "min": 60 * SECOND_NS,
    "h": 3600 * SECOND_NS,
    "d": 24 * 3600 * SECOND_NS,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d+)-)?(\d{1,2}):(\d{2}):(\d{2})", re.ASCII)


def parse_size(text: str, what: str = "memory") -> int:
    """Return a size in bytes, 1 to 1 PiB; `what` names the thing in messages.

    Raises:
        InvalidRequest: no unit, an unknown unit, not a size, zero, negative or above 1 PiB.
    """
    shown = text[:TEXT_LENGTH_MAX]
    match = _SIZE.fullmatch(text.strip()) if len(text) <= TEXT_LENGTH_MAX else None
    if match is None:
        raise InvalidRequest(f"{what} '{shown}' is not a size; write for example 2GiB or 512MiB")
    sign, number, unit = match.groups()
    if not unit:
        raise InvalidRequest(
            f"{what} '{shown}' has no unit; write {number}MiB or {number}MB", value=shown
        )
    if unit.lower() not in _SIZE_UNITS:
        raise InvalidRequest(
            f"{what} '{shown}' has the unknown unit '{unit}'; "
            "write KiB, MiB, GiB, TiB (K, M, G, T are the same) or KB, MB, GB, TB",
            value=shown,
        )
    size_bytes = int(Fraction(number) * _SIZE_UNITS[unit.lower()])
    if sign == "-" or size_bytes < 1:
        raise InvalidRequest(f"{what} '{shown}' is below the bound of 1 byte", value=shown)
    return check_size(size_bytes, what, shown)


def check_size(size_bytes: int, what: str, shown: str) -> int:
    """Return a size in bytes unchanged, or refuse it.

    Raises:
        InvalidRequest: below 1 byte or above 1 PiB.
    """
    if size_bytes < 1:
        raise InvalidRequest(f"{what} '{shown}' is below the bound of 1 byte", value=shown)
    if size_bytes > SIZE_MAX_BYTES:
        raise InvalidRequest(f"{what} '{shown}' is above the bound of 1 PiB", value=shown)
    return size_bytes


def parse_duration(text: str, what: str = "time") -> int:
    """Return a duration in nanoseconds, above 0 and at most 365 days; `what` names it in messages.

    Written `500ms`, `90s`, `10m`, `1h30m`, `2d` or as a clock, `HH:MM:SS` and `D-HH:MM:SS`.

    Raises:
        InvalidRequest: no unit, not a duration, zero, negative or above 365 days.
    """
    text = text.strip()
    shown = text[:TEXT_LENGTH_MAX]
    if _NUMBER.fullmatch(shown):
        number = shown.lstrip("+-")
        raise InvalidRequest(
            f"{what} '{shown}' has no unit; write {number}s or {number}m", value=shown
        )
    duration_ns = _clock_ns(shown) if ":" in shown else _parts_ns(shown)
    if duration_ns is None or len(text) > TEXT_LENGTH_MAX:
        raise InvalidRequest(
            f"{what} '{shown}' is not a duration; write for example 90s, 10m, 1h30m, 01:30:00 "
            "or 1-02:03:04",
            value=shown,
        )
    if duration_ns < 1:
        raise InvalidRequest(f"{what} '{shown}' must be longer than 0", value=shown)
    if duration_ns > DURATION_MAX_NS:
        raise InvalidRequest(f"{what} '{shown}' is above the bound of 365 days", value=shown)
    return duration_ns


def _clock_ns(text: str) -> int | None:
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    if minutes > 59 or seconds > 59:
        return None
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * SECOND_NS


def _parts_ns(text: str) -> int | None:
    total = Fraction(0)
    position = 0
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if match is None or match[2].lower() not in _DURATION_UNITS_NS:
            return None
        total += Fraction(match[1]) * _DURATION_UNITS_NS[match[2].lower()]
        position = match.end()
    return int(total) if text else None


def format_size(size_bytes: int) -> str:
    """Return a size in binary units with at most one decimal, for example `1.5 GiB`."""
    value = float(abs(size_bytes))
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        # 1,023.95 would round to 1024.0 of the smaller unit.
        if value < 1023.95:
            break
        value /= 1024
        unit = larger
    sign = "-" if size_bytes < 0 else ""
    return f"{sign}{value:.1f}".removesuffix(".0") + f" {unit}"


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
