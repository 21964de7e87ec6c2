"""Sizes, durations and addresses: what is read, what is refused, how they are written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from mass import InvalidValue
from mass.address import controller_address
from mass.units import (
    SIZE_BYTES_MAX,
    duration_ns,
    duration_text,
    size_bytes,
    size_text,
    size_words,
    told_apart,
)

from controller.cli.address import trusted_address
from controller.core.errors import InvalidRequest


def accepts(call: Any, text: str) -> bool:
    """Return whether a call takes a text."""
    try:
        call(text)
    except InvalidValue:
        return False
    return True


def test_sizes_are_taken_with_a_unit_alone() -> None:
    numbers = ["1", "1.5", ".5", "007", "+2"]
    units = ["K", "KiB", "kb", "Mi", "MB", " GiB", "g", "T", "GB"]
    refused = ["0", "-1", "1e3", "1,5", "", "9" * 39]
    assert all(accepts(size_bytes, number + unit) for number in numbers for unit in units)
    assert not any(accepts(size_bytes, number + unit) for number in refused for unit in units)
    assert not any(accepts(size_bytes, "1" + unit) for unit in ["", "X", "ib", "µ"])
    assert size_bytes("1.5KiB") == 1536


def test_written_size_and_duration_read_back() -> None:
    for found in (1, 1023, 1024, 1536, 1 << 30, 3 << 40, 1 << 50):
        assert size_bytes(size_text(found)) == found
    for milliseconds in (1, 500, 60_000, 93_784_005, 365 * 86_400_000):
        assert duration_ns(duration_text(milliseconds * 1_000_000)) == milliseconds * 1_000_000
    assert (size_text(0), size_text(1 << 49), duration_text(0)) == ("0B", "512TiB", "0s")
    assert duration_text(5_400_000_000_000) == "1h30m"


def test_bounds_of_the_caller_are_the_ones_in_the_sentence() -> None:
    with pytest.raises(InvalidValue, match=r"^pool '1K' must be between 16MiB and 1PiB$"):
        size_bytes("1K", "pool", 16 << 20)
    with pytest.raises(InvalidValue, match=r"^sample '2h' must be between 50ms and 1m$"):
        duration_ns("2h", "sample", 50_000_000, 60_000_000_000)


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
    with pytest.raises(InvalidValue, match=r"^mem_limit '2PiB' must be between 1B and 1PiB$"):
        size_bytes("2PiB", "mem_limit")
    with pytest.raises(ValueError, match="unknown unit 'X'"):
        size_bytes("2X")


@pytest.mark.parametrize(
    ("value_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (256 << 20, "256 MiB"),
        (3 << 29, "1.5 GiB"),
        (-(1 << 30), "-1 GiB"),
        (SIZE_BYTES_MAX, "1 PiB"),
    ],
)
def test_size_is_told_in_binary_units(value_bytes: int, text: str) -> None:
    assert size_words(value_bytes) == text


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ((1 << 20, 2 << 20), ["1 MiB", "2 MiB"]),
        ((0, 1 << 50), ["0 B", "1 PiB"]),
        ((1 << 30, 1 << 30), ["1 GiB", "1 GiB"]),
        (
            (1 << 30, (1 << 30) + 1),
            ["1 GiB (1,073,741,824 bytes)", "1 GiB (1,073,741,825 bytes)"],
        ),
    ],
)
def test_sizes_are_told_in_words_and_in_bytes_only_where_words_are_alike(
    sizes: tuple[int, ...], told: list[str]
) -> None:
    assert told_apart(*sizes) == told


def outcome(call: Any, text: str) -> object:
    """Return a call's value, or that it refuses."""
    try:
        return call(text)
    except (InvalidRequest, InvalidValue):
        return "refused"


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
