"""Rule files: good ones, bad ones with their messages beside them, and bounds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mass.units import size_words

from controller.core.expressions import Window, WindowFunction
from controller.core.limits import MINUTE_NS, SECOND_NS, Limits
from controller.core.metrics import Scope
from controller.rulefile import RuleFileError, default_rules, find_mistakes, load_rules
from controller.rulefile_parts import MISTAKES_MAX

# Python files end in .py.txt there, so that no tool takes them for code of this project.
FILES = Path(__file__).parent / "rulefiles"
BAD = sorted(path for path in (FILES / "bad").iterdir() if path.suffix != ".expected")


def placed(path: Path, folder: Path) -> Path:
    """Copy a file into the folder under the name it is meant to have."""
    return Path(shutil.copy(path, folder / path.name.removesuffix(".txt")))


def refusal(path: Path, limits: Limits | None = None) -> str:
    with pytest.raises(RuleFileError) as caught:
        load_rules([path], limits or Limits())
    assert caught.value.reason == "INVALID_RULES"
    return caught.value.message.replace(f"{path.parent}/", "")


def write(folder: Path, text: str | bytes, name: str = "rules.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rules_text(count: int) -> str:
    rules = "".join(f"  - alert: A{n}\n    expr: load1 > {n}\n" for n in range(count))
    return "groups:\n- name: g\n  rules:\n" + rules


def test_yaml_file_is_read_with_every_key() -> None:
    high, critical, busy = load_rules([FILES / "good" / "prometheus.yaml"]).rules
    assert (high.name, high.group, high.expression.text) == (
        "NodeMemoryHigh",
        "memory",
        "mem_percent > 80",
    )
    assert (high.hold_ns, high.keep_firing_ns) == (2 * MINUTE_NS, 5 * MINUTE_NS)
    assert high.labels == {"severity": "warning", "tier": "2"}
    assert high.annotations == {
        "summary": "{{ $labels.node }} ({{$labels.severity}}) at {{ $value }}%"
    }
    assert not high.blocks_placement
    assert critical.blocks_placement
    assert critical.expression.metrics == {"mem_percent", "psi_full"}
    assert (critical.hold_ns, critical.labels, critical.annotations) == (0, {}, {})
    assert (busy.name, busy.group, busy.hold_ns) == ("Busy node", "load", 90 * MINUTE_NS)
    assert busy.expression.windows == (Window(WindowFunction.AVG, "load5", 10 * MINUTE_NS),)


def test_file_of_the_specification_is_read(tmp_path: Path) -> None:
    path = placed(FILES / "good" / "specification.py.txt", tmp_path)
    high, stays = load_rules([path]).rules
    assert (high.name, high.expression.text) == ("High memory usage detected!", "mem_percent > 80")
    assert (high.group, high.hold_ns) == ("specification", 0)
    assert high.annotations == {"summary": "High memory usage detected!"}
    assert stays.expression.text == "avg(mem_percent, '5m') > 90 and mem_available < 2*GiB"


def test_metrics_of_the_specification_are_read_where_they_are_declared(tmp_path: Path) -> None:
    rules = load_rules([placed(FILES / "good" / "specification_metrics.py.txt", tmp_path)])
    assert rules.custom_metrics == ("metric1", "metric2")
    assert rules.metrics == {"metric1", "metric2"}
    assert [rule.expression.text for rule in rules.rules] == ["metric1 > 80", "metric2 < 20"]


def test_scopes_and_declared_metrics_are_read() -> None:
    rules = load_rules([FILES / "good" / "scopes.yaml"])
    assert [(rule.name, rule.scope) for rule in rules.rules] == [
        ("QueueLong", Scope.NODE),
        ("ClusterShort", Scope.CLUSTER),
        ("QueueWaits", Scope.CLUSTER),
        ("TaskNearItsLimit", Scope.TASK),
    ]
    assert rules.custom_metrics == ("metric1", "queue_depth")
    assert rules.window_metrics == {"queue_depth"}
    assert rules.scopes == set(Scope)


def test_one_metric_may_be_declared_by_two_files_and_is_one(tmp_path: Path) -> None:
    texts = [
        rules_text(1).replace("load1", "b").replace("A0", name) for name in ("First", "Second")
    ]
    first = write(tmp_path, "metrics: [a, b]\n" + texts[0], "a.yaml")
    second = write(tmp_path, "metrics: [b, c]\n" + texts[1], "b.yaml")
    assert load_rules([first, second]).custom_metrics == ("a", "b", "c")


def test_metric_declared_by_another_file_is_not_known(tmp_path: Path) -> None:
    first = write(tmp_path, "metrics: [own]\n" + rules_text(1), "a.yaml")
    second = write(tmp_path, "groups: [{name: g, rules: [{alert: B, expr: own > 1}]}]", "b.yaml")
    with pytest.raises(RuleFileError, match=r"b\.yaml:1: .*declare it under metrics: \[own\]"):
        load_rules([first, second])


def test_files_come_in_the_order_given(tmp_path: Path) -> None:
    first = placed(FILES / "good" / "specification.py.txt", tmp_path)
    assert [
        rule.group for rule in load_rules([first, FILES / "good" / "prometheus.yaml"]).rules
    ] == [
        "specification",
        "specification",
        "memory",
        "memory",
        "load",
    ]
    assert len(load_rules([])) == 0


def test_default_rules_hold_what_the_documentation_promises() -> None:
    rules = {rule.name: rule for rule in default_rules().rules}
    assert list(rules) == [
        "NodeMemoryHigh",
        "NodeMemoryCritical",
        "NodeMemoryPressure",
        "NodeSwapping",
        "NodeOomKills",
        "NodeSilent",
        "NodeDiskFull",
    ]
    assert rules["NodeMemoryHigh"].hold_ns == 2 * MINUTE_NS
    assert rules["NodeMemoryCritical"].hold_ns == 10 * SECOND_NS
    assert {name for name, rule in rules.items() if rule.blocks_placement} == {
        "NodeMemoryCritical",
        "NodeMemoryPressure",
        "NodeDiskFull",
    }
    for rule in rules.values():
        assert rule.labels["severity"] in ("warning", "critical")
        assert "{{ $labels.node }}" in rule.annotations["summary"]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.name)
def test_bad_file_is_refused_with_its_message(path: Path, tmp_path: Path) -> None:
    copy = placed(path, tmp_path)
    expected = path.with_name(copy.name + ".expected").read_text()
    assert refusal(copy) + "\n" == expected


def test_every_message_has_its_file() -> None:
    expected = {path.name for path in (FILES / "bad").iterdir() if path.suffix == ".expected"}
    assert expected == {path.name.removesuffix(".txt") + ".expected" for path in BAD}


def test_alert_name_is_taken_across_files(tmp_path: Path) -> None:
    first, second = (write(tmp_path, rules_text(1), name) for name in ("a.yaml", "b.yml"))
    with pytest.raises(RuleFileError, match=r"b\.yml:4: .*taken by the rule at .*a\.yaml:4"):
        load_rules([first, second])


def test_a_thousand_rules_are_read_and_one_more_is_refused(tmp_path: Path) -> None:
    limits = Limits(rules_max=20)
    assert len(load_rules([write(tmp_path, rules_text(20))], limits)) == 20
    message = refusal(write(tmp_path, rules_text(21)), limits)
    assert message == "rules.yaml:44: group 'g', rule 'A20': more than 20 rules"
    assert Limits().rules_max == 1_000


def test_file_larger_than_its_bound_is_refused(tmp_path: Path) -> None:
    text = rules_text(3)
    limits = Limits(rule_file_bytes_max=len(text))
    assert len(load_rules([write(tmp_path, text)], limits)) == 3
    message = refusal(write(tmp_path, text + "\n"), limits)
    assert message == f"rules.yaml: the file is larger than {size_words(len(text))}"


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.yaml") == (
        "no.yaml: the file cannot be read: No such file or directory"
    )
    (tmp_path / "folder.yaml").mkdir()
    assert refusal(tmp_path / "folder.yaml") == (
        "folder.yaml: the file cannot be read: Is a directory"
    )


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, b"groups:\n- name: \xff\n")) == (
        "rules.yaml:2: the text is not UTF-8"
    )


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    text = rules_text(2).replace("\n", "\r\n")
    assert len(load_rules([write(tmp_path, b"\xef\xbb\xbf" + text.encode())])) == 2


@pytest.mark.parametrize(
    "text",
    [
        "RULES = 1" + "+1" * 100_000,
        "RULES = " + "-" * 100_000 + "1",
        "RULES = " + "[" * 100_000,
        "RULES = " + "not " * 100_000 + "1",
        "RULES = [{" + "-" * 900 + "1: 'a'}]",
        "RULES = " + "9" * 100_000,
        "RULES = [\0]",
    ],
    ids=["sum", "signs", "brackets", "nots", "deep key", "digits", "null byte"],
)
def test_hostile_python_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(write(tmp_path, text, "rules.py")).startswith("rules.py:")


def test_python_file_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    text = f"RULES = [{{'expression': open({str(mark)!r}, 'w').write('x'), 'alert': 'A'}}]"
    assert "is a text in quotes" in refusal(write(tmp_path, text, "rules.py"))
    assert not mark.exists()


def lines_of(mistakes: list[RuleFileError]) -> list[str]:
    return [mistake.message.split(": ")[0].rpartition("/")[2] for mistake in mistakes]


def test_all_mistakes_of_all_files_are_found(tmp_path: Path) -> None:
    text = (
        "metrics: [load1, own]\n"  # line 1: the first is MASS's own
        "groups:\n"
        "- name: g\n"
        "  rules:\n"
        "  - alert: A\n"
        "    expr: load1 >\n"  # line 6
        "  - alert: B\n"
        "    expr: own > 1\n"
        "  - alert: C\n"
        "    exprr: own > 1\n"  # line 10
        "- name: g\n"  # line 11: taken
        "  rules: []\n"
        "- name: h\n"
        "  rules: []\n"  # line 14
    )
    yaml_file = write(tmp_path, text, "a.yaml")
    python_file = write(
        tmp_path, "RULES = [\n{'expression': 'x > 1', 'alert': 'D'},\n{},\n]\n", "b.py"
    )
    twice = write(tmp_path, "groups: [{name: g, rules: [{alert: B, expr: load1 > 1}]}]", "c.yaml")
    mistakes, are_all = find_mistakes([yaml_file, python_file, twice])
    assert are_all
    found = ["a.yaml:1", "a.yaml:6", "a.yaml:10", "a.yaml:11", "a.yaml:14"]
    assert lines_of(mistakes) == [*found, "b.py:2", "b.py:3", "c.yaml:1"]
    with pytest.raises(RuleFileError) as caught:
        load_rules([yaml_file])
    assert caught.value.message == mistakes[0].message


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.name)
def test_what_is_refused_is_the_first_mistake_found(path: Path, tmp_path: Path) -> None:
    file = placed(path, tmp_path)
    mistakes, _ = find_mistakes([file])
    with pytest.raises(RuleFileError) as caught:
        load_rules([file])
    assert mistakes[0].message == caught.value.message


def test_mistakes_are_told_up_to_a_bound(tmp_path: Path) -> None:
    broken = "".join(f"  - alert: A{n}\n    expr: load1 >\n" for n in range(MISTAKES_MAX + 1))
    file = write(tmp_path, "groups:\n- name: g\n  rules:\n" + broken)
    mistakes, are_all = find_mistakes([file])
    assert (len(mistakes), are_all) == (MISTAKES_MAX, False)
    whole = write(tmp_path, "groups:\n- name: g\n  rules:\n" + broken[: broken.rindex("  -")])
    assert find_mistakes([whole])[1]
