"""`mass task ...`, `mass run`: what is shown, what is followed, and with which code it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cli.conftest import Mass
from cli.fake_controller import GIB, FakeController, Served, task
from mass.v1 import task_pb2, types_pb2

from controller.cli.exits import MEANINGS, ExitCode, task_exit_code


def holding(fake: FakeController, *tasks: types_pb2.Task) -> None:
    fake.tasks.update((one.id, one) for one in tasks)


def test_list_is_a_table_with_ended_tasks_last(mass: Mass, fake: FakeController) -> None:
    holding(
        fake,
        task("1", "PENDING", reason="no node has 1 GiB to promise"),
        task("2", "SUCCEEDED", memory_peak_bytes=3 << 29, node_id="n1"),
    )
    outcome = mass("task", "list")
    assert outcome.code == 0
    header, waiting, ended = outcome.out.splitlines()
    assert header.split() == [
        "ID", "NAME", "STATE", "NODE", "USED/PEAK", "REQUEST", "RUNTIME", "REASON",
    ]  # fmt: skip
    assert waiting.split(maxsplit=8)[:-1] == ["1", "sleep", "PENDING", "-", "-", "1", "GiB", "-"]
    assert waiting.endswith("  no node has 1 GiB to promise")
    assert ended.split() == [
        "2", "sleep", "SUCCEEDED", "n1", "-/1.5", "GiB", "1", "GiB", "1m00s",
    ]  # fmt: skip


def test_list_pages_until_the_limit_and_says_that_there_is_more(
    mass: Mass, fake: FakeController
) -> None:
    holding(fake, *(task(str(number)) for number in range(1, 8)))
    fake.page_size_max = 2
    outcome = mass("task", "list", "--limit", "5")
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == list("76543")
    assert outcome.err == "mass: only the first 5; see more with --limit\n"
    assert len(mass("task", "list", "--limit", "0", "-o", "json").json) == 7
    newest = mass("task", "list", "--limit", "5", "--sort", "id")
    assert newest.err == "mass: only the newest 5; see more with --limit\n"


def test_what_runs_is_listed_before_what_starts_waits_and_has_ended(
    mass: Mass, fake: FakeController
) -> None:
    states = ["RUNNING", "ASSIGNED", "HELD", "SUCCEEDED", "PENDING", "STARTING", "PAUSED", "FAILED"]
    holding(fake, *(task(str(number), state) for number, state in enumerate(states, 1)))

    def listed(*words: str) -> str:
        return " ".join(one["id"] for one in mass("task", "list", "-o", "json", *words).json)

    assert listed() == "7 1 6 2 5 3 8 4"
    assert listed("--sort", "id") == "8 7 6 5 4 3 2 1"
    assert listed("--state", "failed", "--state", "assigned") == "2 8"


@pytest.mark.parametrize("limit", [1, 3, 4, 20])
def test_of_a_burst_the_limit_lets_through_what_runs_each_once(
    mass: Mass, fake: FakeController, limit: int
) -> None:
    burst = ["SUCCEEDED"] * 5 + ["RUNNING"] * 2 + ["ASSIGNED"] * 2 + ["PENDING"] * 30
    holding(fake, *(task(str(number), state) for number, state in enumerate(burst, 1)))
    fake.page_size_max = 3
    outcome = mass("task", "list", "--limit", str(limit), "-o", "json")
    whole = ["7", "6", "9", "8", *map(str, range(39, 9, -1)), "5", "4", "3", "2", "1"]
    assert [one["id"] for one in outcome.json] == whole[:limit]


def test_list_keeps_only_the_states_asked_for(mass: Mass, fake: FakeController) -> None:
    holding(fake, task("1", "FAILED"), task("2", "RUNNING"), task("3", "PENDING"))
    listed = mass("task", "list", "--state", "failed", "--state", "RUNNING", "-o", "json").json
    assert [one["id"] for one in listed] == ["2", "1"]


def test_unknown_state_is_refused_with_all_names(mass: Mass) -> None:
    outcome = mass("task", "list", "--state", "done")
    assert outcome.code == 2
    assert outcome.err.startswith("mass: state 'done' is none of HELD, PENDING, ASSIGNED, STARTING")


def outgrown() -> types_pb2.Task:
    """Return a task with a value in most fields."""
    spec = types_pb2.TaskSpec(
        command=["align", "a b"],
        name="align",
        category="bio",
        memory_request_bytes=2 * GIB,
        memory_limit_bytes=3 * GIB,
        cpus=1.5,
        priority=2,
        retries=1,
        environment={"B": "2", "A": "1"},
        working_directory="/data",
    )
    spec.time_limit.FromMilliseconds(1500)
    return task(
        "12",
        "OUT_OF_MEMORY",
        spec=spec,
        node_id="n1",
        user="ada",
        reason_code="OWN_LIMIT",
        reason="it outgrew its limit",
        signal=9,
        memory_peak_bytes=3 * GIB,
        memory_limit_bytes=3 * GIB,
        oom_cause=types_pb2.OOM_CAUSE_OWN_LIMIT,
        memory_requeues=1,
    )


def test_json_of_a_task_has_stable_keys(mass: Mass, fake: FakeController) -> None:
    holding(fake, outgrown())
    (shown,) = mass("task", "show", "12", "-o", "json").json
    assert shown == {
        "id": "12",
        "name": "align",
        "category": "bio",
        "command": ["align", "a b"],
        "state": "OUT_OF_MEMORY",
        "reason_code": "OWN_LIMIT",
        "reason": "it outgrew its limit",
        "user": "ada",
        "attempt": 1,
        "node_id": "n1",
        "priority": 2,
        "cpus": 1.5,
        "memory_request_bytes": 2 * GIB,
        "memory_auto": False,
        "memory_exact": False,
        "memory_size_bytes": 0,
        "memory_expected_peak_bytes": None,
        "memory_elastic": False,
        "memory_reason": None,
        "input_bytes": None,
        "oom_group": False,
        "memory_limit_asked_bytes": 3 * GIB,
        "memory_limit_bytes": 3 * GIB,
        "memory_reserved_bytes": 0,
        "memory_used_bytes": 0,
        "memory_peak_bytes": 3 * GIB,
        "time_limit_seconds": 1.5,
        "retries": 1,
        "no_requeue": False,
        "failures": 0,
        "memory_requeues": 1,
        "memory_spared": 0,
        "environment": {"A": "1", "B": "2"},
        "working_directory": "/data",
        "constraint": None,
        "gpus": 0,
        "gpu_indexes": [],
        "stdout_path": None,
        "stderr_path": None,
        "after": [],
        "array_id": None,
        "array_index": None,
        "not_before": None,
        "submitted_at": "2023-11-14T22:13:20Z",
        "started_at": "2023-11-14T22:13:21Z",
        "ended_at": "2023-11-14T22:14:21Z",
        "exit_code": None,
        "signal": 9,
        "oom_cause": "OWN_LIMIT",
    }


def test_show_names_peak_and_limit_in_words(mass: Mass, fake: FakeController) -> None:
    holding(fake, task("3", memory_peak_bytes=3 << 29, memory_limit_bytes=2 * GIB))
    lines = dict(line.split("  ", 1) for line in mass("task", "show", "3").out.splitlines())
    fields = {name: value.strip() for name, value in lines.items()}
    assert (fields["memory peak"], fields["memory limit"]) == ("1.5 GiB", "2 GiB")
    assert (fields["command"], fields["exit code"]) == ("sleep 60", "-")


def test_control_characters_of_a_name_do_not_reach_the_terminal(
    mass: Mass, fake: FakeController
) -> None:
    holding(fake, task("1", spec=types_pb2.TaskSpec(command=["x"], name="\x1b[2Jx\n")))
    assert "?[2Jx?" in mass("task", "list").out
    assert "\x1b" not in mass("task", "show", "1").out


def test_unknown_task_is_not_found(mass: Mass) -> None:
    outcome = mass("task", "show", "77")
    assert (outcome.code, outcome.err) == (3, "mass: no task 77\n")
    outcome = mass("task", "show", "77", "-o", "json")
    assert outcome.error == {
        "reason": "NOT_FOUND",
        "message": "no task 77",
        "details": {"task": "77"},
    }


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["2", "1"], ["2", "1"]),
        (["1-3,5"], ["1", "2", "3", "5"]),
        (["last"], ["5"]),
        (["1-2", "2-3", "1"], ["1", "2", "3"]),
        (["1,last"], ["1", "5"]),
    ],
)
def test_selectors_name_tasks_once_in_their_order(
    mass: Mass, fake: FakeController, words: list[str], ids: list[str]
) -> None:
    holding(fake, *(task(str(number)) for number in range(1, 6)))
    assert [one["id"] for one in mass("task", "show", *words, "-o", "json").json] == ids


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("0", "'0' is no task id; write 12, 1-5,7 or last"),
        ("x", "'x' is no task id; write 12, 1-5,7 or last"),
        ("", "'' is no task id; write 12, 1-5,7 or last"),
        ("1,,2", "'' is no task id; write 12, 1-5,7 or last"),
        ("5-1", "range '5-1' runs backwards; write 1-5"),
        ("1-10001", "range '1-10001' is above the bound of 10,000 tasks"),
        ("1-9999,20000-20001", "more than 10,000 tasks named; that is the bound of a call"),
    ],
)
def test_wrong_selector_is_refused(mass: Mass, word: str, message: str) -> None:
    outcome = mass("task", "cancel", word)
    assert (outcome.code, outcome.err) == (2, f"mass: {message}\n")


def test_last_without_any_task_is_not_found(mass: Mass) -> None:
    outcome = mass("task", "why", "last")
    assert (outcome.code, outcome.err) == (
        3,
        "mass: there is no last task: none was submitted yet\n",
    )


def test_command_for_one_task_refuses_several(mass: Mass) -> None:
    outcome = mass("task", "why", "1-3")
    assert (outcome.code, outcome.err) == (
        2,
        "mass: '1-3' names 3 tasks; this command takes one\n",
    )


def test_cancel_sends_the_grace_and_says_what_became_of_it(
    mass: Mass, fake: FakeController
) -> None:
    holding(fake, task("1"), task("2"))
    outcome = mass("task", "cancel", "1", "2", "--grace", "500ms")
    assert outcome.out == "task 1 CANCELLED\ntask 2 CANCELLED\n"
    (request,) = fake.cancels
    assert (list(request.ids), request.grace.ToMilliseconds()) == (["1", "2"], 500)
    assert mass("task", "cancel", "1", "-q").out == ""
    assert not fake.cancels[1].HasField("grace")


ENDS = [
    (task("1", "SUCCEEDED", exit_code=0), 0),
    (task("1", "FAILED", exit_code=7), 7),
    (task("1", "FAILED", signal=15), 143),
    (task("1", "FAILED", signal=9), 137),
    (task("1", "FAILED"), 126),
    (task("1", "FAILED", exit_code=0), 1),
    (task("1", "FAILED", exit_code=256), 1),
    (task("1", "OUT_OF_MEMORY", signal=9), 125),
    (task("1", "TIMED_OUT", signal=15), 124),
    (task("1", "CANCELLED", signal=15), 130),
    (task("1", "LOST"), 123),
]


@pytest.mark.parametrize(("ended", "code"), ENDS)
def test_wait_ends_with_the_code_for_the_end(
    mass: Mass, fake: FakeController, ended: types_pb2.Task, code: int
) -> None:
    assert task_exit_code(ended) == code
    holding(fake, ended)
    assert mass("task", "wait", "1").code == code


def test_codes_of_ends_do_not_clash_with_those_of_errors() -> None:
    assert len(MEANINGS) == len(ExitCode)
    assert max(code for code in ExitCode if code < 100) < 123


def test_wait_gives_the_first_failure_in_the_order_named(mass: Mass, fake: FakeController) -> None:
    holding(fake, task("1"), task("2"), task("3"))
    fake.story["1"] = [task("1", "FAILED", exit_code=4, reason="exit code 4")]
    fake.story["2"] = [task("2", "SUCCEEDED", exit_code=0)]
    fake.story["3"] = [task("3", "FAILED", exit_code=5)]
    outcome = mass("task", "wait", "2", "3", "1")
    assert outcome.code == 5
    assert outcome.out == "task 2 SUCCEEDED\ntask 3 FAILED\ntask 1 FAILED: exit code 4\n"
    assert mass("task", "wait", "-q", "2", "1").out == ""


def test_wait_by_name_counts_those_that_have_ended_before(mass: Mass, fake: FakeController) -> None:
    holding(fake, task("1", "SUCCEEDED"), task("2", "FAILED", exit_code=7), task("3"))
    fake.tasks["3"].spec.name = "other"
    outcome = mass("task", "wait", "--name", "sleep")
    assert (outcome.code, outcome.out) == (7, "task 1 SUCCEEDED\ntask 2 FAILED\n")
    fake.tasks["2"] = task("2", "SUCCEEDED")
    assert mass("task", "wait", "--name", "sleep").code == 0
    newest = mass("task", "wait", "--name", "sleep", "--since", "1h")
    assert (newest.code, newest.err) == (3, "mass: no task of the last 1h has the name 'sleep'\n")
    assert mass("task", "wait", "1", "--since", "1h").code == 2


@pytest.mark.parametrize("command", ["cancel", "hold", "pause"])
def test_other_commands_mean_by_name_those_that_have_not_ended(
    mass: Mass, fake: FakeController, command: str
) -> None:
    holding(fake, task("1", "SUCCEEDED"), task("2", "PENDING"))
    assert "task 2 " in mass("task", command, "--name", "sleep").out
    fake.tasks = {"1": task("1", "FAILED")}
    outcome = mass("task", command, "--name", "sleep")
    assert outcome.code == 3
    assert outcome.err == "mass: no task that has not ended has the name 'sleep'\n"
    both = mass("task", command, "--name", "sleep", "--state", "held", "--state", "lost")
    assert both.err == "mass: no task has the name 'sleep' and the state HELD or LOST\n"


def test_json_wait_is_an_array_in_the_order_named(mass: Mass, fake: FakeController) -> None:
    holding(fake, task("1", "SUCCEEDED", exit_code=0), task("2", "FAILED", exit_code=6))
    outcome = mass("task", "wait", "2", "1", "-o", "json")
    assert (outcome.code, [one["id"] for one in outcome.json]) == (6, ["2", "1"])


def test_wait_goes_on_after_the_controller_was_away(mass: Mass, fake: FakeController) -> None:
    holding(fake, task("1", "SUCCEEDED", exit_code=0))
    fake.unavailable_next = 1
    outcome = mass("task", "wait", "1")
    assert (outcome.code, outcome.out) == (0, "task 1 SUCCEEDED\n")


def test_why_prints_sentences_and_the_refusals(mass: Mass, fake: FakeController) -> None:
    holding(fake, task("4", "PENDING"))
    fake.refusals = [
        task_pb2.NodeRefusal(
            node_id="n1",
            reason_code="MEMORY",
            reason="asks 2 GiB, n1 can promise 1 GiB",
            requested_bytes=2 * GIB,
            promise_bytes=GIB,
            reserved_bytes=3 * GIB,
            foreign_used_bytes=GIB // 2,
        )
    ]
    sentence, empty, header, row = mass("task", "why", "4").out.splitlines()
    assert (sentence, empty) == ("task 4 waits", "")
    assert header.split() == ["NODE", "WHY", "ASKED", "PROMISE", "RESERVED", "FOREIGN", "REASON"]
    assert (
        row == "n1    MEMORY  2 GiB  1 GiB    3 GiB     512 MiB  asks 2 GiB, n1 can promise 1 GiB"
    )
    shown = mass("task", "why", "4", "-o", "json").json
    assert (shown["task"]["id"], shown["sentences"]) == ("4", ["task 4 waits"])
    assert shown["refusals"] == [
        {
            "node_id": "n1",
            "reason_code": "MEMORY",
            "reason": "asks 2 GiB, n1 can promise 1 GiB",
            "requested_bytes": 2 * GIB,
            "promise_bytes": GIB,
            "foreign_used_bytes": GIB // 2,
            "reserved_bytes": 3 * GIB,
        }
    ]


@pytest.fixture
def with_output(fake: FakeController) -> FakeController:
    """A task that has written to both outputs, not all of it text."""
    holding(fake, task("1", "SUCCEEDED", exit_code=0))
    fake.output = {("1", 1): b"line one\nline two\n", ("1", 2): b"oh no\n"}
    return fake


@pytest.mark.usefixtures("with_output")
@pytest.mark.parametrize(
    ("flags", "out", "err"),
    [
        ([], "line one\nline two\n", "oh no\n"),
        (["-f"], "line one\nline two\n", "oh no\n"),
        (["--stdout"], "line one\nline two\n", ""),
        (["--stderr"], "oh no\n", ""),
        (["-f", "--stderr"], "oh no\n", ""),
        (["--stdout", "--tail", "9B"], "line two\n", ""),
    ],
)
def test_logs_keep_the_two_outputs_apart(mass: Mass, flags: list[str], out: str, err: str) -> None:
    outcome = mass("task", "logs", "1", *flags)
    assert (outcome.code, outcome.out, outcome.err) == (0, out, err)


def test_logs_are_unchanged_bytes_on_real_streams(
    served: Served, with_output: FakeController
) -> None:
    data = bytes(range(256)) * 100
    with_output.output["1", 1] = data
    words = [sys.executable, "-m", "controller.cli", "task", "logs", "1", "--stdout"]
    environment = {**os.environ, "MASS_CONTROLLER": served.address}
    done = subprocess.run(words, capture_output=True, env=environment, check=True, timeout=30)
    assert done.stdout == data


def test_logs_as_json_are_one_object(mass: Mass, with_output: FakeController) -> None:
    with_output.output["1", 2] = b"\xff"
    with_output.output_note = "only the tail"
    outcome = mass("task", "logs", "1", "-o", "json")
    assert outcome.json == {
        "stdout": "line one\nline two\n",
        "stderr": "\N{REPLACEMENT CHARACTER}",
        "notes": ["only the tail", "only the tail"],
    }
    assert mass("task", "logs", "1", "-o", "json", "--stdout").json["stderr"] is None


@pytest.mark.usefixtures("with_output")
def test_following_as_json_and_too_long_a_tail_are_refused(mass: Mass) -> None:
    outcome = mass("task", "logs", "-f", "-o", "json", "1")
    assert outcome.error["message"] == ("-f and -o json do not go together; leave out one of them")
    outcome = mass("task", "logs", "1", "--tail", "65KiB")
    assert outcome.err == "mass: tail of 65 KiB is above the bound of 64 KiB\n"


def test_notes_of_the_controller_go_to_stderr(mass: Mass, with_output: FakeController) -> None:
    with_output.output_note = "only the last 64 KiB are left"
    outcome = mass("task", "logs", "1", "--stdout")
    assert outcome.err == "mass: task 1: only the last 64 KiB are left\n"


def test_output_goes_on_where_it_broke_off(mass: Mass, with_output: FakeController) -> None:
    with_output.log_breaks = 1
    outcome = mass("task", "logs", "1", "--stdout")
    assert outcome.out == "line one\nline two\n"
    assert len(with_output.log_requests) == 2


def test_tail_that_broke_off_is_an_error(mass: Mass, with_output: FakeController) -> None:
    with_output.log_breaks = 1
    outcome = mass("task", "logs", "1", "--stdout", "--tail", "12B")
    assert outcome.code == 4
    assert outcome.err == ("mass: the controller stopped answering in the middle of the output\n")


def test_logs_of_an_unknown_task_are_one_error(mass: Mass) -> None:
    outcome = mass("task", "logs", "-f", "5")
    assert (outcome.code, outcome.err) == (3, "mass: no task 5\n")


def run_story(fake: FakeController, ended: types_pb2.Task) -> None:
    fake.story["1"] = [task("1", "ASSIGNED"), task("1", "STARTING"), task("1"), ended]
    fake.output = {("1", 1): b"to stdout\n", ("1", 2): b"to stderr\n"}


def test_run_shows_both_outputs_and_ends_with_the_code(mass: Mass, fake: FakeController) -> None:
    run_story(fake, task("1", "FAILED", exit_code=7, reason="exit code 7"))
    outcome = mass("run", "--mem", "256MiB", "--", "prog", "-x")
    assert (outcome.code, outcome.out) == (7, "to stdout\n")
    assert outcome.err == "mass: task 1\nto stderr\nmass: task 1 FAILED: exit code 7\n"
    assert list(fake.submits[0].tasks[0].command) == ["prog", "-x"]
    assert sorted(request.attempt for request in fake.log_requests) == [1, 1]


def test_quiet_run_prints_only_what_the_task_prints(mass: Mass, fake: FakeController) -> None:
    run_story(fake, task("1", "SUCCEEDED", exit_code=0))
    outcome = mass("run", "-q", "--", "prog")
    assert (outcome.code, outcome.out, outcome.err) == (0, "to stdout\n", "to stderr\n")


def test_json_run_keeps_stdout_for_the_task_as_it_ended(mass: Mass, fake: FakeController) -> None:
    run_story(fake, task("1", "SUCCEEDED", exit_code=0))
    outcome = mass("run", "-o", "json", "--", "prog")
    assert outcome.json["state"] == "SUCCEEDED"
    # Two outputs meet on one stream: they may interleave, and nothing is lost.
    assert sorted(outcome.err) == sorted("to stderr\nto stdout\n")


def test_run_follows_each_attempt_of_a_task_that_is_repeated(
    mass: Mass, fake: FakeController
) -> None:
    second = task("1")
    second.attempt = 2
    last = task("1", "SUCCEEDED", exit_code=0)
    last.attempt = 2
    fake.story["1"] = [task("1"), task("1", "PENDING"), second, last]
    assert mass("run", "--", "prog").code == 0
    assert sorted(request.attempt for request in fake.log_requests) == [1, 1, 2, 2]


def test_run_of_a_task_that_never_started_ends_without_output(
    mass: Mass, fake: FakeController
) -> None:
    never = task("1", "CANCELLED")
    never.ClearField("started_at")
    fake.story["1"] = [never]
    assert mass("run", "--", "prog").code == 130
    assert fake.log_requests == []


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]]
)
def test_interrupted_run_cancels_its_task_however_fast_signals_follow(
    served: Served, fake: FakeController, numbers: list[signal.Signals]
) -> None:
    fake.watch_until_cancelled = True
    words = [sys.executable, "-m", "controller.cli", "run", "--", "sleep", "60"]
    environment = {**os.environ, "MASS_CONTROLLER": served.address}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "mass: task 1\n"
        assert fake.watching.wait(10)
        for number in numbers:
            process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert err.splitlines()[0] == "mass: cancelling task 1; Ctrl-C again to leave"
    assert [list(request.ids) for request in fake.cancels] == [["1"]]
    assert process.returncode == 130


def test_second_interrupt_leaves_once_the_cancel_is_sent(
    served: Served, fake: FakeController
) -> None:
    fake.watch_until_cancelled = True
    fake.goes_on_after_cancel = True
    words = [sys.executable, "-m", "controller.cli", "run", "-q", "--", "sleep", "60"]
    environment = {**os.environ, "MASS_CONTROLLER": served.address}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert fake.watching.wait(10)
        process.send_signal(signal.SIGINT)
        assert fake.cancelled.wait(10)
        while process.poll() is None:
            # The answer to the cancel is on its way: until it is there a signal is left out.
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        # One signal more than needed may meet the interpreter on its way out; shells show 130 too.
        assert process.returncode in (130, -signal.SIGINT)
    fake.ended.set()


def test_error_in_json_is_one_line_of_json(mass: Mass) -> None:
    outcome = mass("submit", "--mem", "5", "-o", "json", "--", "true")
    assert outcome.code == 2
    assert json.loads(outcome.err) == {
        "error": {
            "reason": "INVALID_REQUEST",
            "message": "memory '5' has no unit; write 5MiB or 5MB",
            "details": {"value": "5"},
        }
    }
