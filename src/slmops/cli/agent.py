"""`slmops agent`: run the agent on a device."""

from pathlib import Path

import click

from slmops.cli import render
from slmops.cli.agent_cache import cache
from slmops.domain.errors import InvalidInputError

_state = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    envvar="SLMOPS_STATE",
    help="Folder of this device: key, journal, models. Readable by its owner only.",
)


@click.group()
def agent() -> None:
    """Run the agent on a device: serve, sync, update, roll back.

    Example: slmops agent run --state /var/lib/slmops
    """


agent.add_command(cache)


@agent.command()
@click.option("--server", required=True, help="Address of the control plane.")
@click.option(
    "--token", required=True, envvar="SLMOPS_TOKEN", help="From `slmops device token`."
)
@_state
@click.option("--name", help="Name of the device; made up by default.")
@click.option("--label", "labels", multiple=True, help="key=value; repeatable.")
@click.option("--memory-mib", type=int, help="Memory the models may use here.")
@click.option(
    "--test-runtimes",
    is_flag=True,
    envvar="SLMOPS_AGENT_TEST_RUNTIMES",
    help="Offer the runtime echo, which answers without a model, too: for tests.",
)
@render.as_json
def enrol(
    *,
    server: str,
    token: str,
    state: Path,
    name: str | None,
    labels: tuple[str, ...],
    memory_mib: int | None,
    test_runtimes: bool,
    as_json: bool,
) -> None:
    """Make this device's key and introduce it to the control plane, once.

    Example: slmops agent enrol --server http://127.0.0.1:8800 --token "$TOKEN"
    --state ./till-1 --name till-1 --label site=north --memory-mib 1024
    """
    from slmops.agent.enrolment import Enrolment, enrol_device

    wanted = Enrolment(
        server=server,
        token=token,
        name=name,
        labels=dict(_label(text) for text in labels),
        memory_mib=memory_mib,
        test_runtimes=test_runtimes,
    )
    settings = enrol_device(state.absolute(), wanted)
    if as_json:
        render.json_document({"device": settings.device, "server": settings.server})
        return
    render.text(
        f"enrolled as {settings.device}; start it: slmops agent run --state {state}"
    )


@agent.command()
@_state
@click.option("--port", type=int, help="Port of the endpoint; 0 takes a free one.")
@render.as_json
def run(state: Path, port: int | None, as_json: bool) -> None:
    """Serve the OpenAI API on this device and keep its model up to date.

    The address is in endpoint.json in the state folder; GET /v1/models there says what
    is served. Ends cleanly on SIGTERM or Ctrl-C; may be killed at any moment.

    Example: slmops agent run --state ./till-1 --port 8765
    """
    import os
    from dataclasses import replace

    from slmops.agent.app import run_agent, set_up_logging
    from slmops.agent.settings import load_agent_settings

    settings = load_agent_settings(state, os.environ)
    if port is not None:
        settings = replace(settings, port=port)
    if as_json:
        render.json_document({"device": settings.device, "state": str(state)})
    set_up_logging()
    run_agent(state.absolute(), settings)


@agent.command()
@_state
@render.as_json
def status(state: Path, as_json: bool) -> None:
    """Show what a device serves and how its last installation went.

    Example: slmops agent status --state ./till-1
    """
    import os

    from slmops.agent.settings import load_agent_settings
    from slmops.agent.status import agent_status

    found = agent_status(state, load_agent_settings(state, os.environ))
    if as_json:
        render.json_document(found)
        return
    last = found.installation
    rows = [
        ("device", found.device),
        ("control plane", found.server),
        ("endpoint", found.endpoint or "not running"),
        ("active", found.active.release if found.active else "nothing"),
        ("previous", found.previous.release if found.previous else "nothing"),
        *([("not readable", found.trouble)] if found.trouble else []),
        ("installation", f"{last.state} {last.reason}".strip() if last else "none yet"),
        *(
            (f"quarantined {entry.release}", f"{entry.reason} ({entry.variant})")
            for entry in found.quarantined
        ),
    ]
    render.table(("", ""), rows)


@agent.command()
@_state
@render.as_json
def explain(state: Path, as_json: bool) -> None:
    """Say why this device has its class: each condition, with the fact it met.

    Example: slmops agent explain --state ./till-1
    """
    import os

    from slmops.agent.explain import explain_class
    from slmops.agent.settings import load_agent_settings

    found = explain_class(state, load_agent_settings(state, os.environ))
    if as_json:
        render.json_document(found)
        return
    render.text(f"{found.release} was installed for class {found.installed_for}; now:")
    for answer in found.classes:
        render.text(f"  {answer.device_class}: {'chosen' if answer.chosen else 'no'}")
        for clause in answer.clauses:
            render.text(f"    {'holds' if clause.holds else 'FAILS'}: {clause.said}")


@agent.command()
@click.argument("digest", required=False)
@_state
@render.as_json
def forgive(state: Path, digest: str | None, as_json: bool) -> None:
    """Lift the quarantine of a variant, or of all without a DIGEST.

    For a variant that failed here by no fault of its own: broken hardware, another
    process that took the memory. Status shows the digests. The next sync tells the
    control plane; roll the release out again afterwards.

    Example: slmops agent forgive --state ./till-1 sha256:9f86d081…
    """
    from slmops.agent.settings import load_agent_settings
    from slmops.agent.status import forgive as lift

    load_agent_settings(state, {})  # an enrolled device?
    lifted = lift(state, digest)
    if as_json:
        render.json_document(lifted)
        return
    for entry in lifted:
        render.text(f"forgiven: {entry.variant} of {entry.release}: {entry.reason}")


@agent.command()
@_state
@click.option(
    "--root",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Root metadata: keys/root.json of the workspace.",
)
@render.as_json
def trust(state: Path, file: Path, as_json: bool) -> None:
    """Pin another root on this device; its agent must not run.

    Only for a registry whose root keys are lost (`slmops keys root replace`): devices
    follow every other change of keys by themselves. Carry the file here by a way you
    trust, and compare its SHA-256.

    Example: slmops agent trust --state ./till-1 --root /media/stick/root.json
    """
    from slmops.agent.anchor import trust_root
    from slmops.registry.blobs import bytes_digest

    raw = file.read_bytes()
    version, director = trust_root(state.absolute(), raw)
    if as_json:
        found = {"root": version, "digest": bytes_digest(raw), "director": director}
        render.json_document(found)
        return
    render.text(f"trusts root version {version}, {bytes_digest(raw)}")


def _label(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found or not key:
        raise InvalidInputError(f"--label must be key=value, got {text[:80]!r}")
    return key, value
