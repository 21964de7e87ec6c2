"""Nodes, alerts, rules and the pool, as tables and as JSON; help, version and the addresses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from cli.conftest import Mass
from cli.fake_controller import GIB, FakeController, alert, node
from mass.v1 import memory_pb2, rule_pb2, types_pb2

from controller.cli import client
from controller.cli.address import Address, parse_address, trusted_address
from controller.cli.client import Client
from controller.cli.exits import MEANINGS, Unreachable
from controller.cli.output import OutputFormat
from controller.cli.session import Session
from controller.core.errors import InvalidRequest


def test_nodes_are_a_table_over_all_pages(mass: Mass, fake: FakeController) -> None:
    fake.nodes = {name: node(name) for name in ("n1", "n2", "n3")}
    fake.page_size_max = 2
    header, *rows = mass("node", "list").out.splitlines()
    assert header.split() == [
        "NODE", "STATE", "SCHEDULING", "PRESSURE", "USED/TOTAL", "FOREIGN", "RESERVED", "PROMISE",
        "CPUS", "TASKS", "REASON",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["n1", "n2", "n3"]
    assert "3 GiB/8 GiB" in rows[0]


def test_json_of_a_node_has_stable_keys(mass: Mass, fake: FakeController) -> None:
    fake.nodes["n1"] = node("n1", metrics={"load1": 0.5, "mem_percent": 37.5})
    fake.nodes["n1"].last_seen_at.FromSeconds(0)
    (shown,) = mass("node", "list", "-o", "json").json
    assert shown == mass("node", "show", "n1", "-o", "json").json
    assert shown == {
        "id": "n1",
        "state": "READY",
        "state_reason": None,
        "scheduling": "ENABLED",
        "scheduling_reason": None,
        "scheduling_by": None,
        "scheduling_since": None,
        "pressure": "NONE",
        "memory_total_bytes": 8 * GIB,
        "memory_capacity_bytes": 7 * GIB,
        "memory_used_bytes": 3 * GIB,
        "memory_available_bytes": 0,
        "memory_reserved_bytes": 2 * GIB,
        "memory_tasks_used_bytes": GIB,
        "memory_foreign_bytes": 2 * GIB,
        "memory_promise_bytes": 3 * GIB,
        "cpus": 2.0,
        "cpus_used": 1.0,
        "cpu_percent": 0.0,
        "tasks_running": 1,
        "last_seen_at": "1970-01-01T00:00:00Z",
        "machine_id": None,
        "agent_version": None,
        "enforcement": None,
        "capabilities": [],
        "labels": {},
        "gpus": 0,
        "gpus_used": 0,
        "drain_deadline": None,
        "intake_stopped": False,
        "guard_steps": [],
        "metrics": {"load1": 0.5, "mem_percent": 37.5},
    }


def test_node_show_lists_what_its_guard_did(mass: Mass, fake: FakeController) -> None:
    fake.nodes["n1"] = node("n1", intake_stopped=True, guard_steps=["12:00 KILL", "12:01 THAW"])
    lines = mass("node", "show", "n1").out.splitlines()
    assert lines[-3:] == ["guard", "  12:00 KILL", "  12:01 THAW"]
    assert any(line.split() == ["intake", "stopped", "yes"] for line in lines)


TRAIN = memory_pb2.Category(
    name="train",
    succeeded=5,
    out_of_memory=1,
    memory_peak_median_bytes=GIB,
    memory_peak_p95_bytes=2 * GIB,
    memory_peak_max_bytes=3 * GIB,
    memory_declared_bytes=9 * GIB,
    over_declared=4.5,
    memory_size_bytes=2 * GIB,
    memory_reason="from category: 5 runs",
)


def test_categories_are_a_table_of_what_was_learned(mass: Mass, fake: FakeController) -> None:
    fake.categories = {"train": TRAIN, "new": memory_pb2.Category(name="new")}
    header, new, train = mass("category", "list").out.splitlines()
    assert header.split()[:2] == ["CATEGORY", "RUNS"]
    assert new.split() == ["new", "0", "0", "0", "0", "-", "-", "-", "-", "-", "-", "0", "B"]
    assert "4.5x" in train
    assert train.rstrip().endswith("2 GiB")


def test_category_is_shown_with_what_a_new_task_gets(mass: Mass, fake: FakeController) -> None:
    fake.categories = {"train": TRAIN}
    lines = mass("category", "show", "train").out.splitlines()
    assert any(line.split() == ["memory", "size", "2", "GiB"] for line in lines)
    assert any("from category: 5 runs" in line for line in lines)
    (shown,) = mass("category", "list", "-o", "json").json
    assert shown == mass("category", "show", "train", "-o", "json").json
    assert (shown["runtime_median_seconds"], shown["over_declared"]) == (None, 4.5)
    assert mass("category", "show", "x").err == "mass: no category 'x'\n"


def test_node_show_lists_its_metrics(mass: Mass, fake: FakeController) -> None:
    fake.nodes["n1"] = node("n1", metrics={"mem_percent": 37.5})
    lines = mass("node", "show", "n1").out.splitlines()
    assert lines[-2:] == ["metrics", "  mem_percent  37.5"]
    assert any(line.split() == ["memory", "promise", "3", "GiB"] for line in lines)


def test_node_show_tells_how_limits_are_held_and_what_that_can(
    mass: Mass, fake: FakeController
) -> None:
    fake.nodes["n1"] = node("n1", enforcement="cgroup1", capabilities=["freeze", "node_group"])
    lines = [line.split() for line in mass("node", "show", "n1").out.splitlines()]
    assert ["enforcement", "cgroup1"] in lines
    assert ["capabilities", "freeze", "node_group"] in lines
    assert mass("node", "show", "n1", "-o", "json").json["capabilities"] == ["freeze", "node_group"]


def test_metrics_are_shown_in_their_units(mass: Mass, fake: FakeController) -> None:
    metrics = {"mem_used": 3e9, "mem_growth": 2048.4, "cpu_percent": 96.6183574879, "own": 12345678}
    fake.nodes["n1"] = node("n1", metrics=metrics)
    lines = mass("node", "show", "n1").out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines[-4:]] == [
        "96.6184", "2 KiB/s", "2.8 GiB", "12345678",
    ]  # fmt: skip


def test_unknown_node_is_not_found(mass: Mass) -> None:
    outcome = mass("node", "show", "n9")
    assert (outcome.code, outcome.err) == (3, "mass: no node 'n9'\n")


def test_cordon_carries_the_reason(mass: Mass, fake: FakeController) -> None:
    fake.nodes["n1"] = node("n1")
    outcome = mass("node", "cordon", "n1", "--reason", "new disk")
    assert (outcome.code, outcome.out) == (0, "node n1 CORDONED: new disk\n")
    assert (fake.cordons[0].reason, bool(fake.cordons[0].user)) == ("new disk", True)
    assert mass("node", "uncordon", "n1", "-o", "json").json["scheduling"] == "ENABLED"


def test_alerts_are_a_table_and_an_array(mass: Mass, fake: FakeController) -> None:
    fake.alerts = [alert("NodeMemoryHigh", "n1")]
    header, row = mass("alert", "list").out.splitlines()
    assert header.split() == ["ALERT", "ON", "STATE", "VALUE", "SINCE", "SUMMARY"]
    assert row.split(maxsplit=5) == [
        "NodeMemoryHigh", "n1", "FIRING", "91", "2023-11-14T22:13:20Z", "n1 is at 91 %",
    ]  # fmt: skip
    assert mass("alert", "list", "-o", "json").json == [
        {
            "name": "NodeMemoryHigh",
            "node_id": "n1",
            "state": "FIRING",
            "value": 91.0,
            "labels": {"severity": "warning"},
            "annotations": {"summary": "n1 is at 91 %"},
            "active_at": "2023-11-14T22:13:20Z",
            "fired_at": None,
            "resolved_at": None,
        }
    ]


def test_alerts_say_what_they_are_on(mass: Mass, fake: FakeController) -> None:
    task = types_pb2.Alert(name="Big", node_id="n1", labels={"node": "n1", "task": "12"})
    fake.alerts = [task, types_pb2.Alert(name="Short")]
    _, first, second = mass("alert", "list").out.splitlines()
    assert first.startswith("Big    task 12 on n1")
    assert second.startswith("Short  the cluster")


def test_empty_lists_are_empty_arrays(mass: Mass) -> None:
    for noun in ("task", "node", "alert", "rules"):
        assert mass(noun, "list", "-o", "json").json == []


def test_pool_is_shown_with_who_uses_it(mass: Mass, fake: FakeController) -> None:
    fake.pool.series_bytes = 3 << 19
    fake.pool.allocations = 12_345
    lines = mass("pool", "show").out.splitlines()
    fields = {line[:15].strip(): line[15:].strip() for line in lines}
    assert (fields["capacity"], fields["series"]) == ("64 MiB", "1.5 MiB")
    assert (fields["allocations"], fields["tails kept"]) == ("12,345", "yes")
    shown = mass("pool", "show", "-o", "json").json
    assert (shown["capacity_bytes"], shown["series_bytes"]) == (64 << 20, 3 << 19)
    assert shown["tails_kept"] is True


def test_rules_in_force_are_listed(mass: Mass, fake: FakeController) -> None:
    rule = rule_pb2.Rule(
        name="Full",
        group="memory",
        expression="mem_percent > 95",
        blocks_placement=True,
        scope="node",
        holding_nodes=2,
        known_nodes=5,
    )
    rule.hold.FromSeconds(90)
    own = rule_pb2.Rule(name="Own", group="own", expression="metric1 > 80", scope="node")
    fake.rules = [rule, own]
    assert mass("rules", "list").out.splitlines()[1].split() == [
        "Full", "node", "1m30s", "placement", "2/5", "mem_percent", ">", "95",
    ]  # fmt: skip
    assert "NO_DATA" in mass("rules", "list").out.splitlines()[2]
    assert mass("rules", "list", "-o", "json").json[0]["hold_seconds"] == 90.0


GOOD_RULES = """groups:
- name: memory
  rules:
  - alert: Full
    expr: mem_percent > 95
