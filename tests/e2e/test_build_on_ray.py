"""Jobs on a real Ray cluster of this machine: same results, kills survived, no strays."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra ray", allow_module_level=True)

from slmops.domain.errors import (
    InvalidInputError,
    SlmopsError,
    UnavailableError,
)
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.jobs.executor import Executor, LocalExecutor
from slmops.workshop.jobs.job import unheard
from slmops.workshop.jobs.order import Order
from slmops.workshop.jobs.processes import JobProcesses
from slmops.workshop.jobs.ray_executor import RayExecutor, ray_executor
from slmops.workshop.pipeline import BuildOptions

pytestmark = pytest.mark.slow

TEXT = ("The quick brown fox jumps over the lazy dog. " * 900).encode()
BLUEPRINT = """
name: tiny
model: tiny
classes: [{name: any, context_tokens: 256}]
candidates: [Q4_0]
quality: {max_kld_times_8bit: 1000000, min_same_top1: 0}
evaluation: {max_tokens: 64, window_tokens: 64, speed_runs: 3}
golden: {prompts: prompts.txt, answer_tokens: 2}
"""
CHILD = "slmops.workshop.jobs.child"


@pytest.fixture(scope="module")
def ray_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    """Have one cluster for all tests: it takes seconds to start."""
    folder = tmp_path_factory.mktemp("ray") / "scratch"
    with ray_executor(folder, num_cpus=2) as executor:
        yield executor


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def local_jobs(tmp_path: Path) -> Iterator[LocalExecutor]:
    with JobProcesses() as processes:
        yield LocalExecutor(
            processes=processes,
            scratch=tmp_path / "scratch",
            state=tmp_path / "state",
        )


def quantize(blobs: BlobStore, folder: Path, kind: str = "Q4_0") -> Order:
    path = write_tiny_llama(folder / "tiny.gguf", width=256, feed_forward=512)
    return Order(
        key=f"quantize-{kind}",
        kind="quantize",
        inputs={"model": blobs.put_bytes(path.read_bytes())},
        parameters={"quantization": kind, "rounding": "nearest"},
    )


def score(model: Digest, text: Digest, tokens: int = 512) -> Order:
    return Order(
        key=f"reference-{tokens}",
        kind="score reference",
        inputs={"artefact": model, "text": text},
        parameters={
            "runtime": "llamacpp",
            "window_tokens": 64,
            "max_tokens": tokens,
        },
    )


def both(
    blobs: BlobStore, folder: Path, executor: Executor
) -> tuple[Mapping[str, Digest], Mapping[str, Digest]]:
    order = quantize(blobs, folder)
    made = executor.run(order, blobs, unheard)
    scores = score(made["artefact"], blobs.put_bytes(TEXT))
    return made, executor.run(scores, blobs, unheard)


def test_ray_makes_the_bytes_that_this_machine_makes(
    ray_jobs: RayExecutor,
    local_jobs: LocalExecutor,
    tmp_path: Path,
) -> None:
    here, there = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "there")
    expected = both(here, tmp_path, local_jobs)
    found = both(there, tmp_path, ray_jobs)
    assert found == expected
    for outputs in found:
        for digest in outputs.values():
            there.verify(digest)


def test_a_node_that_sees_no_file_of_ours_fetches_what_it_reads_once(
    ray_jobs: RayExecutor, blobs: BlobStore, tmp_path: Path
) -> None:
    apart = another(ray_jobs, read_in_place=False)
    order = quantize(blobs, tmp_path, "Q8_0")
    expected = ray_jobs.run(order, blobs, unheard)
    assert apart.run(order, blobs, unheard) == expected
    kept = node_cache(ray_jobs)
    assert order.inputs["model"] in set(kept.digests())
    # Damaged on the node, it is fetched again and not believed.
    kept.path(order.inputs["model"]).write_bytes(b"damaged")
    assert apart.run(order, blobs, unheard) == expected
    kept.verify(order.inputs["model"])


def test_a_job_whose_worker_is_killed_runs_again(
    ray_jobs: RayExecutor, blobs: BlobStore, tmp_path: Path
) -> None:
    model = quantize(blobs, tmp_path).inputs["model"]
    order = score(model, blobs.put_bytes(TEXT), tokens=4096)
    expected = ray_jobs.run(order, blobs, unheard)
    killed: list[int] = []

    def kill_once(done: float, total: float) -> None:
        if not killed and done < total:
            killed.append(parent_of(children()[0]))
            os.kill(killed[0], signal.SIGKILL)

    assert ray_jobs.run(order, blobs, kill_once) == expected
    assert killed
    wait_for_no_children()


def test_the_jobs_own_error_comes_back_as_its_class(
    ray_jobs: RayExecutor,
    local_jobs: LocalExecutor,
    blobs: BlobStore,
    tmp_path: Path,
) -> None:
    order = quantize(blobs, tmp_path, "Q9_9")
    with pytest.raises(InvalidInputError) as here:
        local_jobs.run(order, blobs, unheard)
    with pytest.raises(InvalidInputError) as there:
        ray_jobs.run(order, blobs, unheard)
    assert str(there.value) == str(here.value)


def test_a_stopped_build_leaves_no_child_and_starts_none(
    ray_jobs: RayExecutor, blobs: BlobStore, tmp_path: Path
) -> None:
    executor = another(ray_jobs)
    model = quantize(blobs, tmp_path).inputs["model"]
    order = score(model, blobs.put_bytes(TEXT), tokens=16_384)
    begun = threading.Event()
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            executor.run(order, blobs, lambda _, __: begun.set())
        except SlmopsError as error:
            ended.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(60)
    executor.stop()
    asking.join(30)
    assert [type(error) for error in ended] == [UnavailableError]
    assert "stopped" in str(ended[0])
    wait_for_no_children()
    with pytest.raises(UnavailableError, match="stopped"):
        executor.run(order, blobs, unheard)


def test_a_report_that_raises_cancels_the_job(
    ray_jobs: RayExecutor, blobs: BlobStore, tmp_path: Path
) -> None:
    model = quantize(blobs, tmp_path).inputs["model"]
    order = score(model, blobs.put_bytes(TEXT), tokens=16_000)

    def interrupt(_: float, __: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ray_jobs.run(order, blobs, interrupt)
    wait_for_no_children()


def test_everything_listens_on_loopback(ray_jobs: RayExecutor) -> None:
    assert ray_jobs.slots == 2
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    ports = {port for pid in ray_processes() for port in listening(pid)}
    assert ports
    assert all(is_loopback(address) for address in ports), ports


def test_a_build_on_ray_leaves_a_local_one_nothing_to_compute(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One?\nTwo?\n")
    (tmp_path / "blueprint.yaml").write_text(BLUEPRINT)
    write_tiny_llama(tmp_path / "tiny.gguf", 4)

    def slmops(*words: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "slmops", *words, "--json"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    slmops("model", "import", "tiny.gguf", "--name", "tiny")
    on_ray = slmops("build", "blueprint.yaml", "--executor", "ray")
    assert on_ray["steps_computed"] > 0
    here = slmops("build", "blueprint.yaml")
    assert (here["steps_computed"], here["build"]) == (0, on_ray["build"])


def test_an_address_without_ray_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="needs executor ray"):
        BuildOptions(ray_address="auto")
    with pytest.raises(InvalidInputError, match="local or ray, got 'dask'"):
        BuildOptions(executor="dask")


def another(executor: RayExecutor, *, read_in_place: bool = True) -> RayExecutor:
    """Return another executor on the same cluster."""
    return RayExecutor(folder=executor.folder, read_in_place=read_in_place)


def node_cache(executor: RayExecutor) -> BlobStore:
    return BlobStore(executor.folder.parent / ".ray")


def processes() -> dict[int, str]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def children() -> list[int]:
    """Job children below this process's cluster, and no other run's."""
    ours = ray_processes()
    return [pid for pid, words in processes().items() if CHILD in words and pid in ours]


def ray_processes() -> set[int]:
    parents = {}
    for pid in processes():
        try:
            parents[pid] = parent_of(pid)
        except OSError:
            continue
    ours = {os.getpid()}
    while more := {p for p, up in parents.items() if up in ours} - ours:
        ours |= more
    return ours - {os.getpid()}


def parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def is_orphan(pid: int) -> bool:
    """Tell whether a process outlived its parent; one that ended meanwhile did not."""
    try:
        return parent_of(pid) == 1
    except OSError:
        return False


def wait_for_no_children(limit_s: float = 20) -> None:
    until = time.monotonic() + limit_s
    while left := [p for p, words in processes().items() if CHILD in words]:
        left = [pid for pid in left if pid in ray_processes() or is_orphan(pid)]
        if not left:
            return
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.1)


def listening(pid: int) -> set[str]:
    """Addresses, in hex, of a process's listening TCP sockets."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and parts[9] in inodes:
                found.add(parts[1].split(":")[0])
    return found


def is_loopback(address: str) -> bool:
    return address in {
        "0100007F",
        "0000000000000000FFFF00000100007F",
        "00000000000000000000000001000000",
    }
