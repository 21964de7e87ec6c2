"""Connections to an SQLite file: how they are opened, how they fail, what a transaction is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from controller.store.base import StoreBusy, StoreDamaged, StoreError, StoreFull

BUSY_TIMEOUT_MS = 5_000  # how long another process, such as a sqlite3 shell, may hold us up

# The first with UPDATE ... FROM; a statement may have 32,766 values since the one before.
LIBRARY_VERSION_MIN = (3, 33, 0)

_KINDS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_FULL: StoreFull,
    sqlite3.SQLITE_BUSY: StoreBusy,
    sqlite3.SQLITE_LOCKED: StoreBusy,
    sqlite3.SQLITE_CORRUPT: StoreDamaged,
    sqlite3.SQLITE_NOTADB: StoreDamaged,
}


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the store's, which name the file."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte is the kind; what is above it says more, for people who read the name.
        kind = _KINDS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, StoreError)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        raise kind(f"{path}: {error} ({name})", path=path, sqlite=name) from error


def check_library() -> None:
    """See that SQLite itself, which comes with the system, is new enough.

    Raises:
        StoreError: it is older than LIBRARY_VERSION_MIN.
    """
    if sqlite3.sqlite_version_info < LIBRARY_VERSION_MIN:
        needed = ".".join(map(str, LIBRARY_VERSION_MIN))
        raise StoreError(
            f"this Python has SQLite {sqlite3.sqlite_version}, the store needs {needed} or newer",
            found=sqlite3.sqlite_version,
            needed=needed,
        )


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection that any one thread at a time may use; transactions are written out."""
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_MS / 1_000,
    )
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Keep all that is done inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, such as a full disk.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def copy_to(connection: sqlite3.Connection, path: Path) -> None:
    """Write a copy of a store to a new file that only its owner can read.

    Raises:
        StoreError: the file exists, or its directory cannot be written.
    """
    try:
        path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}", path=path) from error
    try:
        with errors_named(path), closing(connect(path)) as target:
            connection.backup(target)
    except BaseException:
        path.unlink()  # half a copy must not be taken for one
        raise