"""


def test_rules_check_asks_no_controller(
    mass: Mass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASS_CONTROLLER", "nowhere.invalid:1")
    good = tmp_path / "good.yaml"
    good.write_text(GOOD_RULES)
    outcome = mass("rules", "check", str(good))
    assert (outcome.code, outcome.out) == (0, f"{good}: 1 rule, no mistake found\n")
    assert mass("rules", "check", str(good), "-o", "json").json == [{"file": str(good), "rules": 1}]


def test_rules_check_tells_all_mistakes(mass: Mass, tmp_path: Path) -> None:
    bad = tmp_path / "rules.yaml"
    rules = "".join(f"  - alert: A{n}\n    expr: nonsense > {n}\n" for n in range(25))
    bad.write_text("groups:\n- name: g\n  rules:\n" + rules)
    outcome = mass("rules", "check", str(bad))
    assert outcome.code == 1
    assert outcome.err.count("rule 'A") == 20
    assert "20 mistakes, the first of more" in outcome.err


def test_rules_check_names_the_place_of_a_mistake(mass: Mass, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(GOOD_RULES.replace("expr:", "epxr:"))
    outcome = mass("rules", "check", str(bad))
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{bad}:5" in outcome.err
    assert "epxr" in outcome.err
    assert mass("rules", "check", str(bad), "-o", "json").error["reason"] == "INVALID_RULES"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7461", Address("127.0.0.1", 7461)),
        ("localhost", Address("localhost", 7461)),
        ("[::1]:80", Address("::1", 80)),
        ("[::1]", Address("::1", 7461)),
        (" node-1.lab:1 ", Address("node-1.lab", 1)),
    ],
)
def test_address_is_read(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "controller '' is not an address; write HOST:PORT, for example 127.0.0.1:7461"),
        (":80", "controller ':80' is not an address; write HOST:PORT, for example 127.0.0.1:7461"),
        (
            "http://a:80",
            "controller 'http://a:80' is not an address; write HOST:PORT, "
            "for example 127.0.0.1:7461",
        ),
        ("a:0", "controller 'a:0' has the port '0'; it must be 1 to 65535"),
        ("a:65536", "controller 'a:65536' has the port '65536'; it must be 1 to 65535"),
        ("a:x", "controller 'a:x' has the port 'x'; it must be 1 to 65535"),
        ("a:", "controller 'a:' has the port ''; it must be 1 to 65535"),
    ],
)
def test_wrong_address_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_address(text)
    assert caught.value.message == message


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_own_machine_is_trusted(host: str) -> None:
    assert trusted_address(f"{host}:1", insecure=False).port == 1


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "node-1", "localhost.evil", "[fe80::1]"])
def test_other_machine_needs_insecure(mass: Mass, host: str) -> None:
    outcome = mass("task", "list", "--controller", f"{host}:7461")
    assert (outcome.code, outcome.err) == (
        2,
        f"mass: controller {host}:7461 is not on this machine and there is no TLS yet; "
        "add --insecure if the network between is trusted\n",
    )
    assert trusted_address(f"{host}:7461", insecure=True).port == 7461


class HandClock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_controller_that_does_not_answer_is_tried_for_ten_seconds() -> None:
    clock = HandClock()
    notes: list[str] = []
    address = Address("127.0.0.1", unused_port())
    asking = Client(address, notes.append, clock=clock, sleep=clock.sleep)
    with pytest.raises(Unreachable) as caught:
        asking.pool()
    asking.close()
    assert notes == [f"controller {address} does not answer; trying for 10 s"]
    assert 9.0 < clock.now <= 10.0
    assert caught.value.message == (
        f"controller {address} does not answer; start one with 'mass controller', or with "
        "'mass dev' together with an agent, or name another with --controller"
    )


def test_unreachable_controller_gives_code_four(
    mass: Mass, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.0)
    outcome = mass("pool", "show", "--controller", f"127.0.0.1:{unused_port()}", "-o", "json")
    assert (outcome.code, outcome.error["reason"]) == (4, "CONTROLLER_UNREACHABLE")


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", 2),
        (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", 3),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED", 5),
        (grpc.StatusCode.UNAVAILABLE, "NODE_UNAVAILABLE", 5),
        (grpc.StatusCode.FAILED_PRECONDITION, "REFUSED", 1),
    ],
)
def test_status_of_the_controller_decides_the_code(
    mass: Mass, fake: FakeController, code: grpc.StatusCode, reason: str, exit_code: int
) -> None:
    fake.refuse_next = (code, "it says no", reason, {"a": "1"})
    outcome = mass("node", "list", "-o", "json")
    assert outcome.code == exit_code
    assert outcome.error == {"reason": reason, "message": "it says no", "details": {"a": "1"}}


def test_status_without_details_is_shown_by_its_name(mass: Mass, fake: FakeController) -> None:
    fake.abort_next = grpc.StatusCode.PERMISSION_DENIED
    outcome = mass("node", "list", "-o", "json")
    assert (outcome.code, outcome.error["reason"]) == (1, "PERMISSION_DENIED")


HEAVY = ("grpc", "rich", "numpy", "sqlalchemy", "google.protobuf", "asyncio")


@pytest.mark.parametrize("words", [["--help"], ["task", "--help"], ["submit", "--help"], []])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['mass', *{words!r}]\n"
        "from controller.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_completion_in_bash_imports_nothing_heavy() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "controller.cli"]
    environment = {"_MASS_COMPLETE": "complete_bash", "COMP_WORDS": "mass ta", "COMP_CWORD": "1"}
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={**os.environ, **environment},
    )
    assert done.stdout.split() == ["task"]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert imported.isdisjoint(HEAVY)


def test_version_is_printed(mass: Mass) -> None:
    outcome = mass("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("mass")


def test_upgrade_of_no_store_is_refused_by_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli", "db", "upgrade", "--data", "/none"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "LANG": "C.UTF-8"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mass: ")
    assert "/none" in done.stderr


def test_documented_exit_codes_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ") and line.split("|")[1].strip().isdigit()
    ]
    assert {int(code): meaning for code, meaning in rows} == {
        int(code): meaning for code, meaning in MEANINGS.items()
    }


def test_words_for_states_are_those_of_the_design() -> None:
    from controller.cli.records import node_pressure, task_state

    assert task_state(types_pb2.Task(state=types_pb2.TASK_STATE_OUT_OF_MEMORY)) == "OUT_OF_MEMORY"
    assert node_pressure(types_pb2.Node(pressure=types_pb2.PRESSURE_CRITICAL)) == "CRITICAL"
    unknown = types_pb2.Task()
    unknown.ParseFromString(b"\x18\x63")  # field 3, value 99: a state of a newer controller
    assert task_state(unknown) == "UNKNOWN_99"


def test_same_remark_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session("127.0.0.1:1", False, OutputFormat.TABLE)
    for text in ("away", "away", "back", "away"):
        session.note(text)
    assert capsys.readouterr().err == "mass: away\nmass: back\n"
