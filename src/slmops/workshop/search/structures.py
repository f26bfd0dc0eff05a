"""Structures: a recipe's levers applied to a model, one job after the other.

Every lever takes a 16-bit GGUF file and gives one. A structure also remembers its
*teacher*: the reference with the same vocabulary, which distillation trains towards.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.levers import (
    Distill,
    Finetune,
    PruneDepth,
    PruneWidth,
    RecipeStep,
    Sparsify,
    TrimVocabulary,
)
from slmops.domain.recipe import BASE, CalibrationPlan, MixedPlan, StructurePlan
from slmops.wire.input_file import open_input
from slmops.workshop.build_context import BuildContext
from slmops.workshop.jobs.job import Value
from slmops.workshop.text_sources import (
    calibration_text,
    held_apart,
    read_text,
)

MODEL = "model"
_WINDOW_TOKENS = 256
_SENSITIVITY_WINDOW = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """One shape of the model."""

    name: str
    """As its candidates are called: ``slim-2``."""
    model: Digest
    """16-bit GGUF."""
    teacher: Digest
    """16-bit GGUF of the same vocabulary, before anything was removed."""
    token_map: Digest | None = None
    """New id → old id, where the vocabulary was trimmed."""
    steps: tuple[str, ...] = ()
    """What was done, in order, for people."""

    def after(self, model: Digest, step: str) -> "Structure":
        """Return it with the weights a step left."""
        return replace(self, model=model, steps=(*self.steps, step))


@dataclass(frozen=True, kw_only=True, slots=True)
class Levers:
    """Applies levers in one build."""

    build: BuildContext
    """The build."""

    @property
    def calibration(self) -> CalibrationPlan:
        """The recipe's, or the defaults: some levers need a text in any case."""
        return self.build.blueprint.recipe.calibration or CalibrationPlan()

    @property
    def is_search(self) -> bool:
        """Whether structures are tried before the best of them are built."""
        recipe = self.build.blueprint.recipe
        count = sum(len(plan.variations()) for plan in recipe.structures)
        return count > recipe.search.exhaustive

    @property
    def text(self) -> Digest:
        """Calibration text, in UTF-8: what levers and statistics read.

        In a search its last part is held back, for trials to be judged on.
        """
        text = calibration_text(self.calibration, self.build.folder)
        return self._put(held_apart(text)[0] if self.is_search else text)

    @property
    def probe_text(self) -> Digest:
        """The part of the calibration text that no lever has read."""
        text = calibration_text(self.calibration, self.build.folder)
        return self._put(held_apart(text)[1])

    def statistics(self, model: Digest) -> Digest:
        """Return the activation statistics of a 16-bit model on the calibration text."""
        record = self._run(
            "activation statistics",
            "statistics",
            {MODEL: model, "text": self.text},
            {
                "tokens": self.calibration.tokens,
                "window_tokens": _WINDOW_TOKENS,
                "hessians": True,
            },
        )
        return record["statistics"]

    def sensitivity(self, model: Digest) -> Digest:
        """Return how each tensor of a 16-bit model bears each type."""
        mixed = self.build.blueprint.recipe.mixed or MixedPlan()
        record = self._run(
            "sensitivity",
            "sensitivity",
            {
                MODEL: model,
                "text": self.text,
                "statistics": self.statistics(model),
            },
            {"tokens": mixed.tokens, "window_tokens": _SENSITIVITY_WINDOW},
        )
        return record["sensitivity"]

    def recovered(self, structure: Structure, assignment: Digest) -> Digest:
        """Return a structure's weights, trained for the types of an assignment."""
        plan = self.build.blueprint.recipe.recover
        if plan is None:
            raise InvalidInputError("recipe.recover is needed here, got none")
        record = self._run(
            f"{structure.name}: recover",
            "recover",
            {MODEL: structure.model, "text": self.text, "assignment": assignment},
            {"max_steps": plan.steps, "learning_rate": plan.learning_rate},
        )
        return record[MODEL]

    def base(self, model: Digest) -> Structure:
        """Return the structure that changes nothing."""
        return Structure(name=BASE, model=model, teacher=model)

    def build_structure(
        self, plan: StructurePlan, base: Structure, *, share: float = 1.0
    ) -> Structure:
        """Apply a structure's steps to the base.

        Args:
            plan: with one number wherever there could be several.
            base: what it is made from.
            share: of the training steps that are done: less than 1 in a trial.

        Raises:
            SlmopsError: what a lever's job raised; names the structure.
        """
        structure = replace(base, name=plan.name)
        try:
            for step in plan.steps:
                structure = self.apply(structure, step, share=share)
        except InvalidInputError as error:
            raise InvalidInputError(f"structure {plan.name}: {error}") from None
        return structure

    def apply(
        self, structure: Structure, step: RecipeStep, *, share: float = 1.0
    ) -> Structure:
        """Apply one lever."""
        match step.lever:
            case TrimVocabulary() as lever:
                return self._trimmed(structure, lever)
            case PruneDepth() as lever:
                return self._depth(structure, lever)
            case PruneWidth() as lever:
                return self._width(structure, lever)
            case Sparsify() as lever:
                return self._sparse(structure, lever)
            case Finetune() as lever:
                return self._finetuned(structure, lever)
            case Distill() as lever:
                return self._distilled(structure, lever, share)

    def _trimmed(self, structure: Structure, lever: TrimVocabulary) -> Structure:
        if structure.token_map is not None:
            raise InvalidInputError(
                f"structure {structure.name}: trim_vocabulary can be given once"
            )
        text = self._text(lever.text, "trim_vocabulary.text")
        name = f"{structure.name}: keep {lever.tokens} tokens"
        parameters: dict[str, Value] = {"tokens": _one(lever.tokens)}

        def trimmed(model: Digest) -> Mapping[str, Digest]:
            inputs = {MODEL: model, "text": text}
            return self._run(name, "trim-vocabulary", inputs, parameters)

        made = trimmed(structure.model)
        teacher = made
        if structure.teacher != structure.model:
            # Which tokens stay depends on tokenizer and text, so both get the same.
            teacher = trimmed(structure.teacher)
        return replace(
            structure,
            model=made[MODEL],
            teacher=teacher[MODEL],
            token_map=made["token_map"],
            steps=(*structure.steps, f"keep {lever.tokens} tokens"),
        )

    def _depth(self, structure: Structure, lever: PruneDepth) -> Structure:
        inputs = {MODEL: structure.model, "text": self.text}
        if lever.method == "influence":
            inputs = {
                MODEL: structure.model,
                "statistics": self.statistics(structure.model),
            }
        made = self._run(
            f"{structure.name}: keep {lever.layers} blocks",
            "prune-depth",
            inputs,
            {"layers": _one(lever.layers), "method": str(lever.method)},
        )
        return structure.after(
            made[MODEL], f"keep {lever.layers} blocks ({lever.method})"
        )

    def _width(self, structure: Structure, lever: PruneWidth) -> Structure:
        made = self._run(
            f"{structure.name}: prune width",
            "prune-width",
            {MODEL: structure.model, "statistics": self.statistics(structure.model)},
            {
                "feed_forward": _one(lever.feed_forward),
                "heads": 0,
                "kv_heads": _one(lever.kv_heads),
            },
        )
        kept = [
            f"{number} {what}"
            for number, what in (
                (lever.feed_forward, "feed-forward channels"),
                (lever.kv_heads, "key and value heads"),
            )
            if number
        ]
        return structure.after(made[MODEL], f"keep {', '.join(kept)}")

    def _sparse(self, structure: Structure, lever: Sparsify) -> Structure:
        inputs = {MODEL: structure.model}
        if lever.method != "magnitude":
            inputs["statistics"] = self.statistics(structure.model)
        made = self._run(
            f"{structure.name}: sparsify",
            "sparsify",
            inputs,
            {
                "method": str(lever.method),
                "pattern": str(lever.pattern),
                "sparsity": lever.sparsity,
            },
        )
        said = f"{lever.sparsity:.0%} {lever.pattern} zeros ({lever.method})"
        return structure.after(made[MODEL], said)

    def _finetuned(self, structure: Structure, lever: Finetune) -> Structure:
        inputs = {MODEL: structure.model, "data": self._data(lever.data)}
        if lever.validation is not None:
            inputs["validation"] = self._data(lever.validation)
        parameters: dict[str, Value] = {
            "method": str(lever.method),
            "epochs": lever.epochs,
            "rank": lever.rank,
            "accumulation": lever.accumulation,
            "patience": lever.patience,
            "max_tokens": lever.max_tokens,
            "gradient_checkpointing": lever.gradient_checkpointing,
        }
        if lever.learning_rate is not None:
            parameters["learning_rate"] = lever.learning_rate
        name = f"{structure.name}: fine-tune"
        made = self._run(name, "finetune", inputs, parameters)
        # What was learned is not in the old teacher: from here on it is its own.
        return replace(
            structure,
            model=made[MODEL],
            teacher=made[MODEL],
            steps=(*structure.steps, f"fine-tune on {lever.data} ({lever.method})"),
        )

    def _distilled(
        self, structure: Structure, lever: Distill, share: float
    ) -> Structure:
        inputs = {MODEL: structure.model, "teacher": structure.teacher}
        if lever.prompts is not None:
            inputs["data"] = self._written(structure, lever.prompts)
        elif lever.data is not None:
            inputs["data"] = self._data(lever.data)
        elif lever.text is not None:
            inputs["text"] = self._text(lever.text, "distill.text")
        else:
            inputs["text"] = self.text
        steps = max(round(lever.steps * share), 1)
        made = self._run(
            f"{structure.name}: distill {steps} steps",
            "distill",
            inputs,
            {
                "max_steps": steps,
                "learning_rate": lever.learning_rate,
                "temperature": lever.temperature,
            },
        )
        return structure.after(made[MODEL], f"distill {steps} steps")

    def _written(self, structure: Structure, prompts: str) -> Digest:
        """Return examples whose answers the teacher wrote."""
        made = self._run(
            f"{structure.name}: teacher answers",
            "generate",
            {MODEL: structure.teacher, "prompts": self._data(prompts)},
            {"runtime": self.build.runtime},
        )
        return made["data"]

    def _run(
        self,
        name: str,
        kind: str,
        inputs: Mapping[str, Digest],
        parameters: Mapping[str, Value],
    ) -> Mapping[str, Digest]:
        seed = self.build.blueprint.recipe.seed
        self.build.board.expect(1)
        return self.build.bench.run(name, kind, inputs, parameters, seed=seed).outputs

    def _text(self, name: str, where: str) -> Digest:
        text = read_text(self.build.folder / name, where)
        return self._put(text)

    def _put(self, text: str) -> Digest:
        return self.build.blobs.put_bytes(text.encode())

    def _data(self, name: str) -> Digest:
        # Copied, not linked: the user's file may change, a blob may not.
        with (
            open_input(self.build.folder / name, where="data") as data,
            self.build.blobs.writer() as writer,
        ):
            shutil.copyfileobj(data, writer.file)
        return writer.digest


def count_jobs(plan: StructurePlan) -> int:
    """Return about how many jobs a structure takes: those that all share, once each."""
    return sum(1 + _asks_more(step) for step in plan.steps)


def _asks_more(step: RecipeStep) -> bool:
    """Tell whether a lever needs statistics, or answers of its teacher, first."""
    match step.lever:
        case PruneDepth() as lever:
            return lever.method == "influence"
        case PruneWidth():
            return True
        case Sparsify() as lever:
            return lever.method != "magnitude"
        case Distill() as lever:
            return lever.prompts is not None
        case _:
            return False


def _one(number: int | tuple[int, ...]) -> int:
    if isinstance(number, tuple):
        raise InvalidInputError(f"one number is needed here, got {number}")
    return number
