"""Copies of a store: made while a controller runs, put back when none does.

The rule: a copy is whole or not there, and what a restore replaces is put aside, never deleted.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from controller.store.base import StoreDamaged, StoreError, StoreTooNew
from controller.store.connection import connect, copy_to, errors_named, transaction
from controller.store.directory import DataDirectory
from controller.store.schema import revision_of
from controller.store.sqlite_writer import NEXT_TASK_ID
from controller.store.tables import HEAD_REVISION

# Tasks submitted after the copy was made are not in it, but agents may still report on them: their
# ids must not be given again. No copy is expected to be that many tasks old.
IDS_SKIPPED = 1_000_000
_ASIDE_MAX = 100
_BESIDE = ("", "-wal", "-shm")  # what SQLite keeps for one database


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    revision: str
    outdated: bool  # it is to be upgraded before a controller can use it
    aside: Path | None  # where the store that was there is now
    next_task_id: int


def backup(directory: Path, file: Path) -> int:
    """Write a copy of a data directory's store to a new file and return its size in bytes.

    A running controller goes on meanwhile. The copy is one file that needs none beside it.

    Raises:
        StoreDamaged: there is no store, or what is there cannot be read.
        StoreError: the file exists, or cannot be written.
    """
    source = directory / "mass.db"
    if not _is_file(source):
        raise StoreDamaged(f"{directory} holds no store of MASS", path=directory)
    with errors_named(source), closing(connect(source, read_only=True)) as connection:
        revision_of(connection, source)
        copy_to(connection, file)
    try:
        with errors_named(file), closing(connect(file)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            _check_whole(connection, file)
        _sync_directory(file.absolute().parent)
    except BaseException:
        file.unlink()  # it must not be taken for a good one
        raise
    return file.stat().st_size


def restore(file: Path, directory: Path, *, force: bool = False) -> Restored:
    """Put a copy in the place of a data directory's store.

    With `force` a store that is there is put aside under another name. The ids of the tasks to come
    begin IDS_SKIPPED above those of the copy.

    Raises:
        StoreBusy: a controller holds the directory.
        StoreDamaged: the file is no store of MASS, or is damaged.
        StoreTooNew: a newer version wrote it.
        StoreError: the directory has a store and `force` is not given, or cannot be written.
    """
    if not _is_file(file):
        raise StoreError(f"{file} is no file", path=file)
    claim = DataDirectory(directory)
    try:
        # A log without its database counts too: SQLite would play it into the restored one.
        parts = [Path(f"{claim.database}{ending}") for ending in _BESIDE]
        is_taken = any(part.exists() for part in parts)
        if is_taken and not force:
            raise StoreError(
                f"{directory} holds a store already; --force puts it aside", path=directory
            )
        fresh = directory / "mass.db.restoring"
        fresh.unlink(missing_ok=True)  # of a restore that did not come to its end
        try:
            revision, next_task_id = _copy_checked(file, fresh)
            aside = _put_aside(claim) if is_taken else None
            fresh.rename(claim.database)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        _give_to_owner(directory)
        _sync_directory(directory)
    except OSError as error:
        raise StoreError(f"{directory} cannot be changed: {error}", path=directory) from error
    finally:
        claim.release()
    return Restored(revision, revision < HEAD_REVISION, aside, next_task_id)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a folder that may not be looked into, as a service's own
        raise StoreError(f"{path} cannot be read: {error.strerror}", path=path) from error


def _copy_checked(file: Path, fresh: Path) -> tuple[str, int]:
    """Copy a backup, see that it can be used, and return its revision and the next task id."""
    with errors_named(file), closing(connect(file, read_only=True)) as connection:
        revision = revision_of(connection, file)
        if revision > HEAD_REVISION:
            raise StoreTooNew(
                f"{file} has the schema {revision}, this version knows up to {HEAD_REVISION}:"
                " use the version that wrote it",
                path=file,
            )
        copy_to(connection, fresh)
    with errors_named(fresh), closing(connect(fresh)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        _check_whole(connection, file)
        with transaction(connection):
            return revision, _skip_ids(connection)


def _skip_ids(connection: sqlite3.Connection) -> int:
    query = "SELECT max(value) FROM counters WHERE name = ?"
    (counted,) = connection.execute(query, (NEXT_TASK_ID,)).fetchone()
    (last,) = connection.execute("SELECT max(id) FROM tasks").fetchone()
    next_task_id = max(counted or 1, (last or 0) + 1) + IDS_SKIPPED
    put = "INSERT OR REPLACE INTO counters (name, value) VALUES (?, ?)"
    connection.execute(put, (NEXT_TASK_ID, next_task_id))
    return int(next_task_id)


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    (first,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if first != "ok":
        raise StoreDamaged(f"{path} is damaged: {first}", path=path)


def _put_aside(claim: DataDirectory) -> Path:
    """Rename the store that is there, with what SQLite keeps beside it, and return its new name."""
    for number in range(1, _ASIDE_MAX + 1):
        aside = claim.path / f"mass-replaced-{number}.db"
        if not any(Path(f"{aside}{ending}").exists() for ending in _BESIDE):
            break
    else:
        raise StoreError(
            f"{claim.path} has {_ASIDE_MAX} stores mass-replaced-*.db already; remove some"
        )
    for ending in _BESIDE:
        part = Path(f"{claim.database}{ending}")
        if part.exists():
            part.rename(f"{aside}{ending}")
    return aside


def _give_to_owner(directory: Path) -> None:
    """See that the directory's owner has the files in it, when root restores for a service."""
    if os.geteuid() != 0:
        return
    owner = directory.stat()
    for path in (directory / "mass.db", directory / "lock"):
        os.chown(path, owner.st_uid, owner.st_gid)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
