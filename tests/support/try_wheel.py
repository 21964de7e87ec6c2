"""Builds the wheel from a clean copy and tries it from an empty folder, in its own environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "agent/mass-agent.service",
    "allocator/mass-launcher",
    "controller/default_rules.yaml",
    "controller/mass-controller.service",
    "mass/v1/agent_pb2.py",
)
SCRIPT = """
import allocator.pool, controller.main, mass.v1.agent_pb2, agent.main
with allocator.pool.Pool(1 << 20) as pool:
    pool.free(pool.allocate(100))
print("imports and the pool work from", allocator.pool.__file__)
"""


def run(*words: str | Path, cwd: Path) -> None:
    """Run a command in a folder; it must succeed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MASS"))}
    subprocess.run([str(word) for word in words], cwd=cwd, env=environment, check=True)


def main() -> int:
    """Build, look inside, install, import, ask for help."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, empty = folder / "source", folder / "empty"
        empty.mkdir()
        source.mkdir()
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for entry in listed.decode().split("\0"):
            if entry and (ROOT / entry).is_file():
                target = source / entry
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((ROOT / entry).read_bytes())
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ".",
            cwd=source)  # fmt: skip
        (wheel,) = folder.glob("*.whl")
        inside = set(zipfile.ZipFile(wheel).namelist())
        missing = [part for part in NEEDED if part not in inside]
        stray = [part for part in inside if part.endswith((".c", ".h", ".proto"))]
        if missing or stray:
            print(f"the wheel lacks {missing} and should not hold {stray}")
            return 1
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            f"{wheel}[controller]", cwd=empty)  # fmt: skip
        run(python, "-c", SCRIPT, cwd=empty)
        run(folder / "venv" / "bin" / "mass", "--version", cwd=empty)
        run(folder / "venv" / "bin" / "mass-agent", "--help", cwd=empty)
    return 0


if __name__ == "__main__":
    sys.exit(main())
