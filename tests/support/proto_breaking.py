"""Checks that proto/ breaks nothing that was released: against the newest tag, or HEAD."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run `buf breaking` and return its exit code; 0 where there is nothing to compare with."""
    buf = Path(sys.argv[1]).resolve()
    git = subprocess.run(
        ["git", "describe", "--tags", "--abbrev=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    against = git.stdout.strip() if git.returncode == 0 else "HEAD"
    there = subprocess.run(
        ["git", "cat-file", "-e", f"{against}:proto/buf.yaml"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if there.returncode != 0:
        print(f"nothing to compare with: {against} has no proto/")
        return 0
    source = f"{ROOT / '.git'}#ref={against},subdir=proto"
    return subprocess.run(
        [str(buf), "breaking", "--against", source], cwd=ROOT / "proto", check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
