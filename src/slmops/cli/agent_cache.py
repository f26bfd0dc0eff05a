"""`slmops agent cache`: one download for all devices of a site."""

import sys
from pathlib import Path

import click

from slmops.cli import render

_MIB = 1 << 20


@click.command()
@click.option("--server", required=True, help="Address of the control plane.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where the blobs lie; nothing else should.",
)
@click.option(
    "--max-mib",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="Disk it may take, MiB; what was used longest ago leaves first.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; the site's own one to serve its devices.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8810,
    show_default=True,
    help="TCP port; 0 takes a free one.",
)
@render.as_json
def cache(
    *,
    server: str,
    folder: Path,
    max_mib: int,
    host: str,
    port: int,
    as_json: bool,
) -> None:
    """Fetch each model once for all devices of a site, until Ctrl-C or SIGTERM.

    Devices whose `blob_mirror` names its address ask it first and the control plane
    after. They verify every byte, so it needs no token, no key and no trust; metadata
    and orders never pass through it. May be killed at any moment.

    Example: slmops agent cache --server https://fleet.example --folder /var/cache/slmops
    --host 10.0.0.2
    """
    from slmops.agent.app import set_up_logging
    from slmops.agent.site_cache import CacheSettings, serve_cache

    def announce(url: str) -> None:
        if as_json:
            render.json_document({"url": url, "folder": str(folder)})
        else:
            render.text(f"Cache of {server} on {url}; in a device's config.json:")
            render.text(f'  "blob_mirror": "{url}"')
        sys.stdout.flush()

    set_up_logging()
    serve_cache(
        CacheSettings(
            server=server,
            folder=folder.absolute(),
            most_bytes=max_mib * _MIB,
            host=host,
            port=port,
        ),
        announce=announce,
    )
