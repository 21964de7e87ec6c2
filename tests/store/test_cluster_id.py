"""A store has a name of its own, by which agents tell its task ids from those of another one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from controller.store.sqlite import SqliteStore


async def name_of(directory: Path) -> str:
    store = SqliteStore.open(directory)
    try:
        return (await store.load()).cluster_id
    finally:
        await store.close()


async def test_store_keeps_its_name_and_no_other_has_it(tmp_path: Path) -> None:
    first = await name_of(tmp_path / "a")
    assert len(first) == 16
    assert await name_of(tmp_path / "a") == first
    assert await name_of(tmp_path / "b") != first


async def test_copy_of_a_store_has_its_name(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "a")
    await store.backup(tmp_path / "copy.db")
    await store.close()
    (tmp_path / "b").mkdir()
    (tmp_path / "copy.db").rename(tmp_path / "b" / "mass.db")
    assert await name_of(tmp_path / "b") == await name_of(tmp_path / "a")


async def test_store_from_before_there_were_names_gets_one(tmp_path: Path) -> None:
    await name_of(tmp_path / "a")
    with closing(sqlite3.connect(tmp_path / "a" / "mass.db")) as connection, connection:
        connection.execute("DELETE FROM counters WHERE name = 'cluster_id'")
    found = await name_of(tmp_path / "a")
    assert len(found) == 16
    assert await name_of(tmp_path / "a") == found
