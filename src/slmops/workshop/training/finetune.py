"""Job ``finetune``: a model learns from examples, all weights or low-rank adapters.

Inputs ``model`` (16-bit GGUF), ``data`` and, if given, ``validation`` (JSON Lines, see
`data`). Parameters are the fields of `FinetuneSettings`. Outputs ``model`` (16-bit GGUF,
when merged), ``log`` (`TrainingLog`) and with LoRA ``adapter`` (GGUF) and ``peft`` (a tar
of peft's two files).
"""

from collections.abc import Mapping
from pathlib import Path

from slmops.workshop.jobs.job import Job
from slmops.workshop.training.packages import require_training_packages
from slmops.workshop.training.settings import FinetuneSettings, read_settings


def run(job: Job) -> Mapping[str, Path]:
    """Fine-tune; see `slmops.workshop.jobs.job`.

    Raises:
        InvalidInputError: packages are missing, a parameter is wrong, the examples are
            not as they should be or leak between splits, or training diverged.
    """
    require_training_packages()
    settings = read_settings(job, FinetuneSettings)
    from slmops.workshop.training.finetune_run import finetune

    return finetune(job, settings)
