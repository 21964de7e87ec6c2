"""What users have placed and took lately."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import task

from controller.core.accounts import USERS_KEPT_MAX, Accounts
from controller.core.model import Task

GIB = 1 << 30
SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
BEGIN_NS = 1_700_000_000 * SECOND_NS


def of(user: str, gib: int = 4) -> Task:
    made = task(1)
    return replace(made, user=user, memory_size_bytes=gib * GIB)


def passes(accounts: Accounts, begin_ns: int, days: float, half_life_ns: int = DAY_NS) -> int:
    """Let that many days go by in cycles of an hour, and return the instant."""
    for hour in range(int(days * 24) + 1):
        accounts.advance(begin_ns + hour * DAY_NS // 24, half_life_ns)
    return begin_ns + int(days * 24) * DAY_NS // 24


def test_past_use_counts_half_after_each_half_life() -> None:
    accounts = Accounts()
    accounts.add(of("ada"))
    now_ns = passes(accounts, BEGIN_NS, 20)
    assert accounts.shares()["ada"] == pytest.approx(8 * GIB, rel=1e-4)
    accounts.remove(of("ada"))
    for gib in (2, 1, 0.5):
        now_ns = passes(accounts, now_ns, 1)
        # The hour in which it ended counts as taken.
        assert accounts.shares()["ada"] == pytest.approx(gib * GIB, rel=0.05)
    assert accounts.task_counts() == {}


def test_use_between_two_cycles_is_not_missed() -> None:
    accounts = Accounts()
    accounts.advance(BEGIN_NS, DAY_NS)
    accounts.add(of("ada"))
    accounts.remove(of("ada"))
    accounts.advance(BEGIN_NS + 6 * SECOND_NS, DAY_NS)
    assert accounts.shares()["ada"] > 0


def test_without_a_half_life_only_what_is_placed_counts() -> None:
    accounts = Accounts()
    accounts.add(of("ada"))
    passes(accounts, BEGIN_NS, 1)
    passes(accounts, BEGIN_NS + DAY_NS, 1, half_life_ns=0)
    assert accounts.shares() == {"ada": 4 * GIB}
    accounts.remove(of("ada"))
    assert accounts.shares() == {}


def test_users_with_the_least_are_forgotten_beyond_the_bound() -> None:
    accounts = Accounts()
    accounts.advance(BEGIN_NS, DAY_NS)
    for number in range(USERS_KEPT_MAX + 5):
        accounts.add(of(f"u{number:04}", 1 + number))
        accounts.remove(of(f"u{number:04}", 1 + number))
    accounts.advance(BEGIN_NS + DAY_NS, DAY_NS)
    kept = accounts.shares()
    assert len(kept) == USERS_KEPT_MAX
    assert "u0004" not in kept
    assert "u0005" in kept


@given(st.permutations(["ada", "bob", "eve", "dan"]))
def test_shares_do_not_depend_on_the_order_of_users(users: list[str]) -> None:
    accounts = Accounts()
    accounts.advance(BEGIN_NS, DAY_NS)
    for user in users:
        accounts.add(of(user, len(user) + ord(user[0]) % 7))
    passes(accounts, BEGIN_NS, 0.5)
    sizes = {user: len(user) + ord(user[0]) % 7 for user in sorted(users)}
    assert list(accounts.shares()) == list(sizes)
    assert accounts.shares() == accounts.shares()
