"""docs/rules.md: its examples are read by the controller's own reader, its tables are complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agent.config import read_config
from controller.core.expressions import REDUCTION_NAMES, WindowFunction, parse
from controller.core.limits import DEFAULT_LIMITS, SECOND_NS
from controller.core.metrics import METRICS, SCOPE_METRICS, Scope
from controller.core.vocabulary import vocabulary
from controller.rulefile import RULE_KEYS, load_rules

DOCUMENT = Path(__file__).parents[1] / "docs" / "rules.md"
TEXT = DOCUMENT.read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \| ([\w ]+) \| (.*) \|$", re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_all_blocks_are_of_a_kind_that_is_tested() -> None:
    assert {kind for kind, _ in BLOCKS} == {"yaml", "python", "sh"}


@pytest.mark.parametrize("text", blocks("yaml") + blocks("python"))
def test_example_is_read(text: str, tmp_path: Path) -> None:
    ending = "py" if text in blocks("python") else "yaml"
    path = tmp_path / f"rules.{ending}"
    path.write_text(text)
    rules = load_rules([path])
    assert len(rules) == len(re.findall(r"- alert:|\"alert\":", text))


def test_agent_takes_the_flags_of_the_example() -> None:
    (line,) = blocks("sh")
    program, *flags = shlex.split(line)
    settings = read_config(flags, {}).settings
    assert program == "mass-agent"
    assert [metric.name for metric in settings.metrics] == ["queue_depth"]
    assert settings.metric_dir == Path("/var/lib/node_exporter")


def test_every_key_and_every_metric_is_in_a_table() -> None:
    assert all(re.search(rf"^\| `{key}\b", TEXT, re.MULTILINE) for key in RULE_KEYS)
    expected = [(m.name, m.unit.value, m.meaning) for m in METRICS]
    for scope in (Scope.CLUSTER, Scope.TASK):
        expected += [(m.name, m.unit.value, m.meaning) for m in SCOPE_METRICS[scope]]
    assert ROW.findall(TEXT) == expected


def test_every_function_is_in_a_table() -> None:
    for function in WindowFunction:
        shown = re.search(rf"`{function.value}\(m, '5m'\)`", TEXT)
        assert shown, function
    for name in REDUCTION_NAMES:
        assert re.search(rf"^\| .*`{name}\((x|condition)\)`", TEXT, re.MULTILINE), name


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("50 < mem_percent <= 80", Scope.NODE),
        ("not mem_percent > 80", Scope.NODE),
        ("sum(avg(mem_used, '5m')) > 1", Scope.CLUSTER),
    ],
)
def test_expression_in_the_text_is_read(text: str, scope: Scope) -> None:
    part = text.removesuffix(" > 1")
    assert part in TEXT.replace("\n", " ")
    assert parse(text, vocabulary(scope)).text == text


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    limits = DEFAULT_LIMITS
    assert f"at least every {limits.interval_ns // SECOND_NS} s" in TEXT.replace("\n", " ")
    assert f"every {limits.evaluation_gap_ns // 1_000_000} ms" in TEXT
    assert f"for at most\n{limits.sample_hold_ns // SECOND_NS} s" in TEXT
    kept_minutes = limits.alerts_resolved_kept_ns // SECOND_NS // 60
    assert f"listed for {kept_minutes} minutes" in TEXT
