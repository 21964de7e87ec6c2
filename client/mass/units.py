"""Reads sizes and durations as `mass` reads them on the command line.

The rule: text without a unit is refused, because no two schedulers agree on what it would mean.
`G`, `Gi` and `GiB` are 2^30, `GB` is 10^9, and the same for K, M, T and P; case does not matter.
"""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

from mass.errors import InvalidValue

SIZE_BYTES_MAX = 1 << 50  # 1 PiB
TEXT_LENGTH_MAX = 40  # no size or duration is longer; keeps the exact arithmetic below small
SECOND_NS = 1_000_000_000
DURATION_NS_MAX = 365 * 24 * 3600 * SECOND_NS

_SIZE_UNITS_BYTES: dict[str, int] = {"b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    for _suffix in ("", "i", "ib"):
        _SIZE_UNITS_BYTES[_letter + _suffix] = 1024**_power
    _SIZE_UNITS_BYTES[_letter + "b"] = 1000**_power

_DURATION_UNITS_NS = {
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "min": 60 * SECOND_NS,
    "h": 3600 * SECOND_NS,
    "d": 24 * 3600 * SECOND_NS,
}
_SIZE = re.compile(r"([+-]?)(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", re.ASCII)
_CLOCK = re.compile(r"(?:(\d+)-)?(\d{1,2}):([0-5]\d):([0-5]\d)", re.ASCII)


def size_bytes(value: str | int, what: str = "mem") -> int:
    """Return a size in bytes, 1 to 1 PiB, from text with a unit or from whole bytes.

    Example: `size_bytes("2GiB") == size_bytes(2 << 30)`. `what` names the thing in messages.

    Raises:
        InvalidValue: no unit, an unknown unit, not a size, below 1 byte or above 1 PiB.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidValue(f'{what} {value!r} must be text with a unit, "2GiB", or whole bytes')
    found = _size_of_text(value, what) if isinstance(value, str) else value
    if found < 1:
        raise InvalidValue(f"{what} '{value}' is below the bound of 1 byte")
    if found > SIZE_BYTES_MAX:
        raise InvalidValue(f"{what} '{value}' is above the bound of 1 PiB")
    return found


def duration_ns(value: str | timedelta, what: str = "time_limit") -> int:
    """Return a duration in nanoseconds, above 0 and at most 365 days.

    Text is written `500ms`, `90s`, `10m`, `1h30m`, `2d` or as a clock, `HH:MM:SS`, `D-HH:MM:SS`.

    Raises:
        InvalidValue: no unit, not a duration, not above 0, or above 365 days.
    """
    if isinstance(value, timedelta):
        found = value // timedelta(microseconds=1) * 1_000
    elif isinstance(value, str):
        found = _duration_of_text(value, what)
    else:
        raise InvalidValue(f'{what} {value!r} must be text with a unit, "90s", or a timedelta')
    if found < 1:
        raise InvalidValue(f"{what} '{value}' must be longer than 0")
    if found > DURATION_NS_MAX:
        raise InvalidValue(f"{what} '{value}' is above the bound of 365 days")
    return found


def _size_of_text(text: str, what: str) -> int:
    match = _SIZE.fullmatch(text.strip()) if len(text) <= TEXT_LENGTH_MAX else None
    if match is None:
        shown = text[:TEXT_LENGTH_MAX]
        raise InvalidValue(f"{what} '{shown}' is not a size; write for example 2GiB or 512MiB")
    sign, number, unit = match.groups()
    if not unit:
        raise InvalidValue(f"{what} '{text}' has no unit; write {number}MiB or {number}MB")
    factor = _SIZE_UNITS_BYTES.get(unit.lower())
    if factor is None:
        raise InvalidValue(
            f"{what} '{text}' has the unknown unit '{unit}'; write KiB, MiB, GiB, TiB or KB, MB, GB"
        )
    return int(Fraction(number) * factor) * (-1 if sign == "-" else 1)


def _duration_of_text(text: str, what: str) -> int:
    text = text.strip()
    if re.fullmatch(r"[+-]?\d+(?:\.\d+)?", text[:TEXT_LENGTH_MAX], re.ASCII):
        raise InvalidValue(f"{what} '{text[:TEXT_LENGTH_MAX]}' has no unit; write 90s or 10m")
    found = None
    if 0 < len(text) <= TEXT_LENGTH_MAX:
        found = _clock_ns(text) if ":" in text else _parts_ns(text)
    if found is None:
        raise InvalidValue(
            f"{what} '{text[:TEXT_LENGTH_MAX]}' is not a duration; write for example 90s, 10m, "
            "1h30m, 01:30:00 or 1-02:03:04"
        )
    return found


def _clock_ns(text: str) -> int | None:
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
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
    return int(total)
