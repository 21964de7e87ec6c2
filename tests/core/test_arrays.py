"""The indexes of an array as people write them."""

from __future__ import annotations

import pytest

from controller.core.arrays import array_indexes
from controller.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        ("1-3", (1, 2, 3)),
        ("0", (0,)),
        ("0-2,9", (0, 1, 2, 9)),
        ("0-10:5", (0, 5, 10)),
        ("7, 3", (7, 3)),
    ],
)
def test_indexes_are_read_in_their_order(text: str, indexes: tuple[int, ...]) -> None:
    assert array_indexes(text, 100) == indexes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not understood at ''"),
        ("a-b", "is not understood at 'a-b'"),
        ("1-3%2", "is not understood at '1-3%2'"),
        ("5-1", "5-1 names no index"),
        ("1-9:0", "1-9:0 names no index"),
        ("1-3,2", "names index 2 twice"),
        ("0-100", "more than 100 elements"),
        ("0-999999999", "more than 100 elements"),
        ("0-60,100-160", "more than 100 elements"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words.replace("(", r"\(")):
        array_indexes(text, 100)
