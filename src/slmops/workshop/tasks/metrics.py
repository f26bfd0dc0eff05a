"""Figures of a task with 95 % bounds, from answers that are marked.

All bounds are of one bootstrap over examples (Efron 1979, percentile method): each
figure is a function of sums over examples, and a resample only weighs the examples anew.

A bootstrap of examples that all agree has no spread, however few they are. So no
interval is narrower than what so many examples without a single deviation allow, the
score interval ``z² / (n + z²)`` (Wilson 1927 for a share; Tango 1998 for a paired
difference): 20 right answers of 20 give no better lower bound than 0.84.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.domain.estimate import Estimate
from slmops.domain.tasks import Confusion, TaskAnswer, TaskAnswers, TaskKind, TaskMethod

RESAMPLES = 2000
CALIBRATION_BINS = 15
"""As Guo et al. 2017."""
MOST_CONFUSIONS = 10
_Z_SQUARED = 1.959964**2
_LOW, _HIGH = 2.5, 97.5
_CELLS = 1 << 22
"""Weights held at a time: 32 MiB."""

Values = npt.NDArray[np.float64]
Figure = Callable[[Values], Values]
"""Sums of features, (resamples, features) → the figure, (resamples,)."""


def bootstrap(
    features: Values, figure: Figure, *, lowest: float = 0.0, seed: int = 0
) -> Estimate:
    """Estimate a figure of sums over examples.

    Args:
        features: (examples, features), finite.
        figure: of their sums, divided by the number of examples.
        lowest: smallest value the figure may have; the largest is 1.
        seed: of the drawing; equal input gives equal bounds.

    Raises:
        InvalidInputError: no examples, or a figure that is not finite.
    """
    if features.ndim != 2 or not len(features):  # noqa: PLR2004 - a matrix
        raise InvalidInputError(
            f"features must be (examples, features), got shape {list(features.shape)}"
        )
    count = len(features)
    value = float(figure(features.mean(axis=0)[None])[0])
    chance = np.random.default_rng(seed)
    step = max(1, min(RESAMPLES, _CELLS // count))
    equal = np.full(count, 1 / count)
    found = []
    for first in range(0, RESAMPLES, step):
        drawn = chance.multinomial(count, equal, size=min(step, RESAMPLES - first))
        found.append(figure((drawn / count) @ features))
    low, high = np.percentile(np.concatenate(found), [_LOW, _HIGH])
    if not np.isfinite([value, low, high]).all():
        raise InvalidInputError(f"a figure must be finite, got {value}")
    least = _Z_SQUARED / (count + _Z_SQUARED)
    return Estimate(
        value=value,
        low=max(min(float(low), value - least), min(lowest, value)),
        high=min(max(float(high), value + least), max(1.0, value)),
    )


def mean_estimate(values: Sequence[float], *, lowest: float = 0.0) -> Estimate:
    """Estimate the mean of one figure of each example.

    >>> mean_estimate([1.0] * 20)
    Estimate(value=1.0, low=0.8388748398148703, high=1.0)
    """
    column = np.asarray(values, np.float64)[:, None]
    return bootstrap(column, lambda sums: sums[:, 0], lowest=lowest)


def detail_metrics(answers: TaskAnswers) -> Mapping[str, Estimate]:
    """Return the further figures of a kind of task, by name."""
    if answers.kind is TaskKind.CLASSIFICATION:
        return _classification(answers)
    found = {
        "exact_match": mean_estimate([float(each.correct) for each in answers.answers]),
        "finished": mean_estimate([float(each.finished) for each in answers.answers]),
    }
    if answers.kind is TaskKind.EXTRACTION:
        found |= _extraction(answers.answers)
    return found


def macro_f1(answers: TaskAnswers) -> Estimate:
    """Estimate the mean F1 over labels that occur as a right or given answer.

    A label that a resample has neither of is left out of that resample's mean.
    """
    labels = list(answers.labels)
    place = {label: index for index, label in enumerate(labels)}
    count = len(answers.answers)
    right, given, wanted = (np.zeros((count, len(labels))) for _ in range(3))
    for row, each in enumerate(answers.answers):
        wanted[row, place[each.expected]] = 1
        # A generated answer may be none of the labels: it is a miss, never a hit.
        if each.answer in place:
            given[row, place[each.answer]] = 1
        if each.correct:
            right[row, place[each.expected]] = 1
    size = len(labels)

    def figure(sums: Values) -> Values:
        hits, both = sums[:, :size], sums[:, size : 2 * size] + sums[:, 2 * size :]
        present = both > 0
        scores = np.divide(2 * hits, both, out=np.zeros_like(hits), where=present)
        mean: Values = scores.sum(axis=1) / present.sum(axis=1)
        return mean

    return bootstrap(np.hstack([right, given, wanted]), figure)


def calibration_error(answers: Sequence[TaskAnswer]) -> Estimate:
    """Estimate the expected calibration error (Guo et al. 2017): 15 bins of equal width.

    The mean over examples of |confidence - accuracy| of the bin they are in. With few
    examples a bin it comes out too high, for a perfect model too.
    """
    confidence = np.array([each.confidence or 0.0 for each in answers])
    correct = np.array([float(each.correct) for each in answers])
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    features = np.zeros((len(answers), CALIBRATION_BINS))
    features[np.arange(len(answers)), bins] = correct - confidence
    return bootstrap(features, lambda sums: np.abs(sums).sum(axis=1))


def confusions(answers: Sequence[TaskAnswer]) -> tuple[Confusion, ...]:
    """Return the most frequent pairs of right and given label that differ."""
    pairs = Counter(
        (each.expected, each.answer) for each in answers if not each.correct
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        Confusion(expected=expected, answer=answer, count=count)
        for (expected, answer), count in ordered[:MOST_CONFUSIONS]
    )


def _classification(answers: TaskAnswers) -> dict[str, Estimate]:
    found = {"macro_f1": macro_f1(answers)}
    if answers.method is TaskMethod.RANK:
        found["ece"] = calibration_error(answers.answers)
    else:
        labels = set(answers.labels)
        found["validity"] = mean_estimate(
            [float(each.answer in labels) for each in answers.answers]
        )
    return found


def _extraction(answers: Sequence[TaskAnswer]) -> dict[str, Estimate]:
    counts = np.array(
        [
            (each.fields.matched, each.fields.answered, each.fields.expected)
            for each in answers
            if each.fields is not None
        ],
        np.float64,
    )
    return {
        "validity": mean_estimate([float(bool(each.valid)) for each in answers]),
        "field_precision": bootstrap(
            counts, lambda sums: _share(sums[:, 0], sums[:, 1])
        ),
        "field_recall": bootstrap(counts, lambda sums: _share(sums[:, 0], sums[:, 2])),
        "field_f1_pooled": bootstrap(
            counts, lambda sums: _share(2 * sums[:, 0], sums[:, 1] + sums[:, 2])
        ),
    }


def _share(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
