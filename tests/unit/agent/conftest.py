"""An agent under a simulated clock, with releases that differ in how good they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.agent.link import http_client
from slmops.testing.agent_in_process import AgentInProcess, publish_echo
from slmops.testing.raw_server import RawServer
from slmops.testing.sample_release import PublishedSample


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedSample:
    return publish_echo(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def device(tmp_path: Path, published: PublishedSample) -> Iterator[AgentInProcess]:
    with RawServer(replies=[]) as server, http_client(server.url) as client:
        device = AgentInProcess(tmp_path, server, client, published)
        yield device
        device.close()
