"""Every benchmark runs, tells its figures with the machine they are from, and writes them as JSON.

Sizes are tiny: nothing here says how fast anything is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {
    "agent_overhead": "--tasks 2 --seconds 0.5",
    "cycle": "--nodes 20 --rules 4 --changed 5 --cycles 3",
    "placement": "--nodes 10 --tasks 50 --cycles 2",
    "ingest": "--connections 5 --rate 50 --seconds 0.5 --rounds 1 --settle 0.1",
    "throughput": "--tasks 5",
    "latency": "--count 3 --pause 0 --warm-up 1",
    "peers": "--tasks 5",
    "sim_memory": "--tasks 6 --seeds 1 --modes none",
    "sizing": "",
    "oom": "--tool mass --modes exact --seeds 1 --tasks 3",
}
SECONDS_MAX = 30.0


def test_every_benchmark_is_tried_here() -> None:
    found = {path.stem for path in BENCHMARKS.glob("[a-z]*.py")}
    plug_ins = {"sizing_predictor", "oom_yardstick"}  # for the yardsticks of others
    assert found - plug_ins == TINY.keys()


def test_every_benchmark_and_plug_in_is_told_of() -> None:
    page = (BENCHMARKS / "README.md").read_text()
    names = [path.name for path in BENCHMARKS.glob("[a-z]*.py")]
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", TINY)
def test_benchmark_tells_its_figures_with_the_machine(name: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    ran = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *TINY[name].split(), "--json", path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    if ran.stdout.startswith("not measured: "):
        pytest.skip(ran.stdout.strip())
    written = json.loads(path.read_text())
    assert written["benchmark"] == name
    assert written["machine"]["python"] == sys.version.split()[0]
    assert written["machine"]["libraries"]["grpcio"]
    for figure in written["figures"]:
        assert figure["value"] >= 0
        assert f"{figure['value']:.3f} {figure['unit']}" in ran.stdout
