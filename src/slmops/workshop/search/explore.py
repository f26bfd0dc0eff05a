"""Which structures a build makes in full: all of them, or the best of a search.

A search is for more structures than anyone would build. First an analytic filter drops
what no class could hold, however it was quantized: no weight is touched for that. Then
trials are proposed one by one (Optuna's multi-objective TPE, Ozaki et al. 2022), each
structure made with a short recovery and judged by two figures: its bytes, and the KL
divergence of its 16-bit model from the reference on a small sample of the calibration
text. A pruned model before any recovery would say little about it after. The best
`SearchPlan.keep` of the trials' Pareto front are then made in full.

Trials are steps like any other, and what is proposed depends on the seed and on
finished trials alone: a killed search finds its trials again and goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from slmops.domain.recipe import Recipe, StructurePlan
from slmops.workshop.build_result import Trial
from slmops.workshop.evaluate import Scoring, score_candidate, score_reference
from slmops.workshop.gguf_file import read_header
from slmops.workshop.machine import load_prior
from slmops.workshop.score_file import CandidateScores, load_scores
from slmops.workshop.search.analytic import (
    ShapeForecast,
    forecast_structure,
    forecast_structures,
)
from slmops.workshop.search.structures import Levers, Structure, count_jobs
from slmops.workshop.source_grid import main_type

_JUDGED = 2
"""Jobs that judge a trial: the reference's scores, and its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Structures:
    """What the stage found."""

    kept: tuple[Structure, ...]
    """The base first."""
    trials: tuple[Trial, ...]
    """Every structure the recipe stands for that was looked at."""


def prepare_reference(levers: Levers) -> None:
    """Apply the recipe's `prepare`: its result is the model of this build from now on."""
    build = levers.build
    prepare = build.blueprint.recipe.prepare
    if not prepare:
        return
    structure = levers.base(build.model.id)
    for step in prepare:
        structure = levers.apply(structure, step)
    path = build.blobs.path(structure.model)
    build.model = replace(
        build.model,
        id=structure.model,
        name=f"{build.model.name}-prepared",
        bytes=path.stat().st_size,
        # Training moves weights off the grid they came from; others may stay on it.
        source_quantization=main_type(
            read_header(path).tensors, build.grid.types_of(path)
        ),
    )


def build_structures(levers: Levers) -> Structures:
    """Make the base and the recipe's structures."""
    build = levers.build
    recipe = build.blueprint.recipe
    base = levers.base(build.model.id)
    plans = [each for plan in recipe.structures for each in plan.variations()]
    if not plans:
        return Structures(kept=(base,), trials=())
    header = read_header(build.blobs.path(build.model.id))
    prior = load_prior(build.workspace)
    forecasts = {
        each.name: each for each in forecast_structures(build.blueprint, header, prior)
    }
    possible = [plan for plan in plans if forecasts[plan.name].obstacle is None]
    trials = [
        _dropped(plan, forecasts[plan.name]) for plan in plans if plan not in possible
    ]
    if len(possible) <= recipe.search.exhaustive:
        with build.board.foresee(sum(map(count_jobs, possible))):
            made = [levers.build_structure(plan, base) for plan in possible]
        trials += [
            Trial(
                name=plan.name,
                plan=plan,
                bytes=build.blobs.path(structure.model).stat().st_size,
                kld=None,
                kept=True,
                reason=f"one of {len(possible)}: all are built",
            )
            for plan, structure in zip(possible, made, strict=True)
        ]
        return Structures(kept=(base, *made), trials=tuple(trials))
    with build.board.foresee(_foreseen(recipe, possible)):
        found = _searched(levers, base, possible)
        kept = [
            levers.build_structure(trial.plan, base) for trial in found if trial.kept
        ]
    return Structures(kept=(base, *kept), trials=(*trials, *found))


def _foreseen(recipe: Recipe, plans: Sequence[StructurePlan]) -> int:
    """Return about how many jobs a search takes, with what it keeps."""
    trials = min(recipe.search.trials, len(plans))
    kept = min(recipe.search.keep, trials)
    jobs = sum(map(count_jobs, plans)) / len(plans)
    return round((trials + kept) * jobs) + trials * _JUDGED


def _dropped(plan: StructurePlan, forecast: ShapeForecast) -> Trial:
    return Trial(
        name=plan.name,
        plan=plan,
        bytes=forecast.bytes,
        kld=None,
        kept=False,
        reason=forecast.obstacle or "",
    )


