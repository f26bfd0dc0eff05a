"""Runtime settings of a candidate: which ones there are, and what each really gives.

A type of cache or a draft changes nothing of the artefact, only of how it runs. So one
artefact is tried at all its settings: its fidelity with each type of cache (a draft
changes it no more than the order of sums does, so it is not scored), and its speed at
all of them, asked in turn as `speeds` does with candidates.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.release import Fidelity, Speed
from slmops.domain.runtime_settings import DRAFT_TOKENS, UNCHANGED, RuntimeSettings
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.artefacts import Artefact
from slmops.workshop.evaluate import Scoring, estimate_fidelity, score_candidate
from slmops.workshop.speed_setting import SpeedSetting
from slmops.workshop.speeds import SPEEDS, GroupSpeeds, time_in_rounds


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingTrial:
    """One artefact at one setting, measured."""

    settings: RuntimeSettings
    """Of the runtime."""
    fidelity: Fidelity
    """With its type of cache."""
    speed: Speed
    """With all of it; memory is of the standard prompt."""


def expand_settings(
    kv_caches: Sequence[str] = (),
    drafts: Sequence[tuple[Digest, int]] = (),
    *,
    draft_tokens: Sequence[int] = (DRAFT_TOKENS,),
) -> tuple[RuntimeSettings, ...]:
    """Return all settings to try, each once, that which changes nothing first.

    Args:
        kv_caches: types of the cache to try besides 16 bits.
        drafts: digests and sizes of artefacts that may draft; they are tried with every
            type of cache.
        draft_tokens: how many tokens to draft at once.

    Raises:
        InvalidInputError: an unknown type, or a number of tokens that makes no sense.

    >>> [settings.label for settings in expand_settings(["q8_0"])]
    ['', 'kv q8_0']
    """
    caches = [RuntimeSettings(kv_cache=kv_cache) for kv_cache in kv_caches]
    plain = dict.fromkeys([UNCHANGED, *caches])
    drafted = [
        replace(settings, draft=digest, draft_bytes=size, draft_tokens=tokens)
        for settings in plain
        for digest, size in drafts
        for tokens in draft_tokens
    ]
    return tuple(dict.fromkeys([*plain, *drafted]))


def try_settings(
    setting: SpeedSetting,
    scoring: Scoring,
    reference: Digest,
    artefact: Artefact,
    settings: Sequence[RuntimeSettings],
) -> tuple[SettingTrial, ...]:
    """Measure an artefact at settings of the runtime, in their order; cached.

    Args:
        setting: threads and context.
        scoring: how to score.
        reference: digest of the reference's scores.
        artefact: what runs.
        settings: at least one; drafts are blobs of the build.

    Raises:
        InvalidInputError: no settings; or the runtime refuses one, as where a draft has
            another vocabulary.
        NotFoundError: a draft is not among the blobs.
        UnavailableError: a worker died.
    """
    if not settings:
        raise InvalidInputError("settings: at least one is needed, got none")
    fidelity = {
        kv_cache: _fidelity(scoring, reference, artefact, kv_cache)
        for kv_cache in dict.fromkeys(each.kv_cache for each in settings)
    }
    speeds = _speeds(setting, artefact, settings)
    return tuple(
        SettingTrial(
            settings=each, fidelity=fidelity[each.kv_cache], speed=speeds[index]
        )
        for index, each in enumerate(settings)
    )


def _fidelity(
    scoring: Scoring, reference: Digest, artefact: Artefact, kv_cache: str
) -> Fidelity:
    scores = score_candidate(
        scoring,
        f"{artefact.label}, kv {kv_cache}",
        artefact.digest,
        reference,
        token_map=artefact.making.token_map,
        kv_cache=kv_cache,
    )
    return estimate_fidelity(scoring, reference, scores)


def _speeds(
    setting: SpeedSetting, artefact: Artefact, settings: Sequence[RuntimeSettings]
) -> tuple[Speed, ...]:
    build = setting.build
    each = [replace(setting, settings=one) for one in settings]
    name = f"settings of {artefact.label}, {setting.threads} threads"
    drafts = dict.fromkeys(one.draft for one in settings if one.draft is not None)
    inputs = {"artefact": artefact.digest} | {
        f"draft {index}": digest for index, digest in enumerate(drafts)
    }

    def compute() -> Mapping[str, Digest]:
        path = build.blobs.path(artefact.digest)
        with build.board.task(f"measure {name}") as report, ExitStack() as stack:
            workers = [
                stack.enter_context(build.workers.start(path, one.worker))
                for one in each
            ]
            found = time_in_rounds(setting, workers, report)
        return {SPEEDS: build.blobs.put_bytes(encode_json(GroupSpeeds(speeds=found)))}

    step = setting.step(
        "settings speed",
        inputs,
        runs=setting.runs,
        settings=tuple(encode_json(one).decode() for one in settings),
        **setting.counter_parameters,
    )
    record = build.runner.run(name, step, compute)
    content = build.blobs.read_bytes(record.outputs[SPEEDS])
    return decode_json(content, GroupSpeeds, where=name).speeds
