"""llama.cpp through the prebuilt wheels of `xllamacpp`: its own HTTP server, in the child.

The artefact is untrusted: it is loaded in the worker child only, with the chat template
the signed release pins. The version is pinned exactly, because the scorer
(`slmops.runtimes.llamacpp_scorer`) reads C structures whose layout drifts.
"""

import importlib.util
import signal
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes.base import Scorer, WorkerSettings
from slmops.runtimes.child import announce_ready
from slmops.runtimes.continuations import Continuations
from slmops.runtimes.llamacpp_cache import cache_types, needs_flash_attention

if TYPE_CHECKING:
    import xllamacpp

MAGIC = b"GGUF"
_PACKAGE = "xllamacpp"
_ERRORS_ONLY = 1
_BATCH_TOKENS = 256
_LARGEST_CONTEXT = 1 << 20


class LlamaCppRuntime:
    """Serves GGUF files on the CPU."""

    name = "llamacpp"
    formats = ("gguf",)

    def version(self) -> str:
        """Return the wheel's version.

        Raises:
            UnavailableError: it is not installed.
        """
        if importlib.util.find_spec(_PACKAGE) is None:
            raise UnavailableError(
                "runtime llamacpp is not installed:"
                " in slmops' source folder, pip install '.[llamacpp]'"
            )
        return metadata.version(_PACKAGE)

    def serve(self, artefact: Path, settings: WorkerSettings) -> None:
        """Serve until SIGTERM; see `slmops.runtimes.base.Runtime.serve`."""
        self.version()
        check_magic(artefact)
        if settings.draft is not None:
            check_magic(Path(settings.draft))
        # Blocked before the server starts its threads, which inherit the mask: then
        # only sigwait below sees it, and no handler has to wait for the interpreter.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        server = _start_server(artefact, settings)
        announce_ready(int(server.listening_address.rpartition(":")[2]))
        signal.sigwait({signal.SIGTERM})

    def open_scorer(self, artefact: Path, settings: WorkerSettings) -> Scorer:
        """Load for scoring in this process; a malformed artefact may abort it."""
        from slmops.runtimes.llamacpp_scorer import LlamaCppScorer

        self.version()
        check_magic(artefact)
        return LlamaCppScorer(artefact, settings)

    def open_continuations(
        self, artefact: Path, settings: WorkerSettings
    ) -> Continuations:
        """Load for ranking; see `slmops.runtimes.continuations.Continuations`."""
        from slmops.runtimes.llamacpp_continuations import LlamaCppContinuations

        self.version()
        check_magic(artefact)
        return LlamaCppContinuations(artefact, settings)


def check_magic(artefact: Path) -> None:
    """Refuse what is not a GGUF file at all, before an engine sees it.

    Raises:
        InvalidInputError: it does not begin like one.
    """
    try:
        with artefact.open("rb") as file:
            begin = file.read(len(MAGIC))
    except OSError as error:
        raise InvalidInputError(
            f"{artefact}: cannot be read: {error.strerror}"
        ) from None
    if begin != MAGIC:
        raise InvalidInputError(
            f"{artefact.name}: must begin with {MAGIC!r}, got {begin!r}"
        )


def _start_server(artefact: Path, settings: WorkerSettings) -> Any:  # noqa: ANN401 - untyped
    import xllamacpp

    try:
        return xllamacpp.Server(
            _parameters(xllamacpp.CommonParams(), artefact, settings)
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"{artefact.name}: llama.cpp refused it: {error}"
        ) from None


def _parameters(
    parameters: "xllamacpp.CommonParams", artefact: Path, settings: WorkerSettings
) -> "xllamacpp.CommonParams":

    parameters.model.path = str(artefact)
    parameters.model_alias = {artefact.name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_parallel = settings.parallel
    parameters.n_ctx = min(
        settings.context_tokens * settings.parallel, _LARGEST_CONTEXT
    )
    parameters.n_predict = settings.context_tokens
    for processors in (parameters.cpuparams, parameters.cpuparams_batch):
        processors.n_threads = settings.threads
    # One for each request that runs, and some to refuse or check health meanwhile.
    parameters.n_threads_http = settings.parallel + 3
    if settings.chat_template is not None:
        parameters.chat_template = settings.chat_template
    _cache_as(parameters, settings.kv_cache)
    if settings.draft is not None:
        _draft_with(parameters, settings)
    _keep_private(parameters, settings)
    _keep_small(parameters)
    return parameters


def _cache_as(parameters: "xllamacpp.CommonParams", kv_cache: str) -> None:
    """Set the types of keys and values, and flash attention where those ask for it."""
    import xllamacpp

    keys, values = cache_types(kv_cache)
    parameters.cache_type_k = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{keys}")
    parameters.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{values}")
    attention = xllamacpp.llama_flash_attn_type
    # On the CPU, llama.cpp's flash attention gives a token other logits, by up to a nat,
    # depending on how many are computed with it: answers would depend on what is cached.
    # It is on only where llama.cpp cannot do without: for values of few bits.
    parameters.flash_attn_type = (
        attention.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if needs_flash_attention(kv_cache)
        else attention.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )


def _draft_with(parameters: "xllamacpp.CommonParams", settings: WorkerSettings) -> None:
    """Let a smaller model draft tokens; what is answered is checked by the large one."""
    import xllamacpp

    draft = parameters.speculative.draft
    draft.mparams.path = settings.draft
    draft.n_max = settings.draft_tokens
    draft.n_gpu_layers = 0
    for processors in (draft.cpuparams, draft.cpuparams_batch):
        processors.n_threads = settings.threads
    parameters.speculative.types = [
        xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
    ]


def _keep_private(
    parameters: "xllamacpp.CommonParams", settings: WorkerSettings
) -> None:
    """Show prompts to nobody: a key, no log, no slot listing, no other origin's page."""
    parameters.verbosity = _ERRORS_ONLY
    parameters.ui = False
    if settings.api_key is not None:
        parameters.api_keys = [settings.api_key]
    parameters.endpoint_slots = False
    parameters.endpoint_props = False
    parameters.cors_origins = ""
    parameters.cors_origins_explicit = True
    parameters.cors_credentials = False


def _keep_small(parameters: "xllamacpp.CommonParams") -> None:
    """Use what was asked for, not what the machine has."""
    parameters.n_gpu_layers = 0
    parameters.fit_params = False
    # Half the default scratch memory at the same prefill speed.
    parameters.n_ubatch = _BATCH_TOKENS
    # The default keeps up to 8 GiB of old requests' states.
    parameters.cache_ram_mib = 0
    parameters.n_ctx_checkpoints = 0
    parameters.ctx_shift = False
