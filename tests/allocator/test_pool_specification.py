"""The specification's own words: its gcc line, its four names, and the size from POOL_BYTES."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.native import ROOT

NAMES = {"allocate_memory", "reallocate_memory", "free_memory", "reset_memory_pool"}
MIB = 1 << 20

# How much the default pool can give, in blocks of 64 KiB: asked by a process of its own, because
# the pool is made once per process.
MEASURE = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.allocate_memory.restype = ctypes.c_void_p
library.allocate_memory.argtypes = [ctypes.c_size_t]
count = 0
while library.allocate_memory(65536):
    count += 1
print(count * 65536)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specification")
    for path in (ROOT / "allocator").glob("*.[ch]"):
        shutil.copy(path, folder)
    line = "gcc -shared -o memory_allocator.so -fPIC memory_allocator.c -lpthread"
    subprocess.run(line.split(), cwd=folder, check=True)
    return folder / "memory_allocator.so"


def measure(library: Path, pool_bytes: str | None) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "POOL_BYTES"}
    if pool_bytes is not None:
        environment["POOL_BYTES"] = pool_bytes
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, str(library)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ended.stdout), ended.stderr


def test_library_exports_the_four_functions(library: Path) -> None:
    listing = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True)
    exported = {line.split()[2] for line in listing.stdout.splitlines() if " T " in line}
    assert exported >= NAMES
    assert all(name in NAMES or name.startswith("mass_pool_") for name in exported)


def test_four_functions_allocate_move_free_and_reset(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    loaded.allocate_memory.restype = loaded.reallocate_memory.restype = ctypes.c_void_p
    loaded.allocate_memory.argtypes = [ctypes.c_size_t]
    loaded.reallocate_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    loaded.free_memory.argtypes = [ctypes.c_void_p]

    first = loaded.allocate_memory(100)
    ctypes.memset(first, 7, 100)
    second = loaded.allocate_memory(100)
    moved = loaded.reallocate_memory(first, 5000)
    assert moved % 16 == 0
    assert moved != second
    assert ctypes.string_at(moved, 100) == bytes([7]) * 100
    loaded.free_memory(second)
    loaded.free_memory(second)
    assert loaded.reallocate_memory(second, 10) is None
    loaded.reset_memory_pool()
    assert loaded.allocate_memory(100) == first


@pytest.mark.parametrize(
    ("pool_bytes", "expected"), [(None, 64 * MIB), ("1048576", MIB), ("16777216", 16 * MIB)]
)
def test_default_pool_takes_its_size_from_the_environment(
    library: Path, pool_bytes: str | None, expected: int
) -> None:
    given, complaint = measure(library, pool_bytes)
    assert 0.9 * expected < given < expected
    assert complaint == ""


@pytest.mark.parametrize("pool_bytes", ["", "64M", "-1", " 1048576", "4096", "9" * 30])
def test_bad_pool_bytes_is_named_and_the_default_used(library: Path, pool_bytes: str) -> None:
    given, complaint = measure(library, pool_bytes)
    assert 0.9 * 64 * MIB < given < 64 * MIB
    assert f"POOL_BYTES: '{pool_bytes}' is not a number of bytes from 8192" in complaint
    assert len(complaint.splitlines()) == 1
