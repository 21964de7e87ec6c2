"""Every story in stories/ still ends as it is written; --rewrite records them anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.story import play

STORIES = sorted((Path(__file__).parent / "stories").glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=[path.stem for path in STORIES])
def test_story_ends_as_it_is_written(path: Path, request: pytest.FixtureRequest) -> None:
    written = path.read_text()
    played = play(written)
    if request.config.getoption("--rewrite", default=False):
        path.write_text(played)
    else:
        assert played == written
