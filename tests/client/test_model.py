"""Specs become messages, messages become values, and importing `mass` stays light."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mass
import pytest
from mass.v1 import types_pb2

GIB = 1 << 30
TASK_STATES = list(types_pb2.TaskState.keys())
OOM_CAUSES = list(types_pb2.OomCause.keys())


def test_spec_becomes_its_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    spec = mass.TaskSpec(
        ("align", "s1.fq"),
        mem="2GiB",
        mem_limit=3 * GIB,
        cpus=0.5,
        name="one",
        category="align",
        priority=-5,
        time_limit=timedelta(minutes=90),
        retries=2,
        requeue=False,
        env={"THREADS": "2"},
        cwd=Path("below"),
        constraint="label=ssd",
        prefer="pack",
        gpus=1,
        stdout="out-%j",
        stderr="/err",
        hold=True,
        retry_delay="5s",
        after=[12, "13:any", "prepare:fail"],
        key="one",
        array="1-3",
        array_running_max=2,
        mem_exact=True,
        input_size="1KiB",
        oom_group=True,
    )
    message = types_pb2.TaskSpec(
        command=["align", "s1.fq"],
        name="one",
        category="align",
        memory_request_bytes=2 * GIB,
        memory_limit_bytes=3 * GIB,
        cpus=0.5,
        priority=-5,
        retries=2,
        no_requeue=True,
        environment={"THREADS": "2"},
        working_directory=str(tmp_path / "below"),
        constraint="label=ssd",
        preference="PREFERENCE_PACK",
        gpus=1,
        stdout_path=str(tmp_path / "out-%j"),
        stderr_path="/err",
        hold=True,
        after=[
            types_pb2.Dependency(task_id="12", kind="DEPENDENCY_KIND_OK"),
            types_pb2.Dependency(task_id="13", kind="DEPENDENCY_KIND_ANY"),
            types_pb2.Dependency(key="prepare", kind="DEPENDENCY_KIND_FAIL"),
        ],
        key="one",
        array=types_pb2.ArraySpec(indexes="1-3", running_max=2),
        memory_exact=True,
        input_bytes=1 << 10,
        oom_group=True,
    )
    message.time_limit.FromSeconds(5_400)
    message.retry_delay.FromSeconds(5)
    assert spec.to_wire() == message
    # Whatever the wire may carry can be said: a field that is added there must come in here.
    unsaid = {field.name for field in message.DESCRIPTOR.fields} - {
        field.name for field, _ in message.ListFields()
    }
    assert not unsaid, f"the model of the client has no word for {sorted(unsaid)}"
    assert mass.TaskSpec(["true"]).to_wire() == types_pb2.TaskSpec(command=["true"])


def test_options_are_the_fields_of_a_spec() -> None:
    fields = {field.name: field for field in dataclasses.fields(mass.TaskSpec)}
    options = set(mass.TaskOptions.__annotations__)
    assert set(fields) == options | {"command"}
    documented = mass.TaskSpec.__doc__ or ""
    assert [name for name in fields if f"`{name}`" not in documented] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mem": "2"}, "mem '2' has no unit"),
        ({"mem_limit": 0}, "mem_limit '0' must be between 1B and 1PiB"),
        ({"cpus": 0}, "cpus 0 must be above 0"),
        ({"cpus": float("nan")}, "cpus nan must be above 0"),
        ({"priority": 1 << 40}, "the task \\['true'\\] cannot be"),
        ({"retries": 1.5}, "the task \\['true'\\] cannot be"),
        ({"env": {"A": 1}}, "the task \\['true'\\] cannot be"),
        ({"name": "\ud800"}, "the task \\['true'\\] cannot be"),
        ({"time_limit": "90"}, "time_limit '90' has no unit"),
        ({"retry_delay": "90"}, "retry_delay '90' has no unit"),
        ({"prefer": "best"}, "prefer 'best' is not spread or pack"),
        ({"after": "12:soon"}, "after '12:soon' is not ID, ID:ok, ID:any or ID:fail"),
        ({"after": ["0"]}, "after '0' is not ID"),
        ({"key": "1a"}, "key '1a' must be letters"),
        ({"array_running_max": 2}, "array_running_max 2 is of no array"),
        ({"gpus": 1.5}, "the task \\['true'\\] cannot be"),
    ],
)
def test_option_that_cannot_be_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(mass.InvalidValue, match=words):
        mass.TaskSpec(["true"], **options).to_wire()


def test_command_as_one_text_is_refused() -> None:
    with pytest.raises(mass.InvalidValue, match="command 'sleep 1' is one text; give a list"):
        mass.TaskSpec("sleep 1").to_wire()


def test_message_becomes_its_value() -> None:
    message = types_pb2.Task(
        id="7",
        spec=types_pb2.TaskSpec(command=["true"], name="n", category="c", memory_request_bytes=5),
        state="TASK_STATE_OUT_OF_MEMORY",
        signal=9,
        oom_cause="OOM_CAUSE_OWN_LIMIT",
        memory_peak_bytes=6,
    )
    message.ended_at.FromSeconds(1_700_000_000)
    info = mass.TaskInfo.from_wire(message)
    assert (info.id, info.name, info.category, info.command) == ("7", "n", "c", ("true",))
    assert info.state is mass.TaskState.OUT_OF_MEMORY
    assert info.oom_cause is mass.OomCause.OWN_LIMIT
    assert (info.ended, info.succeeded) == (True, False)
    assert (info.exit_code, info.signal) == (None, 9)
    assert info.started_at is None
    assert info.ended_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (info.memory_request_bytes, info.memory_peak_bytes) == (5, 6)


def test_every_word_of_the_wire_has_its_value() -> None:
    for name in TASK_STATES:
        state = mass.TaskInfo.from_wire(types_pb2.Task(state=name)).state
        wanted = name.removeprefix("TASK_STATE_")
        assert state.value == ("UNKNOWN" if wanted == "UNSPECIFIED" else wanted)
    for name in OOM_CAUSES:
        cause = mass.TaskInfo.from_wire(types_pb2.Task(oom_cause=name)).oom_cause
        assert cause.value == name.removeprefix("OOM_CAUSE_")
    newer = types_pb2.Task.FromString(types_pb2.Task(id="1").SerializeToString() + b"\x18\x63")
    assert mass.TaskInfo.from_wire(newer).state is mass.TaskState.UNKNOWN


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    words = [sys.executable, "-c", script]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_messages_and_called_tasks_do_without_grpc() -> None:
    assert "grpc" not in loaded_by("import mass, mass.v1.task_pb2; dir(mass); mass.__all__")
    assert loaded_by("import mass.call").isdisjoint({"grpc", "google", "asyncio"})
    assert "grpc" in loaded_by("from mass import Client")


def test_every_name_is_found_and_others_are_not() -> None:
    for name in mass.__all__:
        assert getattr(mass, name).__name__ == name or name == "TaskOptions"
    assert set(mass.__all__) <= set(dir(mass))
    with pytest.raises(AttributeError, match="module 'mass' has no attribute 'Clint'"):
        mass.Clint  # noqa: B018


def test_client_needs_no_more_than_the_base_install() -> None:
    loaded = loaded_by("import mass; [getattr(mass, name) for name in mass.__all__]")
    assert {"grpc", "mass.executor"} <= loaded
    assert loaded.isdisjoint({"google.rpc", "psutil", "controller", "agent", "allocator", "numpy"})
