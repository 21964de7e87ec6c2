"""Reads single values of the configuration, and shows them as they stand in a file.

A value keeps the place where it was written until it has been read, so that every refusal can name
it. Text from a flag or a variable may stand for a number; in a file a number is a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mass.address import Address, parse_address
from mass.errors import InvalidValue
from mass.units import duration_ns, duration_text, size_bytes, size_text

from controller.core.errors import InvalidRequest

SHOWN_LENGTH_MAX = 80  # of a value in a message

_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written, and where."""

    value: object
    name: str  # for messages: `--http`, `MASS_HTTP` or `FILE:3: http`
    origin: str  # for `config dump`: the same without the key
    is_text: bool = False  # from a flag or a variable, where everything is text
    folder: Path = Path()  # what a relative path is relative to

    def error(self, problem: str) -> InvalidRequest:
        """Return the error that this value has a problem."""
        shown = repr(self.value) if isinstance(self.value, str) else str(self.value)
        return InvalidRequest(f"{self.name} {shown[:SHOWN_LENGTH_MAX]} {problem}", key=self.name)


def read_text(given: Given) -> str:
    """Return text of one line. Raises InvalidRequest, as all that read here."""
    if not isinstance(given.value, str):
        raise given.error("is no text; write it in quotes")
    if not given.value or not given.value.isprintable():
        raise given.error("is empty or holds characters that cannot be printed")
    return given.value


def read_integer(given: Given, least: int, most: int) -> int:
    """Return a whole number from `least` to `most`."""
    value = given.value
    if given.is_text and isinstance(value, str) and re.fullmatch(r"\d{1,18}", value, re.ASCII):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise given.error("is no whole number")
    if not least <= value <= most:
        raise given.error(f"is outside {least} to {most}")
    return value


def read_number(given: Given, least: float, most: float) -> float:
    """Return a number from `least` to `most`."""
    value = given.value
    if given.is_text and isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise given.error("is no number")
    if not least <= value <= most:
        raise given.error(f"is outside {least:g} to {most:g}")
    return float(value)


def read_choice(given: Given, words: Sequence[str]) -> str:
    """Return one of some words."""
    value = given.value
    if not isinstance(value, str) or value not in words:
        raise given.error(f"is none of {', '.join(words)}")
    return value


def read_boolean(given: Given) -> bool:
    """Return a truth value."""
    value = given.value
    if given.is_text and isinstance(value, str):
        value = _WORDS.get(value.lower())
    if not isinstance(value, bool):
        raise given.error("is neither true nor false")
    return value


def read_size(given: Given) -> int:
    """Return a size in bytes, 1 byte to 1 PiB: G, Gi and GiB are 2^30, GB is 10^9."""
    if not isinstance(given.value, str):
        raise given.error('is no size with a unit; write for example "512MiB" or "2GiB"')
    try:
        return size_bytes(given.value, given.name)
    except InvalidValue as error:
        raise InvalidRequest(error.message, key=given.name) from error


def read_duration(given: Given, least_ns: int, most_ns: int) -> int:
    """Return a duration in nanoseconds: 500ms, 30s, 1h30m, 30d."""
    if not isinstance(given.value, str):
        raise given.error('is no duration with a unit; write for example "500ms", "1h30m" or "30d"')
    try:
        return duration_ns(given.value, given.name, least_ns, most_ns)
    except InvalidValue as error:
        raise InvalidRequest(error.message, key=given.name) from error


def read_path(given: Given) -> Path:
    """Return a path; `~` is the user's home."""
    if isinstance(given.value, Path):
        return given.value
    try:
        return given.folder / Path(read_text(given)).expanduser()
    except RuntimeError as error:
        raise given.error("begins with the home of nobody known") from error


def read_paths(given: Given) -> tuple[Path, ...]:
    """Return a list of paths; in a variable `:` stands between them."""
    value = given.value
    if given.is_text and isinstance(value, str):
        value = [part for part in value.split(":") if part]
    if not isinstance(value, list | tuple):
        raise given.error('is no list; write for example ["rules.yaml"]')
    return tuple(
        read_path(Given(part, given.name, given.origin, given.is_text, given.folder))
        for part in value
    )


def read_address(given: Given) -> str:
    """Return HOST:PORT as it was written; IPv6 is in brackets."""
    text = read_text(given)
    try:
        split_address(given.name, text)
    except InvalidRequest as error:
        raise given.error("is no HOST:PORT with a port of 0 to 65535") from error
    return text


def split_address(name: str, address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT.

    Raises:
        InvalidRequest: it is no such address.
    """
    try:
        found = parse_address(address, name, default_port=None, port_min=0)
    except InvalidValue as error:
        raise InvalidRequest(
            f"{name} '{address}' is no HOST:PORT with a port of 0 to 65535"
        ) from error
    return found.host, found.port


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach the address."""
    return Address(host, 0).is_loopback


def show_size(value_bytes: object) -> str | None:
    """Return a size as a file has it, exactly; None for 0, which nobody can write."""
    assert isinstance(value_bytes, int)
    return size_text(value_bytes) if value_bytes else None


def show_duration(value_ns: object) -> str:
    """Return a duration as a file has it, in whole milliseconds: `1h30m`."""
    assert isinstance(value_ns, int)
    return duration_text(value_ns)
