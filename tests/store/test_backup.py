"""Copies of a store: made beside a controller, put back without one, never over anything."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from support.stored_values import stored_submission, stored_task

from controller.core.commands import SaveSubmission, SaveTask
from controller.store import backup as backups
from controller.store.backup import IDS_SKIPPED, backup, restore
from controller.store.base import StoreBusy, StoreDamaged, StoreError, StoreTooNew
from controller.store.sqlite import SqliteStore
from controller.store.tables import HEAD_REVISION


async def make_store(directory: Path, *task_ids: int) -> None:
    store = SqliteStore.open(directory)
    await store.commit([SaveTask(stored_task(task_id)) for task_id in task_ids])
    await store.close()


async def ids_in(directory: Path) -> tuple[list[int], int]:
    """Return the ids of the open tasks of a store, and the next one."""
    store = SqliteStore.open(directory)
    stored = await store.load()
    await store.close()
    return [task.id for task in stored.tasks], stored.next_task_id


def set_revision(path: Path, revision: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_copy_of_a_store_in_use_holds_what_was_committed(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "data")
    await store.commit([SaveTask(stored_task(1)), SaveSubmission(stored_submission(1))])
    file = tmp_path / "copy.db"
    assert backup(tmp_path / "data", file) == file.stat().st_size
    await store.commit([SaveTask(stored_task(2))])
    await store.close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert names_in(tmp_path) == {"data", "copy.db"}, "a copy needs no file beside it"
    restored = restore(file, tmp_path / "other")
    assert (restored.revision, restored.outdated, restored.aside) == (HEAD_REVISION, False, None)
    assert await ids_in(tmp_path / "other") == ([1], 2 + IDS_SKIPPED)
    assert await ids_in(tmp_path / "data") == ([1, 2], 3)
    assert names_in(tmp_path) == {"data", "other", "copy.db"}, "reading a copy leaves no trace"


async def test_ids_are_skipped_again_at_each_restore(tmp_path: Path) -> None:
    await make_store(tmp_path / "data")
    backup(tmp_path / "data", tmp_path / "first.db")
    assert restore(tmp_path / "first.db", tmp_path / "b").next_task_id == 1 + IDS_SKIPPED
    backup(tmp_path / "b", tmp_path / "second.db")
    assert restore(tmp_path / "second.db", tmp_path / "c").next_task_id == 1 + 2 * IDS_SKIPPED


async def test_copy_is_never_written_over_anything(tmp_path: Path) -> None:
    await make_store(tmp_path / "data", 1)
    (tmp_path / "copy.db").write_text("precious")
    with pytest.raises(StoreError, match=r"copy\.db cannot be made: File exists"):
        backup(tmp_path / "data", tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "precious"
    with pytest.raises(StoreError, match=r"no/copy\.db cannot be made: No such file"):
        backup(tmp_path / "data", tmp_path / "no" / "copy.db")


def test_folder_without_a_store_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged, match="holds no store of MASS"):
        backup(tmp_path, tmp_path / "copy.db")
    assert names_in(tmp_path) == set()


async def test_restore_keeps_the_store_that_was_there(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "copy.db"
    await make_store(data, 1)
    backup(data, file)
    await make_store(data, 2)
    (data / "mass.db-wal").write_bytes(b"a log of the store before")
    with pytest.raises(StoreError, match="holds a store already; --force puts it aside"):
        restore(file, data)
    assert restore(file, data, force=True).aside == data / "mass-replaced-1.db"
    assert (data / "mass-replaced-1.db-wal").read_bytes() == b"a log of the store before"
    assert not (data / "mass.db-wal").exists()
    (data / "mass-replaced-1.db-wal").unlink()
    assert (await ids_in(data))[0] == [1]
    assert restore(file, data, force=True).aside == data / "mass-replaced-2.db"
    before = tmp_path / "before"
    before.mkdir()
    (data / "mass-replaced-1.db").rename(before / "mass.db")
    assert await ids_in(before) == ([1, 2], 3)


async def test_log_without_a_store_is_put_aside_too(tmp_path: Path) -> None:
    await make_store(tmp_path / "data", 1)
    backup(tmp_path / "data", tmp_path / "copy.db")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mass.db-wal").write_bytes(b"a log")
    with pytest.raises(StoreError, match="holds a store already"):
        restore(tmp_path / "copy.db", tmp_path / "new")
    restore(tmp_path / "copy.db", tmp_path / "new", force=True)
    assert names_in(tmp_path / "new") == {"lock", "mass.db", "mass-replaced-1.db-wal"}


async def test_store_in_use_is_not_replaced(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "data")
    backup(tmp_path / "data", tmp_path / "copy.db")
    with pytest.raises(StoreBusy, match=f"is in use by process {os.getpid()}"):
        restore(tmp_path / "copy.db", tmp_path / "data", force=True)
    await store.close()


async def test_what_cannot_be_used_is_refused_before_anything_is_moved(tmp_path: Path) -> None:
    data, good, bad = tmp_path / "data", tmp_path / "good.db", tmp_path / "bad.db"
    await make_store(data, *range(1, 200))
    backup(data, good)
    before, names = (data / "mass.db").read_bytes(), names_in(data)
    whole = good.read_bytes()

    def refused(kind: type[StoreError], match: str) -> None:
        with pytest.raises(kind, match=match):
            restore(bad, data, force=True)
        assert (data / "mass.db").read_bytes() == before
        assert names_in(data) == names

    refused(StoreError, r"bad\.db is no file")
    bad.write_bytes(b"no database at all, but long enough to be one" * 100)
    refused(StoreDamaged, r"bad\.db: file is not a database")
    with closing(sqlite3.connect(tmp_path / "birds.db")) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    bad.write_bytes((tmp_path / "birds.db").read_bytes())
    refused(StoreDamaged, r"bad\.db is not a store of MASS")
    middle = len(whole) // 2
    bad.write_bytes(whole[:middle] + b"\xff" * 8_192 + whole[middle + 8_192 :])
    refused(StoreDamaged, r"bad\.db(:| is damaged)")
    bad.write_bytes(whole)
    set_revision(bad, "0999")
    refused(StoreTooNew, "has the schema 0999")


async def test_older_copy_is_restored_and_wants_an_upgrade(tmp_path: Path) -> None:
    await make_store(tmp_path / "data", 1)
    backup(tmp_path / "data", tmp_path / "old.db")
    set_revision(tmp_path / "old.db", "0001")
    done = restore(tmp_path / "old.db", tmp_path / "new")
    assert (done.revision, done.outdated) == ("0001", True)


async def test_restore_that_was_cut_off_is_done_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, file = tmp_path / "data", tmp_path / "copy.db"
    await make_store(data, 1)
    backup(data, file)
    (data / "mass.db.restoring").write_bytes(b"half of one")
    restore(file, data, force=True)
    assert (await ids_in(data))[0] == [1]

    def fail(*_: object) -> None:
        raise StoreDamaged("cut off")

    monkeypatch.setattr(backups, "_check_whole", fail)
    with pytest.raises(StoreDamaged, match="cut off"):
        restore(file, data, force=True)
    assert "mass.db.restoring" not in names_in(data)
    with pytest.raises(StoreDamaged, match="cut off"):
        backup(data, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists(), "it would be taken for a good one"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root restores for another user")
async def test_root_restores_for_the_owner_of_the_folder(tmp_path: Path) -> None:
    await make_store(tmp_path / "data", 1)
    backup(tmp_path / "data", tmp_path / "copy.db")
    (tmp_path / "service").mkdir()
    os.chown(tmp_path / "service", 12_345, 12_346)
    restore(tmp_path / "copy.db", tmp_path / "service")
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (tmp_path / "service").iterdir()}
    assert owners == {(12_345, 12_346)}
