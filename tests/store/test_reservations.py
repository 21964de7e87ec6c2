"""Reservations and forgotten nodes, kept alike by both stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.stored_values import stored_node, stored_reservation
from support.stores import MemoryDisk, MemoryStore

from controller.core.commands import ForgetNode, ForgetReservation, SaveNode, SaveReservation
from controller.store.base import Store
from controller.store.sqlite import SqliteStore

Reopen = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Close the store that was opened last, if any, and open it again."""
    disk, opened = MemoryDisk(), list[Store]()

    async def again() -> Store:
        if opened:
            await opened.pop().close()
        opened.append(
            SqliteStore.open(tmp_path / "data") if request.param == "sqlite" else MemoryStore(disk)
        )
        return opened[-1]

    return again


async def test_reservations_outlive_a_restart_until_they_are_forgotten(reopen: Reopen) -> None:
    store = await reopen()
    first, second = stored_reservation(1), stored_reservation(2, "n2")
    await store.commit([SaveReservation(second), SaveReservation(first)])
    renewed = replace(first, expires_at_ns=99)
    await store.commit([SaveReservation(renewed)])
    stored = await (await reopen()).load()
    assert stored.reservations == (renewed, second)
    assert stored.next_reservation_id == 3
    store = await reopen()
    await store.commit([ForgetReservation(2), ForgetReservation(77)])
    assert (await store.load()).reservations == (renewed,)
    await store.close()


async def test_id_of_a_forgotten_reservation_is_never_given_again(reopen: Reopen) -> None:
    store = await reopen()
    await store.commit([SaveReservation(stored_reservation(5))])
    await store.commit([ForgetReservation(5)])
    store = await reopen()
    stored = await store.load()
    assert (stored.reservations, stored.next_reservation_id) == ((), 6)
    await store.close()


async def test_forgotten_node_is_gone_and_may_come_back(reopen: Reopen) -> None:
    store = await reopen()
    await store.commit([SaveNode(stored_node("a")), SaveNode(stored_node("b"))])
    await store.commit([ForgetNode("a"), ForgetNode("nobody")])
    store = await reopen()
    assert [node.id for node in (await store.load()).nodes] == ["b"]
    await store.commit([SaveNode(stored_node("a"))])
    await store.commit([ForgetNode("a"), SaveNode(stored_node("a"))])
    assert [node.id for node in (await store.load()).nodes] == ["a", "b"]
    await store.close()
