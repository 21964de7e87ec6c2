"""What `--constraint` says of a node, and what is said when it cannot be read."""

from __future__ import annotations

import pytest

from controller.core.constraint import NodeFacts, parse_constraint
from controller.core.errors import InvalidRequest

NODE = NodeFacts("n1", {"disk": "ssd", "rack": "12", "fast": ""}, 8.0, 2, 64 << 30)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("disk = ssd", True),
        ("disk=ssd and cpus>=8", True),
        ("disk == hdd", False),
        ("disk != hdd", True),
        ("colour = red", False),
        ("colour != red", True),
        ("fast", True),
        ("slow", False),
        ("not slow", True),
        ("label = fast", True),
        ("label = slow", False),
        ("node = n1", True),
        ("node in (n2, 'n1')", True),
        ("node not in (n2, n3)", True),
        ("disk in (hdd, tape)", False),
        ("rack >= 9", True),
        ("rack < 9", False),
        ("colour > 1", False),
        ("memory >= 64GiB", True),
        ("memory > 64GiB", False),
        ("memory > 64GB", True),
        ("gpus = 2 and cpus < 9", True),
        ("gpus != 2", False),
        ("slow or fast and disk = ssd", True),
        ("(slow or fast) and disk = hdd", False),
        ("not (slow or fast)", False),
        ("cpus in (4, 8)", True),
    ],
)
def test_constraint_holds_or_not(text: str, holds: bool) -> None:
    assert parse_constraint(text)(NODE) is holds


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("cpus >> 3", "a value is expected", 6),
        ("cpus >= many", "cpus is compared with a number", 8),
        ("cpus", "a comparison of cpus is expected", 4),
        ("disk = ssd cpus = 8", "'and', 'or' or the end is expected", 11),
        ("disk = ssd and", "is expected here", 14),
        ("(disk = ssd", "')' is expected", 11),
        ("disk ? ssd", "this is not understood", 5),
        ("disk < ssd", "'<' needs numbers", 7),
        ("disk in ssd", "'(' is expected", 8),
        ("disk in (ssd tape)", "',' or ')' is expected", 13),
        ("disk not ssd", "'in' is expected", 9),
        ("node > n1", "'>' needs numbers", 7),
        ("and fast", "a name is expected", 0),
    ],
)
def test_what_cannot_be_read_is_shown_by_its_place(text: str, what: str, place: int) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_constraint(text)
    first, shown, caret = refusal.value.message.split("\n")
    assert what in first
    assert shown == f"  {text}"
    assert caret.index("^") == place + 2


def test_nesting_has_a_bound() -> None:
    with pytest.raises(InvalidRequest, match="nested more than 50 deep"):
        parse_constraint("(" * 60 + "fast" + ")" * 60)
