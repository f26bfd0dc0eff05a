"""One setting at which candidates run, and what they are asked there."""

from collections.abc import Mapping
from dataclasses import dataclass

from slmops.domain.ids import Digest
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.registry.blobs import bytes_digest
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.energy import EnergyMeter, open_meter
from slmops.runtimes.speed import SpeedPlan, machine_fingerprint
from slmops.workshop.build_context import BuildContext
from slmops.workshop.jobs.job import Value
from slmops.workshop.jobs.tools import tool_version
from slmops.workshop.steps import Step
from slmops.workshop.workbench import runtime_tool

PROMPT_TOKENS, ANSWER_TOKENS, WARM_UP_TOKENS = 64, 24, 2
_CODE = (
    "slmops.workshop.speed_setting",
    "slmops.workshop.speeds",
    "slmops.workshop.speed_groups",
    "slmops.workshop.memory",
    "slmops.workshop.energy",
    "slmops.workshop.statistics",
    "slmops.runtimes.energy",
    "slmops.runtimes.speed",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSetting:
    """How workers are started and asked."""

    build: BuildContext
    """The build."""
    threads: int
    """Of each worker."""
    context_tokens: int
    """Each is loaded with."""
    settings: RuntimeSettings = UNCHANGED
    """Of the runtime."""

    @property
    def worker(self) -> WorkerSettings:
        """How a worker is started.

        Raises:
            NotFoundError: the draft is not among the blobs.
        """
        draft = self.settings.draft
        return WorkerSettings(
            kv_cache=self.settings.kv_cache,
            draft=None if draft is None else str(self.build.blobs.path(draft)),
            draft_tokens=self.settings.draft_tokens,
            threads=self.threads,
            context_tokens=self.context_tokens,
            chat_template=self.build.model.chat_template,
        )

    @property
    def runs(self) -> int:
        """Timed requests per candidate."""
        return self.build.blueprint.evaluation.speed_runs

    def open_meter(self) -> EnergyMeter:
        """Return this machine's energy counters."""
        return open_meter(self.build.powercap)

    @property
    def counter_parameters(self) -> dict[str, Value]:
        """What distinguishes a timing step where energy can be counted: nothing where not."""
        names = self.open_meter().names
        return {"energy": names} if names else {}

    def plan(
        self, answer_tokens: int, *, prompt_tokens: int | None = None
    ) -> SpeedPlan:
        """Return one request: by default with the standard prompt, if it fits."""
        standard = min(PROMPT_TOKENS, self.context_tokens // 2)
        return SpeedPlan(
            runs=self.runs,
            prompt_tokens=standard if prompt_tokens is None else prompt_tokens,
            answer_tokens=min(answer_tokens, self.context_tokens // 4),
        )

    def step(
        self, kind: str, inputs: Mapping[str, Digest], **parameters: Value
    ) -> Step:
        """Return the step that measures `inputs` at this setting, on this machine."""
        template = bytes_digest((self.build.model.chat_template or "").encode())
        return Step(
            kind=kind,
            tool=f"{tool_version(*_CODE)}; {runtime_tool(self.build.runtime)}",
            inputs=inputs,
            parameters={
                "machine": machine_fingerprint(self.build.runtime),
                "threads": self.threads,
                "context_tokens": self.context_tokens,
                "template": template,
                **changed_parameters(self.settings),
                **parameters,
            },
        )


def changed_parameters(settings: RuntimeSettings) -> dict[str, Value]:
    """Return what distinguishes a step at these settings: nothing, at the defaults."""
    if settings == UNCHANGED:
        return {}
    return {
        "kv_cache": settings.kv_cache,
        "draft": settings.draft,
        "draft_tokens": settings.draft_tokens,
    }
