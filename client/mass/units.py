"""Reads sizes and durations as people write them, and tells them in sentences and tables.

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
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d+)-)?(\d{1,2}):([0-5]\d):([0-5]\d)", re.ASCII)


def size_bytes(
    value: str | int,
    what: str = "mem",
    least_bytes: int = 1,
    most_bytes: int = SIZE_BYTES_MAX,
) -> int:
    """Return a size in bytes, by default 1 to 1 PiB, from text with a unit or from whole bytes.

    Example: `size_bytes("2GiB") == size_bytes(2 << 30)`. `what` names the thing in messages.

    Raises:
        InvalidValue: no unit, an unknown unit, not a size, or outside the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidValue(f'{what} {value!r} must be text with a unit, "2GiB", or whole bytes')
    found = _size_of_text(value, what) if isinstance(value, str) else value
    if not least_bytes <= found <= most_bytes:
        bounds = f"between {size_text(least_bytes)} and {size_text(most_bytes)}"
        raise InvalidValue(f"{what} '{value}' must be {bounds}", value=value)
    return found


def duration_ns(
    value: str | timedelta,
    what: str = "time_limit",
    least_ns: int = 1,
    most_ns: int = DURATION_NS_MAX,
) -> int:
    """Return a duration in nanoseconds, by default above 0 and at most 365 days.

    Text is written `500ms`, `90s`, `10m`, `1h30m`, `2d` or as a clock, `HH:MM:SS`, `D-HH:MM:SS`.

    Raises:
        InvalidValue: no unit, not a duration, or outside the bounds.
    """
    if isinstance(value, timedelta):
        found = value // timedelta(microseconds=1) * 1_000
    elif isinstance(value, str):
        found = _duration_of_text(value, what)
    else:
        raise InvalidValue(f'{what} {value!r} must be text with a unit, "90s", or a timedelta')
    if not least_ns <= found <= most_ns:
        most = duration_text(most_ns)
        bounds = f"above 0 and at most {most}"
        if least_ns > 1:
            bounds = f"between {duration_text(least_ns)} and {most}"
        raise InvalidValue(f"{what} '{value}' must be {bounds}", value=value)
    return found


def size_text(value_bytes: int) -> str:
    """Return a size as `size_bytes` reads it, exactly, in the largest unit that can: `512MiB`."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        unit_bytes = _SIZE_UNITS_BYTES[unit.lower()]
        if value_bytes and value_bytes % unit_bytes == 0:
            return f"{value_bytes // unit_bytes}{unit}"
    return f"{value_bytes}B"


def size_words(value_bytes: float) -> str:
    """Return a size as people read it, with at most one decimal, for example `1.5 GiB`."""
    value, unit = float(value_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        # 1,023.95 would round to 1024.0 of the smaller unit.
        if abs(value) < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def told_apart(*sizes_bytes: int) -> list[str]:
    """Return sizes as people read them; with their bytes where different ones would read alike."""
    words = [size_words(size) for size in sizes_bytes]
    if len(set(words)) == len(set(sizes_bytes)):
        return words
    return [f"{word} ({size:,} bytes)" for word, size in zip(words, sizes_bytes, strict=True)]


def duration_text(value_ns: int) -> str:
    """Return a duration as `duration_ns` reads it, in whole milliseconds: `1h30m`."""
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, value_ns = divmod(value_ns, _DURATION_UNITS_NS[unit])
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or "0s"


def _size_of_text(text: str, what: str) -> int:
    shown = text[:TEXT_LENGTH_MAX]
    match = _SIZE.fullmatch(text.strip()) if len(text) <= TEXT_LENGTH_MAX else None
    if match is None:
        raise InvalidValue(
            f"{what} '{shown}' is not a size; write for example 2GiB or 512MiB", value=shown
        )
    sign, number, unit = match.groups()
    if not unit:
        raise InvalidValue(
            f"{what} '{shown}' has no unit; write {number}MiB or {number}MB", value=shown
        )
    factor = _SIZE_UNITS_BYTES.get(unit.lower())
    if factor is None:
        raise InvalidValue(
            f"{what} '{shown}' has the unknown unit '{unit}'; "
            "write KiB, MiB, GiB, TiB (K, M, G, T are the same) or KB, MB, GB, TB",
            value=shown,
        )
    return int(Fraction(number) * factor) * (-1 if sign == "-" else 1)


def _duration_of_text(text: str, what: str) -> int:
    text = text.strip()
    shown = text[:TEXT_LENGTH_MAX]
    if _NUMBER.fullmatch(shown):
        number = shown.lstrip("+-")
        raise InvalidValue(
            f"{what} '{shown}' has no unit; write {number}s or {number}m", value=shown
        )
    found = None
    if 0 < len(text) <= TEXT_LENGTH_MAX:
        found = _clock_ns(text) if ":" in text else _parts_ns(text)
    if found is None:
        raise InvalidValue(
            f"{what} '{shown}' is not a duration; write for example 90s, 10m, 1h30m, 01:30:00 "
            "or 1-02:03:04",
            value=shown,
        )
    return found


def _clock_ns(text: str) -> int | None:
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * SECOND_NS


def _parts_ns(text: str) -> int | None:
    """Return the sum of the parts, which stand from large to small, each unit once."""
    total = Fraction(0)
    position = 0
    unit_ns = DURATION_NS_MAX
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if match is None or not 0 < _DURATION_UNITS_NS.get(match[2].lower(), 0) < unit_ns:
            return None
        unit_ns = _DURATION_UNITS_NS[match[2].lower()]
        total += Fraction(match[1]) * unit_ns
        position = match.end()
    return int(total)
