"""Checkpoints from the Hugging Face Hub, through its own client.

Only weights and texts are fetched, never pickles, and no code that comes with a model
is ever run. The commit that was read is part of the model's record.
"""

import re
from dataclasses import replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from slmops.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from slmops.workshop.hf_source import open_checkpoint
from slmops.workshop.progress import Progress
from slmops.workshop.reference import ReferenceSource

ALLOWED_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "*.txt",
    "README.md",
    "LICENSE*",
)
"""Patterns of what is fetched; whatever else a repository holds stays there."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(text: str) -> bool:
    """Tell whether `text` looks like ``owner/model``.

    >>> is_hub_id("HuggingFaceTB/SmolLM2-135M-Instruct"), is_hub_id("../model")
    (True, False)
    """
    return _HUB_ID.fullmatch(text) is not None


def fetch_checkpoint(
    hub_id: str, revision: str | None, progress: Progress
) -> ReferenceSource:
    """Fetch a checkpoint into the Hub client's cache and open it.

    Args:
        hub_id: ``owner/model``.
        revision: branch, tag or commit; the main branch when None.
        progress: told when the download starts and ends.

    Raises:
        NotFoundError: no such repository or revision, or it needs a login.
        UnavailableError: the Hub cannot be reached and the cache does not hold it.
        InvalidInputError: what came is no checkpoint we support.
    """
    progress(f"fetch {hub_id}", 0, 0)
    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=list(ALLOWED_FILES)
        )
    except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError):
        raise NotFoundError(
            f"{hub_id!r} at {revision or 'main'} is not on the Hub, or needs a login"
        ) from None
    except hub_errors.HFValidationError as error:
        raise InvalidInputError(f"{hub_id!r} is no Hub id: {error}") from None
    except (hub_errors.LocalEntryNotFoundError, hub_errors.HfHubHTTPError, OSError):
        raise UnavailableError(
            f"{hub_id!r} cannot be fetched: the Hub does not answer; check the network,"
            " or import a local folder"
        ) from None
    path = Path(folder)
    opened = open_checkpoint(path, trusted_root=path.parent.parent)
    # The client names a snapshot's folder after the commit it holds.
    return replace(
        opened, name=hub_id.rpartition("/")[2], origin=f"{hub_id}@{path.name}"
    )
