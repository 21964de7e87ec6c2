"""What attempts told is read again at the start: the latest of each category, by both stores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from store.test_schema import store_without_tables
from support.stored_values import stored_attempt, stored_task
from support.stores import MemoryStore

from controller.core.commands import Save, SaveAttempt, SaveTask
from controller.core.limits import DEFAULT_LIMITS
from controller.core.model import Attempt, TaskState
from controller.store.base import Store
from controller.store.connection import connect
from controller.store.rows import spec_text
from controller.store.schema import migrate, upgrade
from controller.store.sqlite import SqliteStore

LIMITS = replace(DEFAULT_LIMITS, category_attempts_max=3, categories_max=2)


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Return what opens a new store with small limits."""
    if request.param == "memory":
        return lambda: MemoryStore(limits=LIMITS)
    return lambda: SqliteStore.open(tmp_path / "data", LIMITS)


def ended(task_id: int, category: str, at_ns: int) -> Attempt:
    return replace(
        stored_attempt(task_id),
        category=category,
        ended_at_ns=at_ns,
        input_bytes=7,
        declared_bytes=None,
        memory_size_bytes=9,
    )


def saves_of(*attempts: Attempt) -> list[Save]:
    tasks = [
        SaveTask(stored_task(one.task_id, TaskState.SUCCEEDED, ended_at_ns=one.ended_at_ns))
        for one in attempts
    ]
    return [*tasks, *map(SaveAttempt, attempts)]


async def test_latest_attempts_of_each_category_are_loaded_in_the_order_of_their_ends(
    make: Callable[[], Store],
) -> None:
    store = make()
    kept = [ended(n, "train", 10 * n) for n in range(2, 5)]
    other = ended(9, "align", 25)
    await store.commit(saves_of(ended(1, "train", 1), *kept, other, ended(5, "", 99)))
    loaded = await store.load()
    assert loaded.attempts == (kept[0], other, kept[1], kept[2])
    await store.close()


async def test_categories_that_ended_long_ago_are_left_out(make: Callable[[], Store]) -> None:
    store = make()
    old, new, newest = ended(1, "a", 1), ended(2, "b", 2), ended(3, "c", 3)
    await store.commit(saves_of(newest, old, new))
    assert (await store.load()).attempts == (new, newest)
    await store.close()


async def test_attempts_of_the_schema_before_are_learned_from(tmp_path: Path) -> None:
    data = tmp_path / "data"
    path = store_without_tables(data)
    task = stored_task(1, TaskState.RUNNING)
    with closing(connect(path)) as connection:
        migrate(connection, "0003")
        connection.execute(
            "INSERT INTO tasks (id, user, submitted_at_ns, state, ended, reason_code, reason,"
            " attempt, node_id, instance_id, assigned_at_ns, started_at_ns, ended_at_ns,"
            " memory_peak_bytes, oom_cause, failures, memory_requeues, cancelled)"
            " VALUES"
            " (1, 'ada', 1, 'RUNNING', 0, '', '', 2, 'n1', 'i1', 1, 2, 0, 0, 'NONE', 0, 0, 0)"
        )
        connection.execute("INSERT INTO task_specs VALUES (1, ?)", (spec_text(task.spec),))
        connection.execute(
            "INSERT INTO attempts VALUES (1, 1, 'n1', 'LOST', 1, 2, 3, NULL, NULL, 5, NULL,"
            " 'NONE', 'gone')"
        )
    assert upgrade(data).from_revision == "0003"
    store = SqliteStore.open(data)
    stored = await store.load()
    assert stored.tasks[0].memory_size_bytes == task.spec.memory_request_bytes
    (attempt,) = stored.attempts
    assert (attempt.category, attempt.declared_bytes) == ("sh", task.spec.memory_request_bytes)
    await store.close()
