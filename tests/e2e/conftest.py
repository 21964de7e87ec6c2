"""One cluster for tests that cannot disturb each other, and clusters of their own for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cluster import Cluster

MakeCluster = Callable[..., Cluster]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One controller with one agent for the whole run; a test leaves no task behind."""
    with Cluster(tmp_path_factory.mktemp("shared")) as cluster:
        cluster.start_controller()
        cluster.start_agent()
        cluster.wait_ready()
        yield cluster


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Make clusters whose controller is not started yet."""
    with ExitStack() as stack:
        made: list[Cluster] = []

        def make(*controller_flags: str, **options: object) -> Cluster:
            directory = tmp_path / f"cluster-{len(made)}"
            directory.mkdir()
            cluster = stack.enter_context(
                Cluster(directory, *controller_flags, **options)  # type: ignore[arg-type]
            )
            made.append(cluster)
            return cluster

        yield make


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    """A cluster of the test's own, with one ready agent."""
    cluster = make_cluster()
    cluster.start_controller()
    cluster.start_agent()
    cluster.wait_ready()
    return cluster
