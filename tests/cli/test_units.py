"""Sizes and durations: what is read, what is refused, what is printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mass.units import DURATION_NS_MAX, SIZE_BYTES_MAX, size_words

from controller.cli.units import format_duration, parse_duration, parse_size
from controller.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 << 30),
        ("2Gi", 2 << 30),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        (" 2 GiB ", 2 << 30),
        ("2GB", 2_000_000_000),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("512MB", 512_000_000),
        ("100k", 100 << 10),
        ("100KB", 100_000),
        ("1.5GB", 1_500_000_000),
        ("1.5GiB", 3 << 29),
        (".5G", 1 << 29),
        ("0.1GB", 100_000_000),
        ("7B", 7),
        ("1TiB", 1 << 40),
        ("1PiB", SIZE_BYTES_MAX),
        ("1PB", 10**15),
    ],
)
def test_size_is_read_exactly(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("512", "memory '512' has no unit; write 512MiB or 512MB"),
        ("1.5", "memory '1.5' has no unit; write 1.5MiB or 1.5MB"),
        ("0GiB", "memory '0GiB' must be between 1B and 1PiB"),
        ("0.1B", "memory '0.1B' must be between 1B and 1PiB"),
        ("-1GiB", "memory '-1GiB' must be between 1B and 1PiB"),
        ("2PiB", "memory '2PiB' must be between 1B and 1PiB"),
        ("1.2PB", "memory '1.2PB' must be between 1B and 1PiB"),
        (
            "5XB",
            "memory '5XB' has the unknown unit 'XB'; write KiB, MiB, GiB, TiB "
            "(K, M, G, T are the same) or KB, MB, GB, TB",
        ),
        ("", "memory '' is not a size; write for example 2GiB or 512MiB"),
        ("much", "memory 'much' is not a size; write for example 2GiB or 512MiB"),
        ("1e9B", "memory '1e9B' is not a size; write for example 2GiB or 512MiB"),
        ("٣GiB", "memory '٣GiB' is not a size; write for example 2GiB or 512MiB"),
        (
            "9" * 5000 + "G",
            f"memory '{'9' * 40}' is not a size; write for example 2GiB or 512MiB",
        ),
    ],
)
def test_wrong_size_is_refused_with_a_sentence(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_size(text)
    assert caught.value.message == message


def test_message_names_what_the_size_is_for() -> None:
    with pytest.raises(InvalidRequest, match=r"^memory limit '3' has no unit"):
        parse_size("3", "memory limit")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1h 30m", 5400),
        ("2d", 172_800),
        ("01:30:00", 5400),
        ("1-02:03:04", 93_784),
        ("365d", 31_536_000),
    ],
)
def test_duration_is_read_exactly(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds * 1_000_000_000


NOT_A_DURATION = "write for example 90s, 10m, 1h30m, 01:30:00 or 1-02:03:04"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "time '10' has no unit; write 10s or 10m"),
        ("-10", "time '-10' has no unit; write 10s or 10m"),
        ("0s", "time '0s' must be above 0 and at most 365d"),
        ("366d", "time '366d' must be above 0 and at most 365d"),
        ("", f"time '' is not a duration; {NOT_A_DURATION}"),
        ("soon", f"time 'soon' is not a duration; {NOT_A_DURATION}"),
        ("10:00", f"time '10:00' is not a duration; {NOT_A_DURATION}"),
        ("01:60:00", f"time '01:60:00' is not a duration; {NOT_A_DURATION}"),
        ("5m!", f"time '5m!' is not a duration; {NOT_A_DURATION}"),
        ("30m1h", f"time '30m1h' is not a duration; {NOT_A_DURATION}"),
        ("1h1h", f"time '1h1h' is not a duration; {NOT_A_DURATION}"),
        ("1y", f"time '1y' is not a duration; {NOT_A_DURATION}"),
    ],
)
def test_wrong_duration_is_refused_with_a_sentence(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_duration(text)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0.25, "0.2s"),
        (59, "59s"),
        (59.7, "1m00s"),
        (605, "10m05s"),
        (5400, "1h30m"),
        (93_784, "1d02h"),
    ],
)
def test_duration_is_printed_with_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.text(max_size=60))
def test_any_text_is_a_size_within_the_bounds_or_refused(text: str) -> None:
    try:
        size_bytes = parse_size(text)
    except InvalidRequest:
        return
    assert 1 <= size_bytes <= SIZE_BYTES_MAX


@given(st.text(alphabet="0123456789.:-smhd ", max_size=60))
def test_any_text_is_a_duration_within_the_bounds_or_refused(text: str) -> None:
    try:
        duration_ns = parse_duration(text)
    except InvalidRequest:
        return
    assert 1 <= duration_ns <= DURATION_NS_MAX


@given(st.integers(min_value=1, max_value=SIZE_BYTES_MAX // 1024))
def test_printed_size_reads_back_within_its_rounding(kibibytes: int) -> None:
    size_bytes = kibibytes * 1024
    assert abs(parse_size(size_words(size_bytes)) - size_bytes) <= size_bytes * 0.051
