"""The examples at the end of help pages."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from cli.conftest import Mass
from typer.main import get_command

from controller.cli.commands import app
from controller.cli.examples import EXAMPLES


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_can_be_typed_as_it_stands(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "mass"
    # Not typed: typer brings a click of its own, whose names are private.
    command: Any = get_command(app)
    parent: Any = None
    while hasattr(command, "commands"):
        parent = command.context_class(command, parent=parent)
        command = command.commands[words.pop(0)]
    # An option that does not exist, or a value of the wrong kind, raises here.
    command.make_context(command.name, words, parent=parent)


@pytest.mark.parametrize("path", EXAMPLES)
def test_help_ends_with_the_examples_of_its_command(mass: Mass, path: str) -> None:
    shown = mass(*path.split(), "-h").out
    assert shown.rstrip().endswith("\n".join(f"    {line}" for line in EXAMPLES[path]))
    assert "\n  Examples:\n" in shown


@pytest.mark.parametrize("words", [["-o", "json", "task", "list"], ["task", "-o", "json", "list"]])
def test_option_before_its_command_is_told_where_options_stand(
    mass: Mass, words: list[str]
) -> None:
    outcome = mass(*words)
    assert outcome.code == 2
    assert "COMMAND [ITS OPTIONS]" in outcome.err
    assert "No such option: -o" in outcome.err
