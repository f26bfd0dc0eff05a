"""Giving an enrolled device another root to trust, by a person who stands before it.

The last way out when so many root keys are lost that no root can follow the pinned one.
Whoever may do this may make the device trust anything: nothing on the network can.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from tuf.api.exceptions import RepositoryError

from slmops.agent.directors import DIRECTORS
from slmops.agent.machine import ROOT, only_agent
from slmops.agent.settings import load_agent_settings, save_agent_settings
from slmops.domain.errors import InvalidInputError, UntrustedError
from slmops.registry.durable import write_atomically
from slmops.registry.roots import director_keys, parse_root

TRUST = "trust"
"""Folder of verified metadata, in the state folder."""


def trust_root(state: Path, root_json: bytes) -> tuple[int, str]:
    """Pin a root, forget what the old one vouched for, take the director it names.

    What the device serves goes on: the artefacts were verified when they came.

    Args:
        state: of the device; its agent must not run.
        root_json: root metadata that holds by itself.

    Returns:
        The root's version and the director's new key, hex.

    Raises:
        NotFoundError: no enrolled device.
        ConflictError: its agent runs.
        UntrustedError: the root is not signed by its own keys.
        InvalidInputError: it names no director.
    """
    settings = load_agent_settings(state, {})
    metadata = parse_root(root_json, where="the given root")
    root = metadata.signed
    try:
        root.verify_delegate(root.type, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise UntrustedError(f"the given root does not hold: {error}") from None
    directors = director_keys(root)
    if not directors:
        raise InvalidInputError("the given root names no director")
    with only_agent(state):
        shutil.rmtree(state / TRUST, ignore_errors=True)
        (state / DIRECTORS).unlink(missing_ok=True)
        save_agent_settings(state, replace(settings, director_key=directors[0]))
        # Last: until it is there, everything can be done again.
        write_atomically(state / ROOT, root_json, mode=0o600)
    return root.version, directors[0]
