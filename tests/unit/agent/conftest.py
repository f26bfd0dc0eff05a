"""An agent under a simulated clock, and an endpoint in front of a raw runtime."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.agent.endpoint import EndpointLimits
from slmops.agent.link import http_client
from slmops.testing.agent_in_process import AgentInProcess, publish_echo
from slmops.testing.endpoint_in_process import LocalEndpoint, local_endpoint
from slmops.testing.raw_server import RawServer
from slmops.testing.runtime_replies import completion, whole
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


@pytest.fixture
def runtime() -> Iterator[RawServer]:
    with RawServer(replies=[whole(completion())]) as server:
        yield server


@pytest.fixture(scope="module")
def running() -> Iterator[LocalEndpoint]:
    with local_endpoint(EndpointLimits(answer_s=0.5, body_s=0.5)) as running:
        yield running


@pytest.fixture
def endpoint(running: LocalEndpoint, runtime: RawServer) -> LocalEndpoint:
    running.serve(runtime.url)
    running.reports()
    return running
