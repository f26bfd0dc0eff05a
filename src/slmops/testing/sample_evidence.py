"""A sample build, released with all its evidence, for tests without a model."""

from dataclasses import replace
from pathlib import Path

from slmops.registry.blobs import BlobStore
from slmops.registry.catalog import Catalog
from slmops.registry.signing import ReleaseKeys
from slmops.registry.workspace import Workspace
from slmops.testing.sample_build import candidate_content, sample_build
from slmops.testing.sample_release import SAMPLE_TIME, PublishedSample
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.build_result import BuildResult
from slmops.workshop.builds import save_build
from slmops.workshop.releases import create_release


def released_build(
    folder: Path, *, now: float = SAMPLE_TIME
) -> tuple[PublishedSample, BuildResult]:
    """Save the sample build in a workspace at `folder` and release it.

    Args:
        folder: root of the workspace; made when missing.
        now: when it is released: Unix time, seconds.
    """
    workspace = Workspace(root=folder)
    plain = sample_build(blobs=BlobStore(workspace.blobs))
    build = replace(
        plain,
        variants=tuple(
            replace(v, bytes=len(candidate_content(v.card.quantization)))
            for v in plain.variants
        ),
    )
    # As the commands read it: 90 MiB given where a float belongs is 90.0 then.
    build = decode_json(encode_json(build), BuildResult, where="sample build")
    save_build(workspace, build)
    keys = ReleaseKeys.load_or_create(workspace.keys, now=now)
    release, _ = create_release(workspace, build, keys, now)
    catalog = Catalog(workspace.registry, pinned_root=keys.root_json)
    published = PublishedSample(
        workspace=workspace, catalog=catalog, keys=keys, releases=(release,)
    )
    return published, build
