"""``slmops-tuf-client``: the agent's TUF client by itself, for conformance suites.

The commands and exit codes (0, or 1 for anything that went wrong) are those that
https://github.com/theupdateframework/tuf-conformance asks for in CLIENT-CLI.md. There is
no second client in here: it is `slmops.registry.tuf_client` over the fetcher that the
agent uses.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slmops.domain.errors import InvalidInputError, SlmopsError
from slmops.registry.fetch import HttpFetcher
from slmops.registry.tuf_client import Places, TufClient

_LOCAL_ROOT = "root.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        _COMMANDS[options.command](options)
    except (SlmopsError, OSError) as error:
        sys.stderr.write(f"slmops-tuf-client {options.command}: {error}\n")
        return 1
    return 0


def _init(options: argparse.Namespace) -> None:
    options.metadata_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.trusted_root, options.metadata_dir / _LOCAL_ROOT)


def _refresh(options: argparse.Namespace) -> None:
    _client(options).refresh()


def _download(options: argparse.Namespace) -> None:
    _require(options, "target_name", "target_base_url", "target_dir")
    client = _client(options)
    client.refresh()
    for name in options.target_name:
        path = client.download(client.target(name))
        sys.stdout.write(f"{name}: {path}\n")


_COMMANDS = {"init": _init, "refresh": _refresh, "download": _download}


def _client(options: argparse.Namespace) -> TufClient:
    _require(options, "metadata_url")
    folder: Path = options.metadata_dir
    places = Places(
        folder=folder,
        documents=options.target_dir or folder,
        metadata_url=options.metadata_url,
        targets_url=options.target_base_url,
    )
    return TufClient(
        places,
        HttpFetcher(),
        root_json=None,
        now=time.time,  # noqa: TID251 - a process of its own, like an app module
    )


def _require(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if not getattr(options, name):
            raise InvalidInputError(f"--{name.replace('_', '-')} is missing")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slmops-tuf-client",
        description="The agent's TUF client by itself, as conformance suites call it.",
    )
    parser.add_argument(
        "--metadata-dir", type=Path, required=True, help="Folder of trusted metadata."
    )
    parser.add_argument("--metadata-url", help="Base address of the metadata.")
    parser.add_argument(
        "--target-name", action="append", help="Target to fetch; repeatable."
    )
    parser.add_argument("--target-base-url", help="Base address of the targets.")
    parser.add_argument("--target-dir", type=Path, help="Folder for fetched targets.")
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="Trust a root metadata file.")
    init.add_argument("trusted_root", type=Path, help="Root metadata.")
    commands.add_parser("refresh", help="Fetch and verify the newest metadata.")
    commands.add_parser("download", help="Fetch and verify targets.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
