"""The C pool by itself: exhaustive, random and threaded programs, plain and under sanitizers."""

from __future__ import annotations

import re
import signal

import pytest
from support.native import ROOT, STRICT, compiled, run, sanitizer_missing

POOL = "allocator/memory_allocator.c"
PLAIN = ("-D_GNU_SOURCE", "-O2", "-g")
HARDENED = (*PLAIN, "-DMASS_HARDENED")
MEMORY = ("-D_GNU_SOURCE", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-D_GNU_SOURCE", "-O1", "-g", "-fsanitize=thread")

BUILDS = {
    "plain": PLAIN,
    "hardened": HARDENED,
    "address": MEMORY,
    "hardened-address": (*MEMORY, "-DMASS_HARDENED"),
    "thread": THREAD,
}


def build(program: str, kind: str) -> str:
    flags = BUILDS[kind]
    for flag in flags:
        if flag.startswith("-fsanitize="):
            missing = sanitizer_missing(flag.removeprefix("-fsanitize="))
            if missing is not None:
                pytest.skip(missing)
    source = f"tests/allocator/c/{program}.c"
    return str(compiled(program, (source, POOL), *STRICT, *flags))


def expect_success(command: list[str]) -> str:
    ended = run(command)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


# Depth 6 over 8 granules are all short lives within one cell; the wider pools add blocks that cover
# cells wholly, end at their borders, or span three of them.
SEQUENCES = [
    "8 6 1 2 3 8",
    "12 5 1 2 3 4 6 12",
    "200 5 1 63 64 65 66 130",
    "254 5 2 62 66 127 128 190",
]


@pytest.mark.parametrize("arguments", SEQUENCES)
def test_every_short_sequence_of_calls_is_answered_rightly(arguments: str) -> None:
    out = expect_success([build("pool_exhaustive", "plain"), *arguments.split()])
    assert int(out.split()[0]) > 100_000


def test_short_sequences_touch_no_memory_outside_the_pool() -> None:
    arguments = "200 4 1 63 64 65 66 130"
    expect_success([build("pool_exhaustive", "address"), *arguments.split()])


@pytest.mark.parametrize("kind", ["plain", "hardened", "address", "hardened-address"])
def test_long_random_lives_keep_the_pool_sound(kind: str) -> None:
    rounds = "200" if kind == "plain" else "30"
    expect_success([build("pool_random", kind), rounds, "2000"])


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("plain", 30_000), ("hardened", 4_000), ("address", 8_000), ("thread", 3_000)],
)
def test_threads_share_a_nearly_full_pool(kind: str, steps: int) -> None:
    expect_success([build("pool_threads", kind), str(steps)])


@pytest.mark.parametrize("kind", ["plain", "hardened"])
def test_default_pool_is_made_once_and_survives_fork(kind: str) -> None:
    expect_success([build("pool_default", kind)])


MISUSES = re.findall(
    r'^    \{"(\w+)",', (ROOT / "tests/allocator/c/pool_misuse.c").read_text(), re.MULTILINE
)
HARMLESS = {
    "sizes_that_overflow",
    "alignments_that_are_none",
    "null_is_nothing",
    "pools_that_cannot_be",
}
GUARDED = {"run_below_the_pool", "run_beyond_the_pool"}


def test_misuse_cases_are_found_in_the_program() -> None:
    assert len(MISUSES) >= 20
    assert set(MISUSES) >= HARMLESS | GUARDED


@pytest.mark.parametrize("case", [name for name in MISUSES if name not in GUARDED])
def test_misuse_is_refused_and_leaves_the_pool_sound(case: str) -> None:
    expect_success([build("pool_misuse", "plain"), case])


@pytest.mark.parametrize("case", [name for name in MISUSES if name not in GUARDED | HARMLESS])
def test_misuse_aborts_the_hardened_build_with_a_reason(case: str) -> None:
    ended = run([build("pool_misuse", "hardened"), case])
    assert ended.returncode == -signal.SIGABRT
    assert re.search(r"mass_pool \S+: block \S+: \w", ended.stderr)


@pytest.mark.parametrize("case", sorted(HARMLESS))
def test_hardened_build_lets_rightful_calls_pass(case: str) -> None:
    expect_success([build("pool_misuse", "hardened"), case])


@pytest.mark.parametrize("case", sorted(GUARDED))
def test_running_out_of_the_mapping_ends_at_a_guard_page(case: str) -> None:
    assert run([build("pool_misuse", "plain"), case]).returncode == -signal.SIGSEGV
