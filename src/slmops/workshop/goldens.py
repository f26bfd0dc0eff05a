"""Golden steps: record the reference's answers, and what each variant makes of them.

Both go through the chat path of a real worker, as on a device.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slmops.domain.ids import Digest
from slmops.domain.release import GoldenSet
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.registry.blobs import BlobStore, bytes_digest
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.golden import ask_golden, record_golden
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.build_context import BuildContext
from slmops.workshop.jobs.job import Value
from slmops.workshop.jobs.tools import tool_version
from slmops.workshop.speed_setting import changed_parameters
from slmops.workshop.steps import Step
from slmops.workshop.text_sources import golden_lines
from slmops.workshop.workbench import runtime_tool

GOLDEN = "golden"
"""Role of the recorded set."""
LOGPROBS = "logprobs"
"""Role of a variant's own figures."""
CONTEXT_TOKENS = 1024
"""Room for a prompt, the template around it and the answer."""
_CODE = ("slmops.runtimes.golden",)
_FLOOR = -math.log(1e30)
"""Nats: a token the runtime calls impossible; documents hold finite numbers only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenLogprobs:
    """What one variant thinks of each golden prompt's first expected token."""

    first_token: tuple[float, ...]
    """log p, nats, one per prompt."""


def record_goldens(build: BuildContext) -> Digest:
    """Ask the reference the blueprint's golden prompts: before anything is built on it.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: a prompt without an answer; names file and line.
    """
    plan = build.blueprint.golden
    lines = golden_lines(plan, build.folder)
    build.board.expect(1)
    return Goldens(build=build).record(
        tuple(lines.values()), plan.answer_tokens, names=tuple(lines)
    )


def load_golden(blobs: BlobStore, golden: Digest) -> GoldenSet:
    """Return a recorded set."""
    return decode_json(blobs.read_bytes(golden), GoldenSet, where="golden set")


@dataclass(frozen=True, kw_only=True, slots=True)
class Goldens:
    """What all golden steps of one build share."""

    build: BuildContext
    """The build."""

    @property
    def settings(self) -> WorkerSettings:
        """How workers are started for golden prompts."""
        return WorkerSettings(
            threads=1,
            context_tokens=min(CONTEXT_TOKENS, self.build.model.context_tokens),
            chat_template=self.build.model.chat_template,
        )

    def record(
        self,
        prompts: tuple[str, ...],
        answer_tokens: int,
        *,
        names: Sequence[str] = (),
    ) -> Digest:
        """Return the digest of the golden set the reference answers.

        A prompt without an answer is refused and not left out: a set that shrinks by
        itself guards less than its owner believes, and nobody would see it.

        Args:
            prompts: to ask.
            answer_tokens: longest answer.
            names: what messages call the prompts; empty calls them by index.

        Raises:
            InvalidInputError: the reference has no answer to a prompt, or the prompt does
                not fit its context; names it.
        """
        blobs = self.build.blobs
        step = self._step(
            "record golden",
            {"artefact": self.build.model.id},
            {"prompts": prompts, "answer_tokens": answer_tokens},
        )

        def compute() -> Mapping[str, Digest]:
            path = blobs.path(self.build.model.id)
            with (
                self.build.board.task("record golden answers"),
                self.build.workers.start(path, self.settings) as worker,
            ):
                golden = record_golden(
                    worker.address, prompts, answer_tokens, names=names
                )
            return {GOLDEN: blobs.put_bytes(encode_json(golden))}

        record = self.build.runner.run("record golden answers", step, compute)
        return record.outputs[GOLDEN]

    def ask(
        self,
        name: str,
        artefact: Digest,
        golden: Digest,
        settings: RuntimeSettings = UNCHANGED,
    ) -> tuple[float, ...]:
        """Return a variant's own log p of each prompt's first expected token.

        Args:
            name: of the variant, for people.
            artefact: the variant.
            golden: the recorded set.
            settings: of the runtime, as on a device.
        """
        blobs = self.build.blobs
        inputs = {"artefact": artefact, "golden": golden}
        if settings.draft is not None:
            inputs["draft"] = settings.draft
        step = self._step("ask golden", inputs, changed_parameters(settings))
        worker_settings = self._with(settings)

        def compute() -> Mapping[str, Digest]:
            path = blobs.path(artefact)
            with (
                self.build.board.task(f"golden prompts to {name}"),
                self.build.workers.start(path, worker_settings) as worker,
            ):
                run = ask_golden(worker.address, load_golden(blobs, golden))
            found = GoldenLogprobs(
                first_token=tuple(
                    max(score.logprobs[0], _FLOOR) for score in run.scores
                )
            )
            return {LOGPROBS: blobs.put_bytes(encode_json(found))}

        record = self.build.runner.run(f"golden prompts to {name}", step, compute)
        content = blobs.read_bytes(record.outputs[LOGPROBS])
        return decode_json(content, GoldenLogprobs, where=name).first_token

    def _with(self, settings: RuntimeSettings) -> WorkerSettings:
        draft = settings.draft
        return replace(
            self.settings,
            kv_cache=settings.kv_cache,
            draft=None if draft is None else str(self.build.blobs.path(draft)),
            draft_tokens=settings.draft_tokens,
        )

    def _step(
        self,
        kind: str,
        inputs: Mapping[str, Digest],
        parameters: Mapping[str, Value],
    ) -> Step:
        template = bytes_digest((self.build.model.chat_template or "").encode())
        return Step(
            kind=kind,
            tool=f"{tool_version(*_CODE)}; {runtime_tool(self.build.runtime)}",
            inputs=inputs,
            parameters={
                **parameters,
                "runtime": self.build.runtime,
                "template": template,
            },
        )
