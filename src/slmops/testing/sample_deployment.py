"""What a device has in a slot, with the echo runtime, for tests of the agent.

Change any field with `dataclasses.replace`.
"""

from slmops.agent.records import Deployment
from slmops.domain.ids import Digest


def sample_deployment(variant: Digest, size_bytes: int) -> Deployment:
    """Return release ``sample-1`` with an echo artefact of `size_bytes` bytes."""
    return Deployment(
        release="sample-1",
        release_digest=variant,
        variant=variant,
        bytes=size_bytes,
        runtime="echo",
        device_class="any",
        threads=1,
        context_tokens=256,
        memory_limit_mib=200.0,
        expected_peak_mib=50.0,
        chat_template=None,
        assignment=1,
    )
