"""Runs every example of docs/python.md as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.cluster import Cluster

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
PRINTED = [
    r"SUCCEEDED \d+ bytes at most\nhello\n\n",
    r"(\d+ SUCCEEDED 0\n){3}",
    r"\['SUCCEEDED', 'SUCCEEDED'\]\n",
    r"element 1\nelement 2\nelement 3\n",
    r"/etc/hostname \d+\n/etc/passwd \d+\n",
    r"working\n\['worker'\]\nCANCELLED\n",
    r"task \d+ \(sh\) ended FAILED: exited with code 3 3\n",
    r"SUCCEEDED\n(\d+ SUCCEEDED\n){3}",
    r"8\n\[1, 2, 3, 4\]\n",
]


def test_every_example_has_its_output_here() -> None:
    assert len(BLOCKS) == len(PRINTED) == PAGE.read_text().count("```") / 2


@pytest.mark.parametrize("index", range(len(PRINTED)))
def test_example_runs_as_it_stands(cluster: Cluster, tmp_path: Path, index: int) -> None:
    script = tmp_path / "example.py"
    script.write_text(BLOCKS[index])
    ran = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "MASS_CONTROLLER": cluster.address},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert re.fullmatch(PRINTED[index], ran.stdout), ran.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["example.py"]
