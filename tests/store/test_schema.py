"""The schema: made, stamped, refused with a sentence that helps, and upgraded."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from support.stored_values import stored_task

from controller.core.commands import SaveTask
from controller.store.base import (
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreOutdated,
    StoreTooNew,
)
from controller.store.connection import connect
from controller.store.schema import MIGRATIONS, Upgrade, migrate, prepare, upgrade
from controller.store.sqlite import SqliteStore
from controller.store.tables import APPLICATION_ID, HEAD_REVISION, NO_REVISION


def schema_of(path: Path) -> list[tuple[str, ...]]:
    """Return every table and index as SQLite keeps them, apart from white space."""
    with closing(connect(path)) as connection:
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")
        return sorted(
            (kind, name, table, " ".join((sql or "").replace(",", " , ").split()))
            for kind, name, table, sql in rows
        )


def store_without_tables(data: Path) -> Path:
    """Make a store that no migration has touched."""
    data.mkdir()
    path = data / "mass.db"
    path.touch()
    with closing(connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # The header is written with the first page, which needs something to hold.
        connection.execute("CREATE TABLE seed (id INTEGER)")
        connection.execute("DROP TABLE seed")
    return path


async def store_of_revision(data: Path, revision: str) -> None:
    """Make a store and stamp it as another version would."""
    await SqliteStore.open(data).close()
    with closing(connect(data / "mass.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def test_the_tables_and_the_migrations_make_the_same_schema(tmp_path: Path) -> None:
    made, migrated = tmp_path / "made.db", tmp_path / "migrated.db"
    for path in (made, migrated):
        path.touch()
    with closing(connect(made)) as connection:
        prepare(connection, made)
    with closing(connect(migrated)) as connection:
        migrate(connection)
    assert schema_of(made) == schema_of(migrated)
    assert len(schema_of(made)) > 10


def test_the_last_migration_is_the_revision_of_the_tables() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert revisions[0] == HEAD_REVISION
    assert script.get_heads() == [HEAD_REVISION]
    # Older and newer are told by comparing them as text.
    numbers = [f"{number:04}" for number in range(len(revisions), 0, -1)]
    assert revisions == numbers


def test_a_new_store_is_made_without_alembic(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from controller.store.sqlite import SqliteStore\n"
        "store = SqliteStore.open(Path(sys.argv[1]))\n"
        "assert 'alembic' not in sys.modules and 'sqlalchemy.orm' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    subprocess.run(command, cwd=root, check=True, timeout=60)


class TestRefusing:
    async def test_an_older_store_is_refused_and_the_way_out_named(self, tmp_path: Path) -> None:
        await store_of_revision(tmp_path / "data", "0000")
        with pytest.raises(StoreOutdated) as refusal:
            SqliteStore.open(tmp_path / "data")
        message = str(refusal.value)
        assert f"has the schema 0000, this version needs {HEAD_REVISION}" in message
        assert f"mass db upgrade --data {tmp_path / 'data'}" in message

    async def test_a_newer_store_is_refused_and_both_versions_named(self, tmp_path: Path) -> None:
        await store_of_revision(tmp_path / "data", "0999")
        message = f"has the schema 0999, this version knows up to {HEAD_REVISION}"
        with pytest.raises(StoreTooNew, match=message):
            SqliteStore.open(tmp_path / "data")
        with pytest.raises(StoreTooNew, match=message):
            upgrade(tmp_path / "data")

    async def test_a_store_of_no_known_version_is_refused(self, tmp_path: Path) -> None:
        await store_of_revision(tmp_path / "data", "abc")
        with pytest.raises(StoreDamaged, match="has the schema 'abc', which is no number"):
            SqliteStore.open(tmp_path / "data")

    @pytest.mark.parametrize("application_id", [0, 17])
    def test_another_programs_database_is_refused_and_left_alone(
        self, tmp_path: Path, application_id: int
    ) -> None:
        path = tmp_path / "mass.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA application_id = {application_id}")
            connection.execute("CREATE TABLE birds (name TEXT)")
        before = path.read_bytes()
        with pytest.raises(StoreDamaged, match=r"mass\.db is not a store of MASS"):
            SqliteStore.open(tmp_path)
        with pytest.raises(StoreDamaged, match=r"mass\.db is not a store of MASS"):
            upgrade(tmp_path)
        assert path.read_bytes() == before

    def test_a_file_that_is_no_database_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "mass.db"
        path.write_text("shopping list: " + "bread, " * 1_000)
        before = path.read_bytes()
        with pytest.raises(StoreDamaged, match=r"mass\.db: file is not a database"):
            SqliteStore.open(tmp_path)
        assert path.read_bytes() == before

    def test_a_library_that_is_too_old_is_named_with_what_is_needed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite3, "sqlite_version", "3.26.0")
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
        message = r"this Python has SQLite 3\.26\.0, the store needs 3\.33\.0 or newer"
        with pytest.raises(StoreError, match=message):
            SqliteStore.open(tmp_path / "data")
        assert not (tmp_path / "data").exists()

    async def test_a_refused_directory_is_let_go(self, tmp_path: Path) -> None:
        path = tmp_path / "mass.db"
        path.write_text("shopping list: " + "bread, " * 1_000)
        with pytest.raises(StoreDamaged):
            SqliteStore.open(tmp_path)
        path.unlink()
        await SqliteStore.open(tmp_path).close()


class TestUpgrading:
    async def test_an_upgrade_copies_the_store_aside_first(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        store_without_tables(data)
        with pytest.raises(StoreOutdated, match=NO_REVISION):
            SqliteStore.open(data)
        copy = data / f"mass-{NO_REVISION}-1.db"
        assert upgrade(data) == Upgrade(NO_REVISION, HEAD_REVISION, copy)
        assert schema_of(copy) == []
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        store = SqliteStore.open(data)
        await store.commit([SaveTask(stored_task(1))])
        assert await store.task(1) == stored_task(1)
        await store.close()

    async def test_alerts_of_the_first_schema_are_kept(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        path = store_without_tables(data)
        with closing(connect(path)) as connection:
            migrate(connection, "0001")
            connection.execute(
                "INSERT INTO alerts VALUES ('high', 'n1', 'FIRING', '{}', '{}', 91.5, 1, 2, 0)"
            )
        assert upgrade(data).from_revision == "0001"
        store = SqliteStore.open(data)
        (alert,) = (await store.load()).alerts
        assert (alert.key, alert.value, alert.fired_at_ns) == (("high", "n1", 0), 91.5, 2)
        await store.close()

    async def test_a_current_store_is_left_alone(self, tmp_path: Path) -> None:
        await SqliteStore.open(tmp_path / "data").close()
        before = (tmp_path / "data" / "mass.db").read_bytes()
        assert upgrade(tmp_path / "data") == Upgrade(HEAD_REVISION, HEAD_REVISION, None)
        assert (tmp_path / "data" / "mass.db").read_bytes() == before

    def test_an_upgrade_that_fails_leaves_the_store_as_it_was(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        path = store_without_tables(data)
        with closing(connect(path)) as connection:
            # The migration makes tasks first, and stops here.
            connection.execute("CREATE TABLE nodes (id TEXT)")
        before = schema_of(path)
        for number in (1, 2):
            with pytest.raises(StoreError, match="table nodes already exists"):
                upgrade(data)
            assert schema_of(data / f"mass-{NO_REVISION}-{number}.db") == before
        assert schema_of(path) == before

    async def test_a_store_in_use_is_not_upgraded(self, tmp_path: Path) -> None:
        store = SqliteStore.open(tmp_path / "data")
        with pytest.raises(StoreBusy, match="in use by process"):
            upgrade(tmp_path / "data")
        await store.close()

    def test_a_directory_without_a_store_is_not_upgraded(self, tmp_path: Path) -> None:
        with pytest.raises(StoreDamaged, match="missing holds no store of MASS"):
            upgrade(tmp_path / "missing")
        assert not (tmp_path / "missing").exists()
