"""`slmops serve` as a process: what it says, how it ends, what it refuses."""

import json
import os
import pty
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import httpx
import pytest

from slmops.testing.control_process import ControlProcess

pytestmark = pytest.mark.slow

Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Serve:
    def call(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "slmops", "serve", *arguments],
            env={**os.environ, "SLMOPS_WORKSPACE": str(tmp_path / "ws")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def end() -> None:
            process.kill()
            process.communicate()

        request.addfinalizer(end)
        return process

    return call


def refused(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for a process that must not serve; return its code and what it said."""
    out, err = process.communicate(timeout=30)
    assert out == ""
    assert "Traceback" not in err
    return process.returncode, err


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def test_it_says_where_it_is_and_what_comes_next(serve: Serve, tmp_path: Path) -> None:
    process = serve("--port", "0")
    said = [pipe(process.stdout).readline() for _ in range(3)]
    url = said[0].split()[3].rstrip(";")
    assert str(tmp_path / "ws" / "control") in said[0]
    token_file = tmp_path / "ws" / "control" / "operator-token"
    assert said[1] == f"Dashboard: {url}/; its token is in {token_file}\n"
    assert "slmops device token" in said[2]
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
    assert "<html" in httpx.get(said[1].split()[1].rstrip(";")).text
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")


def test_ctrl_c_ends_it_with_130(serve: Serve) -> None:
    process = serve("--port", "0")
    pipe(process.stdout).readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_as_json_it_announces_one_document_and_a_private_token(tmp_path: Path) -> None:
    control = ControlProcess(workspace=tmp_path)
    try:
        said = control.start()
    finally:
        control.kill_if_running()
    assert said.keys() == {"url", "dashboard", "operator_token_file"}
    assert said["url"] == control.url
    token = Path(said["operator_token_file"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert said["dashboard"] == f"{control.url}/"
    assert token.read_text().strip() not in json.dumps(said), "it may go into a log"


def test_only_a_terminal_is_shown_the_token(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "slmops", "serve", "--port", "0"],
        env={**os.environ, "SLMOPS_WORKSPACE": str(tmp_path)},
        stdout=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while b"slmops device token" not in said:
            said += os.read(ours, 4096)
    finally:
        process.terminate()
        process.wait(10)
        os.close(ours)
    token = (tmp_path / "control" / "operator-token").read_text().strip()
    assert f"/#token={token}" in said.decode()


def test_a_second_control_plane_on_a_workspace_exits_with_4(
    serve: Serve, tmp_path: Path
) -> None:
    first = serve("--port", "0")
    url = pipe(first.stdout).readline().split()[3].rstrip(";")
    code, said = refused(serve("--port", "0"))
    assert code == 4
    assert f"another control plane serves {tmp_path / 'ws'} at {url}" in said
    first.kill()
    first.wait()
    third = serve("--port", "0")
    assert pipe(third.stdout).readline(), "a killed one holds nobody up"


def test_commands_find_the_control_plane_of_their_workspace(
    serve: Serve, tmp_path: Path
) -> None:
    process = serve("--port", "0")
    url = pipe(process.stdout).readline().split()[3].rstrip(";")
    path = tmp_path / "ws" / "control" / "address.json"
    assert json.loads(path.read_text()) == {"url": url}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def token() -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "SLMOPS_WORKSPACE": str(tmp_path / "ws")}
        environment.pop("SLMOPS_SERVER", None)
        return subprocess.run(
            [sys.executable, "-m", "slmops", "device", "token"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    ran = token()
    assert (ran.returncode, f"--server {url} --token" in ran.stderr) == (0, True)
    process.kill()
    process.wait()
    assert path.exists()
    assert "no control plane of" in token().stderr, "a dead one's address is not used"
    again = serve("--port", "0")
    assert pipe(again.stdout).readline()
    again.terminate()
    again.wait(10)
    assert not path.exists()


def test_token_and_fleet_survive_a_restart(tmp_path: Path) -> None:
    control = ControlProcess(workspace=tmp_path)
    try:
        first = control.start()
        with control.operator() as http:
            http.post("/v1/tokens").raise_for_status()
        assert control.end(signal.SIGTERM) == 0
        assert control.start() == first
        with control.operator() as http:
            [entry] = http.get("/v1/audit").json()["entries"]
        assert entry["action"] == "token.make"
    finally:
        control.kill_if_running()


def test_a_signal_right_after_the_announcement_ends_it_cleanly(tmp_path: Path) -> None:
    for _ in range(4):
        control = ControlProcess(workspace=tmp_path)
        control.start()
        assert control.end(signal.SIGTERM) == 0
        # Closed in order: SQLite has taken its log into the database.
        assert not list((tmp_path / "control").glob("control.db-*"))


def test_a_port_that_is_taken_exits_with_7(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused(serve("--port", str(port)))
    assert code == 7
    assert said.count(str(port)) == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said


def test_a_host_that_is_not_ours_exits_with_7(serve: Serve) -> None:
    for host in ("192.0.2.1", "no such host"):
        assert refused(serve("--host", host, "--port", "0"))[0] == 7


@pytest.mark.parametrize(
    "arguments",
    [("--port", "70000"), ("--poll-s", "0"), ("--poll-s", "inf"), ("--poll-s", "nan")],
)
def test_wrong_usage_exits_with_2_before_anything_is_made(
    serve: Serve, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    assert refused(serve(*arguments))[0] == 2
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SLMOPS_CONTROL_DEVICE_BURST", "0"),
        ("SLMOPS_CONTROL_SESSION_S", "a day"),
        ("SLMOPS_CONTROL_SESION_S", "60"),
        ("SLMOPS_CONTROL_WORKSPACE", "elsewhere"),
        ("SLMOPS_CONTROL_PORT", "99999"),
    ],
)
def test_a_wrong_variable_is_named_before_anything_is_made(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    text: str,
) -> None:
    monkeypatch.setenv(variable, text)
    code, said = refused(serve())
    name = variable.removeprefix("SLMOPS_CONTROL_")
    assert (code, name in said.upper()) == (2, True), said
    assert not (tmp_path / "ws").exists()


def test_variables_stand_for_options_and_options_win(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMOPS_CONTROL_PORT", "1")
    monkeypatch.setenv("SLMOPS_CONTROL_HOST", "127.0.0.2")
    process = serve("--port", "0", "--json")
    text = ""
    while not text.rstrip().endswith("}"):
        text += pipe(process.stdout).readline()
    url = json.loads(text)["url"]
    assert url.startswith("http://127.0.0.2:")
    assert httpx.get(f"{url}/healthz").status_code == 200


def damaged_database(folder: Path) -> None:
    # With its log at hand SQLite would mend the file, and be right to.
    for log in folder.glob("control.db-*"):
        log.unlink()
    (folder / "control.db").write_bytes(b"no database" * 1000)


def newer_database(folder: Path) -> None:
    with sqlite3.connect(folder / "control.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v9999'")
    database.close()


def empty_token(folder: Path) -> None:
    (folder / "operator-token").write_text("")


def open_key(folder: Path) -> None:
    (folder.parent / "keys" / "timestamp.key").chmod(0o644)


def lost_key(folder: Path) -> None:
    (folder.parent / "keys" / "director.key").unlink()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (damaged_database, 7),
        (newer_database, 4),
        (empty_token, 5),
        (open_key, 5),
        (lost_key, 3),
    ],
)
def test_a_workspace_it_cannot_trust_is_refused_and_left_alone(
    serve: Serve, tmp_path: Path, damage: Callable[[Path], None], code: int
) -> None:
    control = ControlProcess(workspace=tmp_path / "ws")
    control.start()
    control.end(signal.SIGTERM)
    folder = tmp_path / "ws" / "control"
    damage(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ended, said = refused(serve("--port", "0"))
    assert (ended, said.startswith("error [")) == (code, True), said
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: kept.get(name) for name in before} == before


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from slmops.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("sqlalchemy", "control", ["serve", "--port", "0"]),
        ("alembic", "control", ["serve", "--port", "0"]),
        ("gguf", "workshop", ["model", "import", "x.gguf"]),
        ("numpy", "workshop", ["model", "import", "x.gguf"]),
    ],
)
def test_without_its_packages_a_command_names_the_extra(
    tmp_path: Path, package: str, extra: str, command: list[str]
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, package, *command],
        env={**os.environ, "SLMOPS_WORKSPACE": str(tmp_path / "ws")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 2, ran.stderr
    assert f"pip install '.[{extra}]'" in " ".join(ran.stderr.split())
