"""Job ``distill``: a student learns a teacher's next-token distributions.

Inputs ``model`` (student), ``teacher`` (both 16-bit GGUF, same tokenizer) or ``logits``
(what the job ``teacher-logits`` left of the same text), and ``text`` (UTF-8) or ``data``
(JSON Lines, where answers are learnt); ``validation`` of the same form, if given.
Parameters are the fields of `DistillSettings`. Outputs ``model`` and ``log``.
"""

from collections.abc import Mapping
from pathlib import Path

from slmops.workshop.jobs.job import Job
from slmops.workshop.training.packages import require_training_packages
from slmops.workshop.training.settings import DistillSettings, read_settings


def run(job: Job) -> Mapping[str, Path]:
    """Distill; see `slmops.workshop.jobs.job`.

    Raises:
        InvalidInputError: packages are missing, a parameter is wrong, the tokenizers
            differ, the text is too short, or training diverged.
    """
    require_training_packages()
    settings = read_settings(job, DistillSettings)
    from slmops.workshop.training.distill_run import distill

    return distill(job, settings, kind="distill")


def run_teacher(job: Job) -> Mapping[str, Path]:
    """Job ``teacher-logits``: ask a teacher once, for many students to learn from.

    Inputs ``teacher``, ``text`` or ``data``, and ``validation`` as for ``distill``, whose
    parameters ``top_k``, ``temperature``, ``window_tokens``, ``max_windows``,
    ``held_out`` and seed must be equal there. Output ``logits`` (`teacher`).

    Raises:
        InvalidInputError: as `run`.
    """
    require_training_packages()
    settings = read_settings(job, DistillSettings)
    from slmops.workshop.training.distill_run import teacher_logits

    return teacher_logits(job, settings)
