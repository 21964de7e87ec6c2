"""The command `mass completion`: what a shell needs to complete the words of `mass`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Shell(StrEnum):
    """The shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="For which shell.")],
) -> None:
    """Print the completion script of a shell; --show-completion takes the one it is called from."""
    # Typer re-exports it without saying so.
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    print(get_completion_script(prog_name="mass", complete_var="_MASS_COMPLETE", shell=shell))
