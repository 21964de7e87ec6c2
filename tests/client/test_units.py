"""Sizes, durations and addresses mean what they mean to `mass` itself."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import pytest
from mass import InvalidValue
from mass.address import controller_address
from mass.units import duration_ns, size_bytes

from controller.cli.address import trusted_address
from controller.cli.units import parse_duration, parse_size
from controller.core.errors import InvalidRequest

NUMBERS = ["0", "1", "1.5", ".5", "007", "-1", "+2", "1e3", "1,5", "", "9" * 39, "1048577"]
SIZE_UNITS = ["", "b", "K", "KiB", "kb", "Mi", "MB", " GiB", "g", "T", "PB", "P", "X", "ib", "µ"]
DURATIONS = [
    "500ms", "90s", "10m", "10min", "1h30m", "2d", "1.5h", "01:30:00", "1-02:03:04", "00:60:00",
    "0s", "1", "-5s", "+5", "1y", "365d", "366d", "s", "",
    " 5s ", "1h 5m", "5 s", "1:2:3", "9" * 50, "00:00:00", "1h-5m", "٣s",
]  # fmt: skip


def outcome(call: Any, text: str) -> object:
    """Return a call's value, or that it refuses."""
    try:
        return call(text)
    except (InvalidRequest, InvalidValue):
        return "refused"


def test_sizes_agree_with_the_command_line() -> None:
    texts = [number + unit for number, unit in itertools.product(NUMBERS, SIZE_UNITS)]
    ours = {text: outcome(size_bytes, text) for text in texts}
    assert ours == {text: outcome(parse_size, text) for text in texts}
    assert ours["1.5KiB"] == 1536
    assert ours["1.5"] == "refused"


def test_durations_agree_with_the_command_line() -> None:
    ours = {text: outcome(duration_ns, text) for text in DURATIONS}
    assert ours == {text: outcome(parse_duration, text) for text in DURATIONS}
    assert ours["1h30m"] == 5_400_000_000_000


def test_sizes_and_durations_may_be_numbers_of_python() -> None:
    assert size_bytes(4096) == 4096
    assert duration_ns(timedelta(hours=1, microseconds=1)) == 3_600_000_001_000
    refused: list[Any] = [0, -1, (1 << 50) + 1, True, 1.5, None]
    for value in refused:
        with pytest.raises(InvalidValue):
            size_bytes(value)
    durations: list[Any] = [timedelta(0), timedelta(days=366), 5, 1.5]
    for value in durations:
        with pytest.raises(InvalidValue):
            duration_ns(value)


def test_refused_size_names_thing_value_and_bound() -> None:
    with pytest.raises(InvalidValue, match=r"^mem '512' has no unit; write 512MiB or 512MB$"):
        size_bytes("512")
    with pytest.raises(InvalidValue, match=r"^mem_limit '2PiB' is above the bound of 1 PiB$"):
        size_bytes("2PiB", "mem_limit")
    with pytest.raises(ValueError, match="unknown unit 'X'"):
        size_bytes("2X")


def test_addresses_agree_with_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASS_INSECURE", raising=False)
    texts = [
        "127.0.0.1", "127.0.0.1:80", "localhost:1", "[::1]:99", "[::1]", "10.0.0.1:7461", "host",
        "host:0", "host:x", "host:65536", ":5", "a b:1", "127.9.9.9:7461", "http://localhost:1",
    ]  # fmt: skip
    for insecure in (False, True):

        def ours(text: str, insecure: bool = insecure) -> str:
            return controller_address(text, insecure)

        def theirs(text: str, insecure: bool = insecure) -> str:
            return trusted_address(text, insecure).target

        assert {t: outcome(ours, t) for t in texts} == {t: outcome(theirs, t) for t in texts}


def test_controller_is_found_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASS_CONTROLLER", raising=False)
    monkeypatch.delenv("MASS_INSECURE", raising=False)
    assert controller_address(None, None) == "127.0.0.1:7461"
    monkeypatch.setenv("MASS_CONTROLLER", "10.0.0.1:99")
    with pytest.raises(InvalidValue, match=r"10\.0\.0\.1:99 is not on this machine"):
        controller_address(None, None)
    monkeypatch.setenv("MASS_INSECURE", "1")
    assert controller_address(None, None) == "10.0.0.1:99"
    assert controller_address("localhost", None) == "localhost:7461"
