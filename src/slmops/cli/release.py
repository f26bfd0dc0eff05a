"""``slmops release``: look at published releases and verify them."""

import time
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.domain.release import Release, Variant
    from slmops.registry.catalog import Catalog

_MIB = 1 << 20


@click.group()
def release() -> None:
    """Look at signed releases and verify them.

    A release is immutable: its artefacts, cards and golden prompts, signed with TUF
    metadata, in a folder that OCI tools can read.

    Example: slmops release show assistant-1
    """


@release.command("list")
@render.as_json
@click.pass_obj
def list_releases(workspace: Workspace, as_json: bool) -> None:
    """List published releases, by label.

    Example: slmops release list
    """
    catalog = _catalog(workspace)
    releases = [catalog.load(label) for label in catalog.labels()]
    if as_json:
        render.json_document(
            [
                {
                    "label": found.label,
                    "digest": digest,
                    "created_at": found.created_at,
                    "variants": len(found.variants),
                    "forced": found.forced is not None,
                }
                for found, digest in releases
            ]
        )
        return
    render.table(
        ("release", "model", "variants", "forced", "digest"),
        [
            (
                found.label,
                found.model.name,
                len(found.variants),
                "yes" if found.forced else None,
                digest,
            )
            for found, digest in releases
        ],
    )


@release.command()
@click.argument("label")
@render.as_json
@click.pass_obj
def show(workspace: Workspace, label: str, as_json: bool) -> None:
    """Show a release: its variants, and what was measured of each.

    Example: slmops release show assistant-1
    """
    from slmops.wire.codec import to_plain

    found, digest = _catalog(workspace).load(label)
    if as_json:
        render.json_document(
            {**to_plain(found), "label": found.label, "digest": digest}
        )
        return
    render.table(
        (
            *("classes", "type", "MiB", "mean KLD", "same top-1"),
            *("decode tok/s", "peak RSS MiB", "digest"),
        ),
        [_row(variant) for variant in found.variants],
        title=f"{found.label}, {digest}",
    )
    for line in _remarks(found):
        render.text(line)


@release.command()
@click.argument("label")
@render.as_json
@click.pass_obj
def verify(workspace: Workspace, label: str, as_json: bool) -> None:
    """Check signatures from the pinned root, and hash every blob again.

    Exits with 5 when one bit differs from what was signed, or the metadata has expired.

    Example: slmops release verify assistant-1
    """
    import tempfile
    from pathlib import Path

    from slmops.registry.signing import read_pinned_root
    from slmops.registry.trust import TrustedRegistry

    found = _catalog(workspace).verify(label)
    with tempfile.TemporaryDirectory() as folder:
        TrustedRegistry(
            Path(folder),
            read_pinned_root(workspace.keys),
            workspace.registry,
            now=time.time,
        ).release(label)
    if as_json:
        render.json_document(found)
    else:
        render.text(
            f"{label} holds: signatures from the pinned root, {found.blobs} blobs,"
            f" {found.bytes / _MIB:.1f} MiB hashed again"
        )


def _catalog(workspace: Workspace) -> "Catalog":
    from slmops.registry.catalog import Catalog
    from slmops.registry.signing import PINNED_ROOT

    pinned = workspace.keys / PINNED_ROOT
    return Catalog(
        workspace.registry,
        pinned_root=pinned.read_bytes() if pinned.exists() else None,
    )


def _row(variant: "Variant") -> tuple[object, ...]:
    card = variant.card
    kld, top1 = card.fidelity.mean_kld, card.fidelity.same_top1
    speed = card.speed[0] if card.speed else None
    return (
        ", ".join(variant.classes),
        card.quantization + (" *" if card.reference_grid else ""),
        round(variant.bytes / _MIB, 1),
        f"{kld.value:.4f} ({kld.low:.4f} to {kld.high:.4f})",
        f"{top1.value:.3f} ({top1.low:.3f} to {top1.high:.3f})",
        round(speed.decode_tokens_per_s.value, 1) if speed else None,
        round(speed.peak_rss_mib) if speed else None,
        variant.digest[:19],
    )


def _remarks(found: "Release") -> list[str]:
    grids = {variant.card.reference_grid or "" for variant in found.variants} - {""}
    lines = [
        f"* the reference was dequantized from {grid}: figures of that type are flattered"
        for grid in sorted(grids)
    ]
    if found.forced:
        lines.append(f"forced below the quality floor: {found.forced.reason}")
        lines.extend(f"  {violation}" for violation in found.forced.violations)
    return lines
