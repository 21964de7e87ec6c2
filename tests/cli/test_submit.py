"""`mass submit`: what is sent, what is printed, what is refused before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from cli.conftest import Mass
from cli.fake_controller import FakeController, task

from controller.cli import client


def test_submit_prints_the_id(mass: Mass) -> None:
    outcome = mass("submit", "--", "sleep", "1")
    assert (outcome.code, outcome.out, outcome.err) == (0, "task 1\n", "")


def test_quiet_submit_prints_only_the_id(mass: Mass) -> None:
    assert mass("submit", "-q", "--mem", "256MiB", "--", "sleep", "1").out == "1\n"


def test_json_submit_prints_an_object(mass: Mass) -> None:
    assert mass("submit", "-o", "json", "--", "sleep", "1").json == {"id": "1"}


def test_every_flag_reaches_the_controller(mass: Mass, fake: FakeController) -> None:
    flags = [
        "--mem",
        "2GiB",
        "--mem-limit",
        "3GiB",
        "-c",
        "1.5",
        "-n",
        "align",
        "--category",
        "bio",
    ]
    flags += ["--priority", "-5", "-t", "10m", "--retries", "2", "--no-requeue", "--env", "A=b=c"]
    flags += ["--env", "B=", "--cwd", "/data"]
    assert mass("submit", *flags, "--", "align", "x").code == 0
    (request,) = fake.submits
    (spec,) = request.tasks
    assert list(spec.command) == ["align", "x"]
    assert (spec.memory_request_bytes, spec.memory_limit_bytes) == (2 << 30, 3 << 30)
    assert (spec.cpus, spec.name, spec.category, spec.priority) == (1.5, "align", "bio", -5)
    assert (spec.time_limit.seconds, spec.retries, spec.no_requeue) == (600, 2, True)
    assert dict(spec.environment) == {"A": "b=c", "B": ""}
    assert spec.working_directory == "/data"
    assert request.user
    assert len(request.request_id) == 32


def test_what_is_not_given_is_left_to_the_controller(mass: Mass, fake: FakeController) -> None:
    mass("submit", "--", "true")
    (spec,) = fake.submits[0].tasks
    assert spec.SerializeToString() == type(spec)(command=["true"]).SerializeToString()


@pytest.mark.parametrize(
    "words",
    [
        ["--", "echo", "--mem", "-q", "--", "x"],
        ["echo", "--mem", "-q", "--", "x"],
    ],
)
def test_words_of_the_command_are_passed_untouched(
    mass: Mass, fake: FakeController, words: list[str]
) -> None:
    mass("submit", "-q", *words)
    assert list(fake.submits[0].tasks[0].command) == ["echo", "--mem", "-q", "--", "x"]


def test_relative_directory_is_taken_from_here(
    mass: Mass, fake: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mass("submit", "--cwd", "sub", "--", "true")
    assert fake.submits[0].tasks[0].working_directory == str(tmp_path / "sub")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mem", "512"], "memory '512' has no unit; write 512MiB or 512MB"),
        (["--mem-limit", "512"], "memory limit '512' has no unit; write 512MiB or 512MB"),
        (["-t", "10"], "time '10' has no unit; write 10s or 10m"),
        (["-c", "0"], "cpus 0 must be above 0 and at most 4096"),
        (["-c", "nan"], "cpus nan must be above 0 and at most 4096"),
        (["--retries", "-1"], "retries -1 must be between 0 and 100"),
        (["--priority", "1000001"], "priority 1000001 must be between -1000000 and 1000000"),
        (["--env", "A"], "env 'A' is not KEY=VALUE"),
        (["--env", "=1"], "env '=1' is not KEY=VALUE"),
        (["-n", "\udcff"], r"'\udcff' is not valid UTF-8"),
        (
            ["--mem", "2KiB", "--mem-limit", "1KiB"],
            "mem-limit 1 KiB is below mem 2 KiB; raise the limit or lower the request",
        ),
        (
            ["--mem", "1025MiB", "--mem-limit", "1024MiB"],
            "mem-limit 1 GiB (1,073,741,824 bytes) is below mem 1 GiB (1,074,790,400 bytes); "
            "raise the limit or lower the request",
        ),
    ],
)
def test_wrong_flag_is_refused_before_anything_is_sent(
    mass: Mass, fake: FakeController, flags: list[str], message: str
) -> None:
    outcome = mass("submit", *flags, "--", "true")
    assert (outcome.code, outcome.err, outcome.out) == (2, f"mass: {message}\n", "")
    assert fake.submits == []


def test_no_command_is_refused(mass: Mass) -> None:
    outcome = mass("submit", "--mem", "1GiB")
    assert outcome.code == 2
    assert outcome.err == (
        "mass: no command; write it after the flags: mass submit -- COMMAND...\n"
    )


def test_unknown_flag_gets_a_proposal(mass: Mass) -> None:
    outcome = mass("submit", "--memm", "1GiB", "--", "true")
    assert outcome.code == 2
    assert "--memm" in outcome.err
    assert "--mem" in outcome.err.replace("--memm", "")


def test_wait_ends_with_the_code_of_the_task(mass: Mass, fake: FakeController) -> None:
    fake.story["1"] = [task("1"), task("1", "FAILED", exit_code=7, reason="exit code 7")]
    outcome = mass("submit", "--wait", "--", "false")
    assert (outcome.code, outcome.out) == (7, "task 1\ntask 1 FAILED: exit code 7\n")


def test_waited_for_json_is_the_ended_task(mass: Mass, fake: FakeController) -> None:
    fake.story["1"] = [task("1", "SUCCEEDED", exit_code=0)]
    outcome = mass("submit", "--wait", "-o", "json", "--", "true")
    assert (outcome.code, outcome.json["id"], outcome.json["state"]) == (0, "1", "SUCCEEDED")


def lines(*values: Any) -> str:
    return "\n".join(json.dumps(value) for value in values)


def test_many_tasks_from_standard_input_are_one_call(mass: Mass, fake: FakeController) -> None:
    text = lines(
        {
            "command": ["align", "x"],
            "mem": "2GiB",
            "mem-limit": 3 << 30,
            "cpus": 2,
            "name": "a",
            "category": "c",
            "priority": 3,
            "time": "1h",
            "retries": 1,
            "no-requeue": True,
            "env": {"A": "1"},
            "cwd": "/data",
        },
        {"command": ["true"], "env": ["B=2"]},
    )
    outcome = mass("submit", "--from", "-", stdin=text + "\n\n")
    assert (outcome.code, outcome.out) == (0, "1\n2\n")
    (request,) = fake.submits
    first, second = request.tasks
    assert (first.memory_request_bytes, first.memory_limit_bytes) == (2 << 30, 3 << 30)
    assert (first.cpus, first.name, first.category, first.priority) == (2, "a", "c", 3)
    assert (first.time_limit.seconds, first.retries, first.no_requeue) == (3600, 1, True)
    assert (dict(first.environment), first.working_directory) == ({"A": "1"}, "/data")
    assert dict(second.environment) == {"B": "2"}


def test_ids_of_many_tasks_are_a_json_array(mass: Mass, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(lines({"command": ["a"]}, {"command": ["b"]}))
    assert mass("submit", "-o", "json", "--from", str(file)).json == ["1", "2"]


def test_waiting_for_many_gives_the_first_code_that_failed(
    mass: Mass, fake: FakeController
) -> None:
    fake.story["1"] = [task("1", "SUCCEEDED", exit_code=0)]
    fake.story["2"] = [task("2", "OUT_OF_MEMORY", signal=9)]
    fake.story["3"] = [task("3", "FAILED", exit_code=3)]
    text = lines(*[{"command": ["a"]}] * 3)
    assert mass("submit", "--wait", "--from", "-", stdin=text).code == 125


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ('{"command": ["a"], "mem": "1"\n', "not JSON: Expecting ',' delimiter at column 30"),
        ("[]", 'not a JSON object; write for example {"command": ["sleep", "1"]}'),
        ("[" * 100_000, "not a task: nested too deeply"),
        ('{"mem": "1GiB"}', "no command; it is the program and its arguments"),
        ('{"command": []}', "no command; it is the program and its arguments"),
        ('{"command": "a b"}', "command must be a list of text, the program and its arguments"),
        ('{"command": ["a"], "memm": 1}', "unknown key 'memm'; did you mean 'mem'?"),
        (
            '{"command": ["a"], "mem_limit": 1}',
            "unknown key 'mem_limit'; did you mean 'mem-limit'?",
        ),
        (
            '{"command": ["a"], "x": 1}',
            "unknown key 'x'; known are command, mem, mem-limit, mem-exact, oom-group, input, "
            "input-size, cpus, name, category, priority, "
            "time, retries, no-requeue, env, cwd, array, after, key, constraint, spread, pack, "
            "gpus, hold, stdout, stderr, retry-delay",
        ),
        ('{"command": ["a"], "mem": "512"}', "memory '512' has no unit; write 512MiB or 512MB"),
        ('{"command": ["a"], "mem": 0}', "memory '0' must be between 1B and 1PiB"),
        ('{"command": ["a"], "mem": 1.5}', 'mem must be text with a unit, "2GiB", or whole bytes'),
        ('{"command": ["a"], "mem": true}', 'mem must be text with a unit, "2GiB", or whole bytes'),
        ('{"command": ["a"], "mem": 1125899906842625}', "memory '1125899906842625' must be between "
         "1B and 1PiB"),
        ('{"mem": ' + "9" * 5_000 + "}", "not a task: a number has too many digits"),
        ('{"command": ["a"], "cpus": "2"}', "cpus must be a number"),
        ('{"command": ["a"], "cpus": NaN}', "cpus nan must be above 0 and at most 4096"),
        ('{"command": ["a"], "retries": 1.0}', "retries must be a whole number"),
        ('{"command": ["a"], "retries": true}', "retries must be a whole number"),
        ('{"command": ["a"], "no-requeue": 1}', "no-requeue must be true or false"),
        ('{"command": ["a"], "time": 60}', "time must be text"),
        ('{"command": ["a"], "cwd": 0}', "cwd must be text"),
        (
            '{"command": ["a"], "env": {"A": 1}}',
            'env must be {"KEY": "VALUE"} or ["KEY=VALUE"], all of it text',
        ),
        ('{"command": ["a"], "name": "x", "name": "y"}', "key 'name' stands there twice"),
        ('{"command": ["\\udcff"]}', r"'\udcff' is not valid UTF-8"),
    ],
)  # fmt: skip
def test_wrong_line_refuses_the_whole_file(
    mass: Mass, fake: FakeController, line: str, message: str
) -> None:
    outcome = mass("submit", "--from", "-", stdin=lines({"command": ["a"]}) + "\n" + line)
    assert outcome.err == f"mass: standard input, line 2: {message}\n"
    assert outcome.code == 2
    assert fake.submits == []


def test_line_that_is_no_utf8_is_refused(mass: Mass) -> None:
    outcome = mass("submit", "--from", "-", stdin=b'{"command": ["\xff"]}')
    assert outcome.err == "mass: standard input, line 1: not valid UTF-8\n"


def test_line_that_is_too_long_is_refused(mass: Mass) -> None:
    text = '{"command": ["' + "a" * (1 << 20) + '"]}'
    outcome = mass("submit", "--from", "-", stdin=text)
    assert outcome.err == "mass: standard input, line 1: longer than 1 MiB\n"


def test_more_than_ten_thousand_tasks_name_the_bound(mass: Mass, fake: FakeController) -> None:
    outcome = mass("submit", "--from", "-", stdin='{"command": ["a"]}\n' * 10_001)
    assert outcome.err == (
        "mass: standard input, line 10001: more than 10,000 tasks; one call is one transaction, "
        "so split the file\n"
    )
    assert fake.submits == []


def test_ten_thousand_tasks_are_one_call(mass: Mass, fake: FakeController) -> None:
    outcome = mass("submit", "--from", "-", stdin='{"command": ["a"]}\n' * 10_000)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [str(number) for number in range(1, 10_001)]
    assert len(fake.submits) == 1


def test_tasks_too_large_for_one_call_name_the_bound(
    mass: Mass, fake: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MESSAGE_SENT_BYTES_MAX", 1_000)
    text = lines(*[{"command": ["a" * 100]}] * 10)
    outcome = mass("submit", "--from", "-", stdin=text)
    assert outcome.code == 2
    assert "10 tasks have 1." in outcome.err
    assert "one call carries 1000 B, so split them" in outcome.err
    assert fake.submits == []


def test_missing_file_and_empty_input_are_refused(mass: Mass) -> None:
    outcome = mass("submit", "--from", "/none")
    assert (outcome.code, outcome.err) == (
        2,
        "mass: cannot read /none: No such file or directory\n",
    )
    outcome = mass("submit", "--from", "-", stdin="\n")
    assert outcome.err == (
        "mass: standard input holds no task; write one JSON object in each line\n"
    )


def test_file_and_flags_together_are_refused(mass: Mass) -> None:
    outcome = mass("submit", "--mem", "1GiB", "--from", "-", "--", "true", stdin="")
    assert (outcome.code, outcome.err) == (
        2,
        "mass: --from takes everything from the file; leave out command, mem\n",
    )


def test_submit_is_repeated_with_the_same_request_id(mass: Mass, fake: FakeController) -> None:
    fake.unavailable_next = 2
    outcome = mass("submit", "-q", "--", "true")
    assert (outcome.code, outcome.out) == (0, "1\n")
    assert len(fake.submits) == 3
    assert len({request.request_id for request in fake.submits}) == 1
    assert outcome.err.count("does not answer; trying for 10 s") == 1


def test_refusal_is_not_repeated(mass: Mass, fake: FakeController) -> None:
    fake.refuse_next = (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "200000 tasks are open, which is the bound",
        "LIMIT_REACHED",
        {"tasks_open_max": "200000"},
    )
    outcome = mass("submit", "-o", "json", "--", "true")
    assert (outcome.code, len(fake.submits)) == (5, 1)
    assert outcome.error == {
        "reason": "LIMIT_REACHED",
        "message": "200000 tasks are open, which is the bound",
        "details": {"tasks_open_max": "200000"},
    }
