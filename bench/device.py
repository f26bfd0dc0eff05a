"""A control plane and one real agent that serves a real or an echo model."""

import os
import time
from dataclasses import replace
from pathlib import Path

from slmops.agent.settings import load_agent_settings
from slmops.agent.status import agent_status
from slmops.domain.device import DeviceClass
from slmops.domain.installation import State
from slmops.domain.release import ModelRecord
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.golden import ask_golden, record_golden
from slmops.runtimes.worker import start_worker
from slmops.testing.sample_release import publish_sample, sample_release
from slmops.testing.stage import PROMPTS, QUICK, Stage, wait_until

CONTEXT_TOKENS = 512
_INSTALL_S = 90.0


def publish_model(
    stage: Stage, record: ModelRecord, artefact: Path, *, version: int = 1
) -> str:
    """Publish a variant with golden answers that it really gave; return the label."""
    settings = WorkerSettings(
        context_tokens=CONTEXT_TOKENS, chat_template=record.chat_template
    )
    with start_worker("llamacpp", artefact, settings) as worker:
        golden = record_golden(worker.address, PROMPTS, 4)
        scores = ask_golden(worker.address, golden).scores
    content = artefact.read_bytes()
    everybody = DeviceClass(
        name="any", context_tokens=CONTEXT_TOKENS, threads=1, runtime="llamacpp"
    )
    release = sample_release(
        version,
        classes=(everybody,),
        artefacts={"any": content},
        runtime="llamacpp",
        golden=golden,
    )
    promised = tuple(score.logprobs[0] for score in scores)
    release = replace(
        release,
        model=record,
        blueprint=replace(release.blueprint, rollout=QUICK),
        variants=tuple(
            replace(variant, golden_logprobs=promised) for variant in release.variants
        ),
    )
    publish_sample(
        stage.workspace.root, [release], artefacts=[content], now=time.time()
    )
    return release.label


def install(stage: Stage, state: Path, label: str) -> None:
    """Roll a release out and wait until the device has committed it.

    Raises:
        RuntimeError: the device refused it.
    """
    stage.roll_out(label)

    def committed() -> bool:
        status = agent_status(state, load_agent_settings(state, os.environ))
        last, active = status.installation, status.active
        if last is not None and last.state is State.ROLLED_BACK:
            raise RuntimeError(f"{label} was rolled back: {last.reason}")
        is_new = active is not None and active.release == label
        return is_new and last is not None and last.state is State.COMMITTED

    wait_until(committed, f"{label} on {state.name}", timeout_s=_INSTALL_S)
