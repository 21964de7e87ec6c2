"""The house rules that can be measured: shape, words, imports, and a core without a clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("controller", "agent", "allocator", "client", "tests")
GENERATED = ROOT / "client" / "mass" / "v1"
CORE = ROOT / "controller" / "core"

LINE_COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 800
# A name that says nothing about what is inside collects everything.
MODULE_NAMES_BANNED = frozenset({"utils", "util", "helpers", "common", "misc", "manager"})
# Put together here, so that this file does not have them.
MARKS_BANNED = ("TO" + "DO", "FIX" + "ME", "X" * 3)
CLOCKS = frozenset({"time", "datetime", "random", "secrets", "uuid", "os"})


def python_files() -> list[Path]:
    """Return our own Python files, without what is generated."""
    found = [path for name in OURS for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if GENERATED not in path.parents]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each function of a file with its number of lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{named(path)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def test_lines_are_short_enough() -> None:
    """What a type checker is told at the end of a line does not count."""
    long = [
        f"{named(path)}:{number}"
        for path in python_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line.partition("  # type: ignore")[0]) > LINE_COLUMNS_MAX
    ]
    assert not long


def test_functions_fit_a_screen() -> None:
    long = [
        f"{name} has {lines} lines"
        for path in python_files()
        for name, lines in functions(path)
        if lines > FUNCTION_LINES_MAX
    ]
    assert not long


def test_modules_fit_one_sitting() -> None:
    counts = {named(path): len(path.read_text().splitlines()) for path in python_files()}
    assert {name: count for name, count in counts.items() if count > MODULE_LINES_MAX} == {}


def test_modules_open_with_what_they_own() -> None:
    silent = [
        named(path)
        for path in python_files()
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert not silent


def test_modules_have_names_that_say_something() -> None:
    assert [named(path) for path in python_files() if path.stem in MODULE_NAMES_BANNED] == []


def test_nothing_is_left_for_later() -> None:
    sources = [
        path
        for name in (*OURS, "proto", "docs", "benchmarks")
        for path in (ROOT / name).rglob("*")
        if path.suffix in {".py", ".c", ".h", ".proto", ".md", ".yaml", ".toml"}
    ]
    assert len(sources) > 100
    marked = [
        f"{named(path)}:{number}"
        for path in sources
        if GENERATED not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(mark in line for mark in MARKS_BANNED)
    ]
    assert not marked


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.stem)
def test_core_reads_no_clock_no_chance_and_no_environment(path: Path) -> None:
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append(node.module or "")
        elif isinstance(node, ast.Attribute):
            assert node.attr not in {"random", "default_rng", "urandom"}, f"line {node.lineno}"
    assert CLOCKS.isdisjoint(module.partition(".")[0] for module in modules)


def test_import_contracts_are_kept() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run(
        [str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 broken" in ran.stdout
