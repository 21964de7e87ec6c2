"""`replace` gives what the standard one gives, and leaves the old value alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
from support.stored_values import stored_attempt, stored_task

from controller.core.model import TaskState
from controller.core.renewed import replace


def test_it_is_the_standard_one_but_faster() -> None:
    task, attempt = stored_task(7), stored_attempt(7)
    kept = dataclasses.replace(task)
    assert replace(task) == task
    assert replace(task) is not task
    assert replace(task, state=TaskState.FAILED, exit_code=3) == dataclasses.replace(
        task, state=TaskState.FAILED, exit_code=3
    )
    assert replace(attempt, memory_peak_bytes=5) == dataclasses.replace(
        attempt, memory_peak_bytes=5
    )
    assert task == kept


def test_a_new_value_is_frozen_and_hashed_like_the_old_one() -> None:
    task = replace(stored_task(7), exit_code=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.exit_code = 4  # type: ignore[misc]
    attempt = stored_attempt(7)
    assert hash(replace(attempt)) == hash(attempt)


def test_a_field_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError, match="colour"):
        replace(stored_task(7), colour="red")  # type: ignore[call-arg]


def test_classes_that_compute_or_check_are_refused() -> None:
    @dataclass(frozen=True, slots=True)
    class Checked:
        count: int

        def __post_init__(self) -> None:
            assert self.count > 0

    with pytest.raises(AssertionError, match="Checked checks"):
        replace(Checked(1), count=-1)
