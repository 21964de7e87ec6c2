"""What groups hold, from the kernel's files: when they are read again, and what is left over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cgroupfs import GroupFile
from agent.held import LAG_NS, V1, V2, HeldMemory, Names, NodeHeld

MIB = 1 << 20


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test has opened; without it later tests would run out of files."""
    opened: list[GroupFile] = []

    def remember(*arguments: Any) -> GroupFile:
        opened.append(GroupFile(*arguments))
        return opened[-1]

    monkeypatch.setattr("agent.held.GroupFile", remember)
    yield
    for file in opened:
        file.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now_ns = [10 * LAG_NS]
    monkeypatch.setattr("agent.held.time.monotonic_ns", lambda: now_ns[0])
    return now_ns


def say(
    path: Path, names: Names, *, usage: int, anonymous: int = 0, shared: int = 0, cache: int = 0
) -> None:
    """Write what the kernel says of a group, in MiB."""
    path.mkdir(exist_ok=True)
    (path / names.usage).write_text(f"{usage * MIB}\n")
    (path / "memory.stat").write_text(
        f"first 1\n{names.anonymous} {anonymous * MIB}\n{names.shared} {shared * MIB}\n"
        f"{names.cached} {(cache + shared) * MIB}\nlast 2\n"
    )


@pytest.mark.parametrize("names", [V1, V2])
def test_held_is_anonymous_and_shared_memory_without_page_cache(
    tmp_path: Path, names: Names
) -> None:
    say(tmp_path, names, usage=100, anonymous=30, shared=20, cache=50)
    held = HeldMemory(tmp_path, names)
    assert held.read() == 50 * MIB
    assert (held.cache_bytes, held.shared_bytes) == (50 * MIB, 20 * MIB)


def test_statistic_is_read_again_when_the_counter_moves_and_once_when_it_has_caught_up(
    tmp_path: Path, clock: list[int]
) -> None:
    held = HeldMemory(tmp_path, V1)
    say(tmp_path, V1, usage=10, anonymous=10)
    assert held.read() == 10 * MIB
    say(tmp_path, V1, usage=10, anonymous=9)
    assert held.read() == 10 * MIB
    say(tmp_path, V1, usage=20, anonymous=15)  # it lags
    assert held.read() == 15 * MIB
    say(tmp_path, V1, usage=20, anonymous=20)
    clock[0] += LAG_NS - 1
    assert held.read() == 15 * MIB
    clock[0] += 1
    assert held.read() == 20 * MIB
    say(tmp_path, V1, usage=20, anonymous=19)
    clock[0] += LAG_NS
    assert held.read() == 20 * MIB
    assert held.peak_bytes == 20 * MIB


def test_cache_that_becomes_memory_is_seen_though_the_counter_stands(
    tmp_path: Path, clock: list[int]
) -> None:
    held = HeldMemory(tmp_path, V2)
    say(tmp_path, V2, usage=100, anonymous=10, cache=90)
    assert held.read() == 10 * MIB
    say(tmp_path, V2, usage=100, anonymous=80, cache=20)
    assert held.read() == 80 * MIB


def test_group_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert HeldMemory(tmp_path / "gone", V1).read() == 0


def test_node_holds_its_groups_and_what_the_kernel_keeps_for_them(tmp_path: Path) -> None:
    say(tmp_path, V1, usage=131, cache=30)
    groups = [HeldMemory(tmp_path / name, V1) for name in ("a", "b")]
    say(tmp_path / "a", V1, usage=60, anonymous=60)
    say(tmp_path / "b", V1, usage=70, anonymous=40, cache=30)
    assert NodeHeld(tmp_path, V1).read(groups) == 101 * MIB
    # Caches of file names look the same, so only a share of what is held is believed.
    say(tmp_path, V1, usage=230, cache=30)
    assert NodeHeld(tmp_path, V1).read(groups) == int(100 * MIB * (1 + 1 / 16))


def test_shared_memory_left_by_ended_tasks_counts_when_two_looks_agree(
    tmp_path: Path, clock: list[int]
) -> None:
    say(tmp_path, V2, usage=50, shared=50)
    node = NodeHeld(tmp_path, V2)
    assert node.read([]) == 0
    clock[0] += LAG_NS
    assert node.read([]) == 50 * MIB
    # The statistic lags behind a task that gave its memory back: a moment, not something left.
    say(tmp_path, V2, usage=50, shared=90)
    clock[0] += LAG_NS
    assert node.read([]) == 50 * MIB
    say(tmp_path, V2, usage=0, shared=0)
    clock[0] += LAG_NS
    assert node.read([]) == 0
