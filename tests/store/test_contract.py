"""What every store promises, run over each of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import stored_values
from support.stored_values import (
    stored_alert,
    stored_attempt,
    stored_node,
    stored_submission,
    stored_task,
)
from support.stores import MemoryDisk, MemoryStore

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
from controller.core.model import (
    Alert,
    AlertState,
    Attempt,
    Node,
    OutputStream,
    Task,
    TaskState,
)
from controller.store.base import Store, StoreError, TaskFilter
from controller.store.sqlite import SqliteStore

LIMITS = Limits(submissions_kept=3)


class Place:
    """Where a kind of store keeps its things, so that it can be opened there again."""

    def __init__(self, kind: str, path: Path) -> None:
        self._kind = kind
        self._path = path
        self._disk = MemoryDisk()
        self._opened: list[Store] = []

    def open(self) -> Store:
        store: Store
        if self._kind == "sqlite":
            store = SqliteStore.open(self._path / "data", LIMITS)
        else:
            store = MemoryStore(self._disk, LIMITS)
        self._opened.append(store)
        return store

    def open_backup(self, path: Path) -> Store:
        store: Store
        if self._kind == "sqlite":
            target = self._path / "restored" / "mass.db"
            target.parent.mkdir()
            path.rename(target)
            store = SqliteStore.open(target.parent, LIMITS)
        else:
            store = MemoryStore.from_backup(path)
        self._opened.append(store)
        return store

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


KINDS = ("sqlite", "memory")


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(request.param, tmp_path)
    yield place
    await place.close()


@pytest.fixture
async def store(place: Place) -> Store:
    return place.open()


def on_every_store(check: Callable[[Store], Awaitable[None]]) -> None:
    """Run a check that hypothesis repeats, each time on new stores."""

    async def run() -> None:
        for kind in KINDS:
            with TemporaryDirectory() as directory:
                place = Place(kind, Path(directory))
                try:
                    await check(place.open())
                finally:
                    await place.close()

    asyncio.run(run())


class TestValuesComeBackAsTheyWere:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(stored_values.tasks, min_size=1, max_size=5, unique_by=lambda task: task.id))
    def test_tasks(self, tasks: list[Task]) -> None:
        async def check(store: Store) -> None:
            await store.commit([SaveTask(task) for task in tasks])
            newest_first = sorted(tasks, key=lambda task: -task.id)
            assert await store.tasks(before_id=None, limit=10, wanted=TaskFilter()) == newest_first
            stored = await store.load()
            assert stored.tasks == tuple(t for t in reversed(newest_first) if not t.ended)
            assert stored.next_task_id == newest_first[0].id + 1

        on_every_store(check)

    @settings(max_examples=25, deadline=None)
    @given(
        stored_values.tasks.flatmap(
            lambda task: st.tuples(st.just(task), stored_values.changes_of(task))
        )
    )
    def test_changed_tasks(self, values: tuple[Task, Task]) -> None:
        async def check(store: Store) -> None:
            for value in values:
                await store.commit([SaveTask(value)])
                assert await store.task(value.id) == value

        on_every_store(check)

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(stored_values.attempts, max_size=5, unique_by=lambda value: value.number),
        st.lists(stored_values.nodes, max_size=3, unique_by=lambda value: value.id),
        st.lists(stored_values.alerts, max_size=3, unique_by=lambda value: value.key),
        st.binary(max_size=100),
    )
    def test_attempts_nodes_alerts_and_outputs(
        self, attempts: list[Attempt], nodes: list[Node], alerts: list[Alert], data: bytes
    ) -> None:
        async def check(store: Store) -> None:
            saves: list[Save] = [SaveTask(stored_task(1))]
            saves += [SaveAttempt(attempt) for attempt in attempts]
            saves += [SaveNode(node) for node in nodes]
            saves += [SaveAlert(alert) for alert in alerts]
            saves.append(SaveOutput(1, 1, OutputStream.STDERR, data))
            await store.commit(saves)
            assert await store.attempts(1) == sorted(attempts, key=lambda value: value.number)
            assert await store.output(1, 1, OutputStream.STDERR) == data
            assert await store.output(1, 1, OutputStream.STDOUT) is None
            stored = await store.load()
            assert stored.nodes == tuple(sorted(nodes, key=lambda node: node.id))
            by_name = sorted(alerts, key=lambda alert: alert.key)
            assert stored.alerts == tuple(by_name)

        on_every_store(check)

    async def test_an_alert_whose_value_is_not_a_number(self, store: Store) -> None:
        await store.commit([SaveAlert(replace(stored_alert("high", "n1"), value=math.nan))])
        (alert,) = (await store.load()).alerts
        assert math.isnan(alert.value)


class TestCommit:
    async def test_what_was_committed_is_there_after_a_restart(self, place: Place) -> None:
        store = place.open()
        saves: list[Save] = [
            SaveTask(stored_task(1)),
            SaveTask(stored_task(2, TaskState.SUCCEEDED, ended_at_ns=9)),
            SaveAttempt(stored_attempt(2)),
            SaveNode(stored_node("n1")),
            SaveAlert(stored_alert("high", "n1")),
            SaveSubmission(stored_submission(1)),
        ]
        await store.commit(saves)
        before = await store.load()
        await store.close()
        again = place.open()
        assert await again.load() == before
        assert before.tasks == (stored_task(1),)
        assert await again.attempts(2) == [stored_attempt(2)]

    async def test_a_new_store_is_empty_and_counts_from_one(self, store: Store) -> None:
        stored = await store.load()
        assert (stored.tasks, stored.nodes, stored.alerts, stored.submissions) == ((),) * 4
        assert stored.next_task_id == 1

    async def test_no_saves_change_nothing(self, store: Store) -> None:
        await store.commit([])
        assert (await store.load()).next_task_id == 1

    async def test_the_last_value_of_a_turn_wins(self, store: Store) -> None:
        running = replace(stored_task(1), state=TaskState.RUNNING, node_id="n1")
        cordoned = replace(stored_node("n1"), scheduling_reason="disk")
        await store.commit(
            [
                SaveTask(stored_task(1)),
                SaveNode(stored_node("n1")),
                SaveOutput(1, 1, OutputStream.STDOUT, b"a"),
                SaveTask(running),
                SaveNode(cordoned),
                SaveOutput(1, 1, OutputStream.STDOUT, b"b"),
            ]
        )
        stored = await store.load()
        assert (stored.tasks, stored.nodes) == ((running,), (cordoned,))
        assert await store.output(1, 1, OutputStream.STDOUT) == b"b"

    async def test_the_last_value_of_all_turns_wins(self, store: Store) -> None:
        for number in range(3):
            saves: list[Save] = [
                SaveTask(replace(stored_task(1), failures=number)),
                SaveAttempt(replace(stored_attempt(1), memory_peak_bytes=number)),
                SaveNode(replace(stored_node("n1"), boot_id=str(number))),
                SaveAlert(replace(stored_alert("high", "n1"), value=float(number))),
                SaveSubmission(replace(stored_submission(1), at_ns=number)),
            ]
            await store.commit(saves)
        stored = await store.load()
        assert [task.failures for task in stored.tasks] == [2]
        assert [node.boot_id for node in stored.nodes] == ["2"]
        assert [alert.value for alert in stored.alerts] == [2.0]
        assert [submission.at_ns for submission in stored.submissions] == [2]
        assert [value.memory_peak_bytes for value in await store.attempts(1)] == [2]

    async def test_specification_user_and_submission_of_a_task_stay_as_first_saved(
        self, store: Store
    ) -> None:
        first = stored_task(1)
        await store.commit([SaveTask(first)])
        other = replace(first.spec, command=("other",))
        later = replace(first, spec=other, user="bob", submitted_at_ns=9, failures=1)
        await store.commit([SaveTask(later)])
        assert await store.task(1) == replace(first, failures=1)

    async def test_a_task_older_than_the_newest_can_still_be_new(self, store: Store) -> None:
        await store.commit([SaveTask(stored_task(5))])
        changed = replace(stored_task(5), failures=1)
        await store.commit([SaveTask(changed), SaveTask(stored_task(3))])
        assert (await store.load()).tasks == (stored_task(3), changed)

    @pytest.mark.parametrize("count", [1, 3, 4, 17, 1_200])
    async def test_any_number_of_tasks_is_kept(self, store: Store, count: int) -> None:
        tasks = [stored_task(task_id) for task_id in range(1, count + 1)]
        await store.commit([SaveTask(task) for task in tasks])
        changed = [replace(task, state=TaskState.RUNNING, node_id="n1") for task in tasks]
        await store.commit([SaveTask(task) for task in changed])
        assert (await store.load()).tasks == tuple(changed)

    @pytest.mark.parametrize(
        "orphan", [SaveOutput(99, 1, OutputStream.STDOUT, b"x"), SaveAttempt(stored_attempt(99))]
    )
    async def test_one_save_that_fails_undoes_the_others(self, store: Store, orphan: Save) -> None:
        await store.commit([SaveTask(stored_task(1)), SaveNode(stored_node("n1"))])
        before = await store.load()
        changed = replace(stored_task(1), state=TaskState.RUNNING)
        saves: Sequence[Save] = [
            SaveTask(changed),
            SaveTask(stored_task(2)),
            orphan,
            SaveNode(stored_node("n2")),
        ]
        with pytest.raises(StoreError):
            await store.commit(saves)
        assert await store.load() == before
        await store.commit([SaveTask(changed), SaveTask(stored_task(2))])
        assert (await store.load()).tasks == (changed, stored_task(2))

    async def test_an_inactive_alert_is_forgotten(self, store: Store) -> None:
        await store.commit(
            [SaveAlert(stored_alert("high", "n1")), SaveAlert(stored_alert("high", "n2"))]
        )
        await store.commit([SaveAlert(stored_alert("high", "n1", AlertState.INACTIVE))])
        assert (await store.load()).alerts == (stored_alert("high", "n2"),)

    async def test_alerts_of_two_tasks_on_a_node_are_two(self, store: Store) -> None:
        first, second = (replace(stored_alert("Big", "n1"), task_id=number) for number in (7, 8))
        await store.commit([SaveAlert(second), SaveAlert(first)])
        assert (await store.load()).alerts == (first, second)
        await store.commit([SaveAlert(replace(first, state=AlertState.INACTIVE))])
        assert (await store.load()).alerts == (second,)

    async def test_an_alert_that_comes_back_in_the_same_turn_is_kept(self, store: Store) -> None:
        await store.commit([SaveAlert(stored_alert("high", "n1"))])
        inactive = stored_alert("high", "n1", AlertState.INACTIVE)
        pending = stored_alert("high", "n1", AlertState.PENDING)
        await store.commit([SaveAlert(inactive), SaveAlert(pending)])
        assert (await store.load()).alerts == (pending,)

    async def test_the_newest_submissions_are_loaded_oldest_first(self, store: Store) -> None:
        submissions = [stored_submission(number) for number in (4, 2, 5, 1, 3)]
        await store.commit([SaveSubmission(submission) for submission in submissions])
        loaded = (await store.load()).submissions
        assert loaded == tuple(stored_submission(number) for number in (3, 4, 5))


class TestReading:
    async def test_pages_go_on_where_the_page_before_ended(self, store: Store) -> None:
        await store.commit([SaveTask(stored_task(task_id)) for task_id in range(1, 8)])
        pages: list[list[int]] = []
        before_id: int | None = None
        while page := await store.tasks(before_id=before_id, limit=3, wanted=TaskFilter()):
            pages.append([task.id for task in page])
            before_id = page[-1].id
        assert pages == [[7, 6, 5], [4, 3, 2], [1]]

    async def test_pages_hold_only_the_states_asked_for(self, store: Store) -> None:
        circle = (TaskState.PENDING, TaskState.RUNNING, TaskState.SUCCEEDED)
        await store.commit([SaveTask(stored_task(n, circle[n % 3])) for n in range(1, 13)])
        states = frozenset({TaskState.PENDING, TaskState.SUCCEEDED})
        page = await store.tasks(before_id=11, limit=5, wanted=TaskFilter(states=states))
        assert [task.id for task in page] == [9, 8, 6, 5, 3]
        lost = TaskFilter(states=frozenset({TaskState.LOST}))
        none = await store.tasks(before_id=None, limit=5, wanted=lost)
        assert none == []

    async def test_tasks_are_found_by_id(self, store: Store) -> None:
        done = stored_task(2, TaskState.SUCCEEDED, ended_at_ns=9)
        await store.commit([SaveTask(stored_task(1)), SaveTask(done), SaveTask(stored_task(3))])
        assert await store.task(2) == done
        assert await store.task(4) is None
        assert await store.tasks_by_id([2, 3, 4]) == {2: done, 3: stored_task(3)}
        assert await store.task_ids_known({2, 3, 4}) == {2, 3}
        assert await store.task_ids_known([]) == set()

    async def test_a_committed_value_is_read_at_once(self, store: Store) -> None:
        for number in range(1, 20):
            await store.commit([SaveTask(stored_task(number))])
            assert await store.task(number) == stored_task(number)

    async def test_an_array_is_found_by_its_id_and_its_index(self, store: Store) -> None:
        ended = {1: TaskState.SUCCEEDED, 3: TaskState.FAILED, 4: TaskState.SUCCEEDED}
        for task_id in (1, 2, 3, 4, 5):
            task = stored_task(task_id, state=ended.get(task_id, TaskState.PENDING))
            if task_id > 1:
                task = replace(task, array_id=2, array_index=task_id - 2)
            await store.commit([SaveTask(task)])
        assert await store.array_task_ids(2) == [2, 3, 4, 5]
        assert await store.array_task_ids(2, 1) == [3]
        assert await store.array_task_ids(1) == []
        assert await store.array_task_ids(77) == []
        page = await store.tasks(before_id=5, limit=2, wanted=TaskFilter(array_id=2))
        assert [task.id for task in page] == [4, 3]
        assert await store.ended_states([1, 2, 3, 77]) == {
            1: {TaskState.SUCCEEDED},
            2: {TaskState.SUCCEEDED, TaskState.FAILED},
            3: {TaskState.FAILED},
            77: frozenset(),
        }


class TestPrune:
    async def test_tasks_that_ended_too_long_ago_are_forgotten(self, store: Store) -> None:
        for task_id in (1, 2, 3):
            ended = stored_task(task_id, TaskState.FAILED, ended_at_ns=task_id * 10)
            await store.commit(
                [
                    SaveTask(ended),
                    SaveAttempt(stored_attempt(task_id)),
                    SaveOutput(task_id, 1, OutputStream.STDOUT, b"x"),
                ]
            )
        assert await store.prune(ended_before_ns=20, tasks_max=10) == 1
        assert await store.task_ids_known([1, 2, 3]) == {2, 3}
        assert await store.attempts(1) == []
        assert await store.output(1, 1, OutputStream.STDOUT) is None
        assert await store.attempts(2) == [stored_attempt(2)]

    async def test_only_so_many_ended_tasks_are_kept_those_that_ended_last(
        self, store: Store
    ) -> None:
        ends = {1: 50, 2: 40, 3: 30, 4: 30, 5: 10}
        await store.commit(
            [SaveTask(stored_task(n, TaskState.LOST, ended_at_ns=end)) for n, end in ends.items()]
        )
        assert await store.prune(ended_before_ns=0, tasks_max=3) == 2
        assert await store.task_ids_known(ends) == {1, 2, 4}
        assert await store.prune(ended_before_ns=0, tasks_max=3) == 0

    async def test_open_tasks_are_never_forgotten(self, store: Store) -> None:
        # Its last attempt ended, but it waits to be tried again.
        waiting = replace(stored_task(1), ended_at_ns=5)
        ended = stored_task(2, TaskState.CANCELLED, ended_at_ns=5)
        await store.commit([SaveTask(waiting), SaveTask(ended)])
        assert await store.prune(ended_before_ns=1_000, tasks_max=0) == 1
        assert (await store.load()).tasks == (waiting,)

    async def test_hundreds_of_tasks_are_forgotten_in_one_call(self, store: Store) -> None:
        tasks = [stored_task(n, TaskState.SUCCEEDED, ended_at_ns=n) for n in range(1, 451)]
        await store.commit([SaveTask(task) for task in tasks])
        assert await store.prune(ended_before_ns=0, tasks_max=10) == 440
        page = await store.tasks(before_id=None, limit=100, wanted=TaskFilter())
        assert [task.id for task in page] == list(range(450, 440, -1))

    async def test_the_id_of_a_forgotten_task_is_never_given_again(self, place: Place) -> None:
        store = place.open()
        ended = [stored_task(n, TaskState.SUCCEEDED, ended_at_ns=n) for n in (1, 2, 3)]
        await store.commit([SaveTask(task) for task in ended])
        assert await store.prune(ended_before_ns=1_000, tasks_max=10) == 3
        assert (await store.load()).next_task_id == 4
        await store.close()
        again = place.open()
        assert (await again.load()).next_task_id == 4
        await again.commit([SaveTask(stored_task(4))])
        assert (await again.load()).next_task_id == 5

    async def test_old_submissions_are_forgotten(self, store: Store) -> None:
        await store.commit([SaveSubmission(stored_submission(number)) for number in range(1, 9)])
        await store.prune(ended_before_ns=0, tasks_max=10)
        loaded = (await store.load()).submissions
        assert loaded == tuple(stored_submission(number) for number in (6, 7, 8))


class TestBackupAndClose:
    async def test_a_backup_holds_what_was_committed_before(
        self, place: Place, tmp_path: Path
    ) -> None:
        store = place.open()
        await store.commit([SaveTask(stored_task(1))])
        await store.backup(tmp_path / "copy")
        await store.commit([SaveTask(stored_task(2))])
        copy = place.open_backup(tmp_path / "copy")
        assert (await copy.load()).tasks == (stored_task(1),)

    async def test_a_backup_never_overwrites(self, store: Store, tmp_path: Path) -> None:
        target = tmp_path / "precious"
        target.write_text("mine")
        with pytest.raises(StoreError, match="precious"):
            await store.backup(target)
        assert target.read_text() == "mine"

    async def test_a_closed_store_refuses_every_call(self, store: Store) -> None:
        await store.close()
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.commit([SaveTask(stored_task(1))])
        with pytest.raises(StoreError, match="closed"):
            await store.load()
