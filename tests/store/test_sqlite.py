"""What only the store in an SQLite file promises: processes that die, disks that fill, readers."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from support.stored_values import (
    stored_alert,
    stored_attempt,
    stored_node,
    stored_submission,
    stored_task,
)

from controller.core.commands import (
    Save,
    SaveAlert,
    SaveAttempt,
    SaveNode,
    SaveOutput,
    SaveSubmission,
    SaveTask,
)
from controller.core.limits import Limits
from controller.core.model import OutputStream, TaskState
from controller.store import statements
from controller.store.base import StoreBusy, StoreDamaged, StoreError, StoreFull
from controller.store.connection import connect
from controller.store.sqlite import SqliteStore

NO_STATES: frozenset[TaskState] = frozenset()

# Commits turns of a task, its attempt and its output, and says each that is durable.
COMMITTER = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from controller.core.commands import SaveAttempt, SaveOutput, SaveSubmission, SaveTask
from controller.core.model import OutputStream
from controller.store.sqlite import SqliteStore
from support.stored_values import stored_attempt, stored_task

async def main():
    store = SqliteStore.open(Path(sys.argv[1]))
    for number in range(1, 1_000_000):
        await store.commit([
            SaveTask(stored_task(number)),
            SaveAttempt(stored_attempt(number)),
            SaveOutput(number, 1, OutputStream.STDOUT, b"x" * 10_000),
        ])
        print(number, flush=True)

asyncio.run(main())
"""
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def store(data: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore.open(data)
    yield store
    await store.close()


@contextmanager
def other_process(data: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the committer; it is killed at the end, if it was not before."""
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    with subprocess.Popen(
        [sys.executable, "-c", COMMITTER, str(data), *paths], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], count: int | None = None) -> list[int]:
    """Read the numbers of that many durable commits, or all that are left."""
    assert process.stdout is not None
    if count is None:
        return [int(line) for line in process.stdout if line.endswith("\n")]
    return [int(process.stdout.readline()) for _ in range(count)]


@contextmanager
def no_more_room(store: SqliteStore) -> Iterator[None]:
    """Keep the file from growing, as a full disk does."""
    connection = store._connections[0]
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (before,) = connection.execute("PRAGMA max_page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA max_page_count = {before}")


class TestDying:
    @pytest.mark.parametrize("commits", [1, 40])
    async def test_a_killed_process_leaves_exactly_its_whole_commits(
        self, data: Path, commits: int
    ) -> None:
        with other_process(data) as process:
            durable = said(process, commits)
            process.send_signal(signal.SIGKILL)
            durable += said(process)
            process.wait()
        store = SqliteStore.open(data)
        stored = [task.id for task in (await store.load()).tasks]
        # The last commit may have become durable before the process could say so.
        assert len(stored) - len(durable) in (0, 1)
        assert stored == list(range(1, len(stored) + 1))
        for task_id in stored:
            assert await store.attempts(task_id) == [stored_attempt(task_id)]
            output = await store.output(task_id, 1, OutputStream.STDOUT)
            assert output == b"x" * 10_000
        assert await store.attempts(stored[-1] + 1) == []
        await store.close()

    async def test_a_second_process_is_refused_until_the_first_is_gone(self, data: Path) -> None:
        with other_process(data) as process:
            said(process, 1)
            with pytest.raises(StoreBusy, match=f"in use by process {process.pid}$"):
                SqliteStore.open(data)
            process.kill()
            process.wait()
        await SqliteStore.open(data).close()

    async def test_the_same_process_is_refused_too(self, data: Path, store: SqliteStore) -> None:
        with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
            SqliteStore.open(data)
        await store.commit([SaveTask(stored_task(1))])
        assert await store.task(1) == stored_task(1)

    def test_every_commit_is_synced(self, store: SqliteStore) -> None:
        connection = store._connections[0]
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


class TestFailing:
    async def test_a_full_disk_refuses_the_commit_and_keeps_nothing_of_it(
        self, store: SqliteStore
    ) -> None:
        await store.commit([SaveTask(stored_task(1))])
        before = await store.load()
        saves: list[Save] = [
            SaveTask(replace(stored_task(1), state=TaskState.RUNNING)),
            SaveTask(stored_task(2)),
            SaveNode(stored_node("n1")),
            SaveOutput(2, 1, OutputStream.STDOUT, b"x" * 65_536),
        ]
        with no_more_room(store):
            with pytest.raises(StoreFull, match=r"mass\.db: .*full \(SQLITE_FULL\)"):
                await store.commit(saves)
            assert await store.load() == before
        await store.commit(saves)
        stored = await store.load()
        assert [task.state for task in stored.tasks] == [TaskState.RUNNING, TaskState.PENDING]
        assert stored.nodes == (stored_node("n1"),)

    async def test_a_value_that_no_column_holds_undoes_the_turn(self, store: SqliteStore) -> None:
        await store.commit([SaveTask(stored_task(1))])
        before = await store.load()
        too_large = replace(stored_node("n2"), memory_total_bytes=1 << 63)
        with pytest.raises(OverflowError):
            await store.commit(
                [SaveTask(stored_task(2)), SaveNode(stored_node("n1")), SaveNode(too_large)]
            )
        assert await store.load() == before
        # The task that was rolled back is new again.
        await store.commit([SaveTask(stored_task(2))])
        assert await store.task(2) == stored_task(2)

    async def test_a_foreign_writer_makes_the_store_busy(
        self, store: SqliteStore, data: Path
    ) -> None:
        store._connections[0].execute("PRAGMA busy_timeout = 1")
        with closing(connect(data / "mass.db")) as shell:
            shell.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusy, match="SQLITE_BUSY"):
                await store.commit([SaveTask(stored_task(1))])
            shell.execute("ROLLBACK")
        await store.commit([SaveTask(stored_task(1))])
        assert await store.task(1) == stored_task(1)

    @pytest.mark.parametrize(
        ("damage", "thing"),
        [
            ("UPDATE task_specs SET spec = '{'", "task 1"),
            ("DELETE FROM task_specs", "task 1"),
            ("UPDATE tasks SET state = 'DREAMING'", "task 1"),
            ("UPDATE nodes SET scheduling = 'ASLEEP'", "node n1"),
            ("UPDATE alerts SET labels = ''", "alert high of node n1"),
        ],
    )
    async def test_a_row_that_cannot_be_read_is_named_and_never_left_out(
        self, data: Path, store: SqliteStore, damage: str, thing: str
    ) -> None:
        await store.commit(
            [
                SaveTask(stored_task(1)),
                SaveNode(stored_node("n1")),
                SaveAlert(stored_alert("high", "n1")),
            ]
        )
        with closing(connect(data / "mass.db")) as shell:
            shell.execute(damage)
        with pytest.raises(StoreDamaged, match=f"^{thing} in the store cannot be read"):
            await store.load()

    async def test_a_file_with_damaged_pages_is_refused_as_damaged(self, data: Path) -> None:
        store = SqliteStore.open(data)
        await store.commit([SaveTask(stored_task(number)) for number in range(1, 200)])
        await store.close()
        with (data / "mass.db").open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (os.path.getsize(file.name) - 4096))
        with pytest.raises(StoreDamaged, match="SQLITE_CORRUPT"):
            SqliteStore.open(data)


class TestReadersAndWriters:
    async def test_reads_do_not_wait_for_the_writer(self, store: SqliteStore) -> None:
        await store.commit([SaveTask(stored_task(1))])
        done = Event()
        writing = asyncio.create_task(store._write_thread.run(done.wait))
        try:
            assert await store.task(1) == stored_task(1)
            assert not writing.done()
        finally:
            done.set()
            await writing

    async def test_commits_go_on_while_history_is_pruned(self, store: SqliteStore) -> None:
        ended = [stored_task(n, TaskState.SUCCEEDED, ended_at_ns=n) for n in range(1, 2_001)]
        await store.commit([SaveTask(task) for task in ended])
        pruning = asyncio.create_task(store.prune(ended_before_ns=10_000, tasks_max=10))
        for number in range(2_001, 2_006):
            await store.commit([SaveTask(stored_task(number))])
        assert not pruning.done()
        assert await pruning == 2_000

    async def test_pruning_removes_all_rows_of_old_submissions(self, data: Path) -> None:
        store = SqliteStore.open(data, Limits(submissions_kept=3))
        # More than two batches.
        submissions = [stored_submission(number) for number in range(1, 2_501)]
        await store.commit([SaveSubmission(submission) for submission in submissions])
        await store.prune(ended_before_ns=0, tasks_max=10)
        query = "SELECT first_task_id FROM submissions ORDER BY 1"
        rows = store._connections[0].execute(query).fetchall()
        assert rows == [(2_498,), (2_499,), (2_500,)]
        await store.close()

    async def test_a_state_change_does_not_write_the_specification_again(
        self, store: SqliteStore, data: Path
    ) -> None:
        spec = replace(stored_task(1).spec, environment={"BIG": "x" * 200_000})
        task = replace(stored_task(1), spec=spec)
        await store.commit([SaveTask(task)])
        log = data / "mass.db-wal"
        before = log.stat().st_size
        await store.commit([SaveTask(replace(task, state=TaskState.RUNNING))])
        assert log.stat().st_size - before < 50_000
        assert await store.task(1) == replace(task, state=TaskState.RUNNING)

    @pytest.mark.parametrize(
        "query",
        [
            statements.select_open_tasks(),
            statements.select_tasks_before(),
            statements.select_array(),
            statements.select_array_element(),
            statements.select_ended_states(),
            *(
                statements.select_task_ids_filtered(*(place == given for place in range(5)))
                for given in range(5)
            ),
            statements.select_tasks_by_id(),
            statements.select_task_ids_known(),
            statements.select_attempts(),
            statements.select_output(),
            statements.select_ended_task_ids(),
            statements.delete_tasks(),
            next(statements.UPDATE_TASKS.calls([(1,) * 22]))[0],
        ],
    )
    async def test_no_query_walks_through_the_whole_history(
        self, store: SqliteStore, query: str
    ) -> None:
        values = (0,) * query.count("?")
        plan = store._connections[0].execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
        steps = [step for *_, step in plan]
        whole = [f"SCAN {table}" for table in ("tasks", "task_specs", "attempts", "outputs")]
        # The open tasks are all that their own index holds.
        scans = [step for step in steps if step.startswith(tuple(whole))]
        assert all("INDEX tasks_open" in step for step in scans), steps


class TestPrivacy:
    async def test_only_the_owner_can_read_the_data_directory(self, data: Path) -> None:
        before = os.umask(0)
        try:
            store = SqliteStore.open(data)
            await store.commit([SaveTask(stored_task(1)), SaveAttempt(stored_attempt(1))])
        finally:
            os.umask(before)
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()}
        names = ["lock", "mass.db", "mass.db-shm", "mass.db-wal"]
        assert modes == dict.fromkeys(names, 0o600)
        await store.close()

    async def test_a_store_that_others_could_read_is_closed_to_them(self, data: Path) -> None:
        await SqliteStore.open(data).close()
        (data / "mass.db").chmod(0o644)
        await SqliteStore.open(data).close()
        assert stat.S_IMODE((data / "mass.db").stat().st_mode) == 0o600

    async def test_a_backup_is_its_owners_only(self, store: SqliteStore, tmp_path: Path) -> None:
        await store.backup(tmp_path / "copy.db")
        assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600

    async def test_a_backup_that_fails_leaves_no_half_file(
        self, store: SqliteStore, tmp_path: Path
    ) -> None:
        with pytest.raises(StoreError, match="missing"):
            await store.backup(tmp_path / "missing" / "copy.db")
        store.path.rename(tmp_path / "away.db")
        with pytest.raises(StoreError, match=r"mass\.db"):
            await store.backup(tmp_path / "copy.db")
        (tmp_path / "away.db").rename(store.path)
        assert not (tmp_path / "copy.db").exists()

    def test_a_directory_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="file/data cannot be used: Not a directory"):
            SqliteStore.open(tmp_path / "file" / "data")

    async def test_the_file_is_whole_without_its_log_once_closed(self, data: Path) -> None:
        store = SqliteStore.open(data)
        await store.commit([SaveTask(stored_task(1))])
        await store.close()
        assert sorted(path.name for path in data.iterdir()) == ["lock", "mass.db"]
        with closing(sqlite3.connect(data / "mass.db")) as connection:
            assert connection.execute("SELECT id FROM tasks").fetchall() == [(1,)]
