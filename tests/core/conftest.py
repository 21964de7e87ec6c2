"""The switch that records the stories anew; the difference is then to be read like code."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --rewrite. It is known where this folder or one of its files is named to pytest."""
    parser.addoption(
        "--rewrite", action="store_true", help="write what the stories in tests/core give now"
    )