def _searched(
    levers: Levers, base: Structure, plans: Sequence[StructurePlan]
) -> list[Trial]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recipe = levers.build.blueprint.recipe
    sampler = optuna.samplers.TPESampler(
        seed=recipe.seed, n_startup_trials=max(recipe.search.trials // 3, 2)
    )
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    probe = _Probe(levers=levers, base=base)
    tried: dict[str, Trial] = {}
    families = _families(recipe, plans)
    by_name = {plan.name: plan for plan in plans}
    while len(tried) < min(recipe.search.trials, len(plans)):
        asked = study.ask()
        name = _proposed(asked, families)
        if name is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        elif name in tried:
            study.tell(asked, _figures(tried[name]))
        else:
            tried[name] = probe.judge(by_name[name])
            study.tell(asked, _figures(tried[name]))
            continue
        # Nothing new came of it: the next is one that was not tried yet.
        left = [plan for plan in plans if plan.name not in tried]
        study.enqueue_trial(_parameters(left[0], families))
    judged = _judged(list(tried.values()), recipe.search.keep)
    left = [plan for plan in plans if plan.name not in tried]
    return judged + [_untried(plan, levers, len(tried)) for plan in left]


def _judged(tried: Sequence[Trial], keep: int) -> list[Trial]:
    front = best_of_front(tried, keep)
    return [
        replace(
            trial,
            kept=trial in front,
            reason=(
                "on the Pareto front of bytes and divergence"
                if trial in front
                else _why_not(trial, tried)
            ),
        )
        for trial in tried
    ]


def _untried(plan: StructurePlan, levers: Levers, trials: int) -> Trial:
    build = levers.build
    header = read_header(build.blobs.path(build.model.id))
    prior = load_prior(build.workspace)
    return Trial(
        name=plan.name,
        plan=plan,
        bytes=forecast_structure(build.blueprint, header, prior, plan).bytes,
        kld=None,
        kept=False,
        reason=f"not tried: the search made its {trials} trials",
    )


def _figures(trial: Trial) -> list[float]:
    return [float(trial.bytes), float(trial.kld or 0.0)]


def best_of_front(trials: Sequence[Trial], keep: int) -> list[Trial]:
    """Return at most `keep` of the trials no other beats in bytes and divergence.

    Both ends of the front and, between them, what lies most evenly in bytes.
    """
    front = [trial for trial in trials if dominator(trial, trials) is None]
    front.sort(key=lambda trial: (trial.bytes, trial.name))
    if len(front) <= keep:
        return front
    if keep == 1:
        return [min(front, key=lambda trial: (trial.kld or 0.0, trial.name))]
    places = np.linspace(0, len(front) - 1, keep).round().astype(int)
    return [front[place] for place in places]


def dominator(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """Return a trial no larger and no further from the reference, better in one."""
    mine = (trial.bytes, trial.kld or 0.0)
    for other in trials:
        theirs = (other.bytes, other.kld or 0.0)
        if theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1]:
            return other
    return None


def _proposed(trial: Any, families: Mapping[str, list[StructurePlan]]) -> str | None:  # noqa: ANN401 - optuna is untyped
    """Let the sampler choose a family and its numbers; None where no such was possible.

    Every number is a parameter of its own, so that the sampler learns which are good.
    """
    family = trial.suggest_categorical("structure", sorted(families))
    settings = {plan.name: _settings(plan) for plan in families[family]}
    chosen = {}
    for name in sorted({name for each in settings.values() for name in each}):
        values = sorted({each[name] for each in settings.values()})
        chosen[name] = trial.suggest_categorical(f"{family}.{name}", values)
    return next((name for name, each in settings.items() if each == chosen), None)


def _parameters(
    plan: StructurePlan, families: Mapping[str, list[StructurePlan]]
) -> dict[str, str | int]:
    """Return what the sampler would have to choose for a structure."""
    family = next(name for name, plans in families.items() if plan in plans)
    settings = {f"{family}.{name}": value for name, value in _settings(plan).items()}
    return {"structure": family, **settings}


def _families(
    recipe: Recipe, plans: Sequence[StructurePlan]
) -> dict[str, list[StructurePlan]]:
    """Return what each structure of the recipe stands for, as far as it is possible."""
    found = {
        plan.name: [each for each in plan.variations() if each in plans]
        for plan in recipe.structures
    }
    return {name: each for name, each in found.items() if each}


def _settings(plan: StructurePlan) -> dict[str, int]:
    """Return every number of a structure's levers that a search could vary."""
    return {
        f"{index}.{field.name}": value
        for index, step in enumerate(plan.steps)
        for field in fields(step.lever)
        if isinstance(value := getattr(step.lever, field.name), int)
    }


def _why_not(trial: Trial, trials: Sequence[Trial]) -> str:
    better = dominator(trial, trials)
    if better is None:
        return "on the Pareto front, but others spread over it more evenly"
    return (
        f"dominated by {better.name}: {better.bytes / 1e6:.1f} MB in 16 bits and"
        f" {better.kld or 0.0:.3f} nats, against {trial.bytes / 1e6:.1f} MB and"
        f" {trial.kld or 0.0:.3f}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Probe:
    """Makes structures with little recovery, and measures them on a small sample."""

    levers: Levers
    base: Structure

    def judge(self, plan: StructurePlan) -> Trial:
        share = self.levers.build.blueprint.recipe.search.recovery_share
        structure = self.levers.build_structure(plan, self.base, share=share)
        build = self.levers.build
        return Trial(
            name=plan.name,
            plan=plan,
            bytes=build.blobs.path(structure.model).stat().st_size,
            kld=self._kld(structure),
            kept=False,
            reason="",
        )

    def _kld(self, structure: Structure) -> float:
        build = self.levers.build
        scoring = Scoring(
            bench=build.bench,
            runtime=build.runtime,
            plan=replace(
                build.blueprint.evaluation,
                max_tokens=build.blueprint.recipe.search.probe_tokens,
                window_tokens=min(
                    build.blueprint.evaluation.window_tokens,
                    build.blueprint.recipe.search.probe_tokens,
                ),
            ),
            text_digest=self.levers.probe_text,
        )
        build.board.expect(_JUDGED)
        scores = score_candidate(
            scoring,
            structure.name,
            structure.model,
            score_reference(scoring, self.base.model),
            token_map=structure.token_map,
        )
        found = load_scores(build.blobs.path(scores), CandidateScores)
        return float(found.kld.mean())
