"""Job ``recover``: a model learns to lose less when it is quantized.

Short distillation of the quantized student against its 16-bit self. Inputs as for
``distill``, and ``assignment`` (JSON: ``{"types": {tensor: type}}``); without ``teacher``
the model is its own. Parameters are the fields of `RecoverSettings`. Outputs ``model``
(16 bits; quantize it with the same assignment) and ``log``, whose evaluations are
divergences of the quantized student, the first before any training.
"""

from collections.abc import Mapping
from pathlib import Path

from slmops.workshop.jobs.job import Job
from slmops.workshop.training.packages import require_training_packages
from slmops.workshop.training.settings import RecoverSettings, read_settings


def run(job: Job) -> Mapping[str, Path]:
    """Recover; see `slmops.workshop.jobs.job`.

    Raises:
        InvalidInputError: as ``distill``, or the assignment does not fit the model.
    """
    require_training_packages()
    settings = read_settings(job, RecoverSettings)
    from slmops.workshop.training.distill_run import distill

    return distill(job, settings, kind="recover")
