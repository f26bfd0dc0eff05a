"""``slmops release``: publish builds, look at releases and verify them."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.card_figures import peak_figure, speed_remarks
from slmops.cli.catalog import open_catalog
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.domain.ids import Digest
    from slmops.domain.release import Release, Speed, Variant

_MIB = 1 << 20


@click.group()
def release() -> None:
    """Publish builds as signed releases, look at them and verify them.

    A release is immutable: its artefacts, cards and golden prompts, signed with TUF
    metadata, in a folder that OCI tools can read.

    Example: slmops release show assistant-1
    """


@release.command()
@click.argument("build_id", metavar="[BUILD]", default="latest")
@click.option("--force", is_flag=True, help="Release below the quality floor.")
@click.option("--reason", help="Why, for the record; goes with --force.")
@render.as_json
@click.pass_obj
def create(
    workspace: Workspace, build_id: str, force: bool, reason: str | None, as_json: bool
) -> None:
    """Sign and publish BUILD (the latest by default) as the next version.

    The first release makes the signing keys in the workspace's keys folder; set
    SLMOPS_KEY_PASSPHRASE to keep them encrypted. A build below its quality floor is
    refused unless forced with a reason, which the release then carries for good.

    Example: slmops release create
    """
    from slmops.cli.key_access import release_keys
    from slmops.registry.bins import bin_settings
    from slmops.registry.signing import wears_out
    from slmops.workshop.builds import load_build
    from slmops.workshop.releases import create_release

    if force != (reason is not None):
        raise click.UsageError("--force and --reason go together")
    now = time.time()
    build = load_build(workspace, build_id)
    keys = release_keys(workspace, now=now)
    bins = bin_settings(os.environ)
    with render.progress(quiet=as_json) as progress:
        progress("hash artefacts and sign", 0, 0)
        found, digest = create_release(workspace, build, keys, now, reason, bins)
    if as_json:
        render.json_document(_document(found, digest))
        return
    waits = found.label not in open_catalog(workspace).labels()
    render.text(f"{'signed' if waits else 'published'} {found.label}, {digest}")
    _render(found)
    following = f"slmops serve; slmops rollout start {found.label}"
    if waits:
        following = (
            "slmops release admit, where the snapshot's and timestamp's keys are"
        )
    render.note(f"next: {following}")
    root = open_catalog(workspace).newest_root()
    if wears_out(root, now):
        render.note(f"the root expires on {root.expires:%Y-%m-%d}: slmops keys renew")


@release.command()
@render.as_json
@click.pass_obj
def admit(workspace: Workspace, as_json: bool) -> None:
    """Publish what was signed on another machine, which has the release key alone.

    There, `slmops release create` signs and names nothing; copy the registry's blobs,
    targets and metadata here, where the snapshot's and timestamp's keys are.

    Example: slmops release admit
    """
    from slmops.cli.key_access import key_access
    from slmops.registry.signing import OnlineKeys

    catalog = open_catalog(workspace)
    before = set(catalog.labels())
    access = key_access()
    keys = OnlineKeys.load(
        workspace.keys, passphrase=access.passphrase, root=catalog.newest_root()
    )
    catalog.admit(keys, time.time())
    added = sorted(set(catalog.labels()) - before)
    if as_json:
        render.json_document({"admitted": added})
        return
    for label in added:
        render.text(f"published {label}")
    if not added:
        render.note("nothing waits")


@release.command("list")
@render.as_json
@click.pass_obj
def list_releases(workspace: Workspace, as_json: bool) -> None:
    """List published releases, by label.

    Example: slmops release list
    """
    catalog = open_catalog(workspace)
    releases = [catalog.load(label) for label in catalog.labels()]
    if as_json:
        entries = [
            {
                "label": found.label,
                "digest": digest,
                "created_at": found.created_at,
                "variants": len(found.variants),
                "forced": found.forced is not None,
            }
            for found, digest in releases
        ]
        render.json_document({"releases": entries})
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
    found, digest = open_catalog(workspace).load(label)
    if as_json:
        render.json_document(_document(found, digest))
        return
    render.text(f"{found.label}, {digest}")
    _render(found)


@release.command()
@click.argument("label")
@render.as_json
@click.pass_obj
def verify(workspace: Workspace, label: str, as_json: bool) -> None:
    """Check signatures from the pinned root, hash every blob again, check the evidence.

    The provenance statement must be signed by the key that signs releases, and speak of
    this release's variants and build.

    Exits with 5 when one bit differs from what was signed, or the metadata has expired.

    Example: slmops release verify assistant-1
    """
    import tempfile

    from slmops.registry.key_folder import read_pinned_root
    from slmops.registry.trust import TrustedRegistry
    from slmops.wire.codec import to_plain
    from slmops.workshop.evidence.attachments import verify_evidence

    catalog = open_catalog(workspace)
    with render.progress(quiet=as_json) as progress:
        progress("hash every blob again", 0, 0)
        found = catalog.verify(label)
        signed, _ = catalog.load(label)
        evidence = verify_evidence(signed, catalog.blobs, catalog.targets_keys())
    with tempfile.TemporaryDirectory() as folder:
        TrustedRegistry(
            Path(folder),
            read_pinned_root(workspace.keys),
            workspace.registry,
            now=time.time,
        ).release(label)
    if as_json:
        render.json_document({**to_plain(found), "evidence": evidence})
        return
    render.text(
        f"{label} holds: signatures from the pinned root, {found.blobs} blobs,"
        f" {found.bytes / _MIB:.1f} MiB hashed again"
    )
    for line in evidence or ("no evidence is attached",):
        render.text(f"  {line}")


@release.command()
@click.argument("label")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files; LABEL-evidence by default.",
)
@render.as_json
@click.pass_obj
def evidence(
    workspace: Workspace, label: str, output: Path | None, as_json: bool
) -> None:
    """Write a release's evidence: signed provenance, CycloneDX ML-BOM, cards, build.

    Every file is checked against the digest that the signed release names; the
    provenance against the key that signs releases.

    Example: slmops release evidence assistant-1 --output evidence
    """
    from slmops.workshop.evidence.attachments import verify_evidence, write_evidence

    catalog = open_catalog(workspace)
    found, _ = catalog.load(label)
    verify_evidence(found, catalog.blobs, catalog.targets_keys())
    files = write_evidence(found, catalog.blobs, output or Path(f"{label}-evidence"))
    if as_json:
        render.json_document({name: str(path) for name, path in files.items()})
        return
    for path in files.values():
        render.text(str(path))
    if not files:
        render.note(f"release {label} has no evidence attached")


def _document(found: "Release", digest: "Digest") -> dict[str, object]:
    from slmops.wire.codec import to_plain

    return {**to_plain(found), "label": found.label, "digest": digest}


def _render(found: "Release") -> None:
    render.table(
        (
            *("classes", "type", "MiB", "mean KLD", "same top-1"),
            *("decode tok/s", "peak RSS MiB", "digest"),
        ),
        [_row(variant, found) for variant in found.variants],
    )
    for line in _remarks(found):
        render.text(line)
    if found.attachments:
        render.text()
        render.table(
            ("evidence", "file", "bytes", "digest"),
            [(a.kind, a.name, a.bytes, a.digest[:19]) for a in found.attachments],
        )


def _row(variant: "Variant", found: "Release") -> tuple[object, ...]:
    card = variant.card
    kld, top1 = card.fidelity.mean_kld, card.fidelity.same_top1
    speed = _speed(variant, found)
    return (
        ", ".join(variant.classes),
        card.label,
        round(variant.bytes / _MIB, 1),
        f"{kld.value:.4f} ({kld.low:.4f} to {kld.high:.4f})",
        f"{top1.value:.3f} ({top1.low:.3f} to {top1.high:.3f})",
        round(speed.decode_tokens_per_s.value, 1) if speed else None,
        peak_figure(speed) if speed else None,
        variant.digest[:19],
    )


def _speed(variant: "Variant", found: "Release") -> "Speed | None":
    """Return what was measured as the first of the variant's classes runs it."""
    first = next(one for one in found.classes if one.name in variant.classes)
    return variant.card.speed_for(first)


def _energy(found: "Release") -> list[str]:
    from slmops.workshop.evidence.energy_tables import energy_lines

    return [
        f"{device_class.name}: {line}"
        for device_class in found.classes
        for line in energy_lines(
            found.variant_for(device_class.name).card, device_class
        )
    ]


def _remarks(found: "Release") -> list[str]:
    grids = {variant.card.reference_grid or "" for variant in found.variants} - {""}
    lines = [
        f"the source was quantized, mainly {grid}: variants with its tensors' types look"
        " better than they are"
        for grid in sorted(grids)
    ]
    lines += speed_remarks(_speed(variant, found) for variant in found.variants)
    lines += _energy(found)
    if found.forced:
        lines.append(f"forced below the quality floor: {found.forced.reason}")
        lines.extend(f"  {violation}" for violation in found.forced.violations)
    return lines
