"""C programs for tests: compiled once per session, with the sanitizers this machine has."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
SECONDS_MAX = 60


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mass-native-")


@functools.cache
def compiled(name: str, sources: tuple[str, ...], *flags: str) -> Path:
    """Return a program (or library) built from sources, paths below the root of the repository."""
    target = Path(_directory().name) / f"{name}-{abs(hash((sources, flags)))}"
    command = [os.environ.get("CC", "gcc"), *flags, "-I", "allocator", "-o", str(target)]
    subprocess.run([*command, *sources, "-lpthread", "-lm"], cwd=ROOT, check=True)
    return target


@functools.cache
def sanitizer_missing(sanitizer: str) -> str | None:
    """Return why programs built with -fsanitize=... do not run here, or None if they do."""
    source = Path(_directory().name) / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    target = source.with_suffix(f".{sanitizer.replace(',', '-')}")
    compiler = os.environ.get("CC", "gcc")
    built = subprocess.run(
        [compiler, f"-fsanitize={sanitizer}", str(source), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        return f"{compiler} cannot link -fsanitize={sanitizer}: {built.stderr.strip()[-200:]}"
    ended = run([str(target)])
    if ended.returncode != 0:
        return f"-fsanitize={sanitizer} does not run here: {ended.stderr.strip()[-200:]}"
    return None


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program at fixed addresses where possible: the thread sanitizer asks for its own."""
    fixed = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    probe = subprocess.run([*fixed, "true"], capture_output=True, check=False)
    prefix = fixed if probe.returncode == 0 else []
    return subprocess.run(
        [*prefix, *command], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
