"""The schema of an SQLite store: made when new, checked when there, upgraded when asked.

A new store is made from the tables and stamped by hand, as importing alembic takes a second.
"""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from controller.store.base import (
    StoreDamaged,
    StoreError,
    StoreOutdated,
    StoreTooNew,
)
from controller.store.connection import connect, copy_to, errors_named, transaction
from controller.store.directory import DataDirectory
from controller.store.statements import compiled
from controller.store.tables import APPLICATION_ID, HEAD_REVISION, METADATA, NO_REVISION

CLUSTER_ID = "cluster_id"  # among the counters, though it never counts
_CLUSTER_NAMED = "SELECT 1 FROM counters WHERE name = ?"
MIGRATIONS = Path(__file__).parent / "migrations"
_UPGRADE_COPIES_MAX = 100


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the schema in an empty file, or see that the one there is this version's.

    Raises:
        StoreOutdated: an older version wrote it.
        StoreTooNew: a newer version wrote it.
        StoreDamaged: it is not a store of MASS.
    """
    if _is_empty(connection):
        with transaction(connection):
            _create(connection)
            _name_cluster(connection)
        return
    revision = revision_of(connection, path)
    if revision < HEAD_REVISION:
        raise StoreOutdated(
            f"{path} has the schema {revision}, this version needs {HEAD_REVISION}:"
            f" stop the controller and run `mass db upgrade --data {path.parent}`",
            path=path,
            found=revision,
            needed=HEAD_REVISION,
        )
    if revision > HEAD_REVISION:
        raise _too_new(path, revision)
    # One that was made before stores had names.
    if not connection.execute(_CLUSTER_NAMED, (CLUSTER_ID,)).fetchone():
        with transaction(connection):
            _name_cluster(connection)


def _name_cluster(connection: sqlite3.Connection) -> None:
    """Draw the number by which agents tell this store from one that had the same task ids."""
    number = secrets.randbelow(1 << 63)
    connection.execute("INSERT INTO counters (name, value) VALUES (?, ?)", (CLUSTER_ID, number))


def revision_of(connection: sqlite3.Connection, path: Path) -> str:
    """Return the revision of a store's schema: four digits that grow, NO_REVISION for none.

    Raises:
        StoreDamaged: it is not a store of MASS.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreDamaged(f"{path} is not a store of MASS", path=path)
    query = "SELECT 1 FROM sqlite_schema WHERE name = 'alembic_version'"
    if connection.execute(query).fetchone() is None:
        return NO_REVISION
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    revision = NO_REVISION if row is None else str(row[0])
    if len(revision) != len(NO_REVISION) or not revision.isdecimal():
        raise StoreDamaged(f"{path} has the schema {revision!r}, which is no number", path=path)
    return revision


def _is_empty(connection: sqlite3.Connection) -> bool:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return bool(application_id == 0 and count == 0)


def _create(connection: sqlite3.Connection) -> None:
    for table in METADATA.sorted_tables:
        connection.execute(compiled(CreateTable(table)))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            connection.execute(compiled(CreateIndex(index)))
    connection.execute("INSERT INTO alembic_version VALUES (?)", (HEAD_REVISION,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade did."""

    from_revision: str
    to_revision: str
    copy: Path | None  # of the store as it was before; None when there was nothing to do


def upgrade(directory: Path) -> Upgrade:
    """Bring the store of a data directory to this version's schema, after copying it aside.

    Blocks for as long as it takes to copy the store and to rewrite what changes.

    Raises:
        StoreBusy: a controller holds the directory.
        StoreTooNew: a newer version wrote the store.
        StoreDamaged: there is no store, or it is none of MASS.
        StoreFull: there is no room for the copy or the upgrade.
    """
    if not (directory / "mass.db").is_file():
        raise StoreDamaged(f"{directory} holds no store of MASS", path=directory)
    claim = DataDirectory(directory)
    try:
        with errors_named(claim.database), closing(connect(claim.database)) as connection:
            return _upgrade(connection, claim)
    finally:
        claim.release()


def _upgrade(connection: sqlite3.Connection, claim: DataDirectory) -> Upgrade:
    before = revision_of(connection, claim.database)
    if before > HEAD_REVISION:
        raise _too_new(claim.database, before)
    if before == HEAD_REVISION:
        return Upgrade(before, before, None)
    copy = _free_name(claim.path, before)
    copy_to(connection, copy)
    # A migration may have to rebuild a table that others refer to.
    connection.execute("PRAGMA foreign_keys = OFF")
    migrate(connection)
    after = revision_of(connection, claim.database)
    assert after == HEAD_REVISION, f"the migrations end at {after}, the tables at {HEAD_REVISION}"
    return Upgrade(before, after, copy)


def migrate(connection: sqlite3.Connection, revision: str = HEAD_REVISION) -> None:
    """Run all migrations that a store lacks, up to a revision, as one transaction.

    Raises:
        sqlite3.Error: one failed; the store is as it was.
    """
    from alembic import command
    from alembic.config import Config

    engine = sa.create_engine("sqlite://", creator=lambda: connection, poolclass=sa.StaticPool)
    # The driver's own transactions are off, and would not hold changes of the schema anyway.
    sa.event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.begin() as begun:
            config.attributes["connection"] = begun
            command.upgrade(config, revision)
    except sa.exc.DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise error.orig from error
        raise


def _free_name(directory: Path, revision: str) -> Path:
    for number in range(1, _UPGRADE_COPIES_MAX + 1):
        path = directory / f"mass-{revision}-{number}.db"
        if not path.exists():
            return path
    raise StoreError(
        f"{directory} has {_UPGRADE_COPIES_MAX} copies mass-{revision}-*.db already; remove some"
    )


def _too_new(path: Path, revision: str) -> StoreTooNew:
    return StoreTooNew(
        f"{path} has the schema {revision}, this version knows up to {HEAD_REVISION}:"
        " use the version that wrote it",
        path=path,
        found=revision,
        needed=HEAD_REVISION,
    )
