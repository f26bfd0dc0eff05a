"""Which keys may sign this device's assignments.

At first the one that enrolment told; from then on those that the newest trusted root
metadata names, so that a stolen director's key is taken from it by whoever holds the
root, and by nobody else. They are kept beside the journal: opening an envelope must not
load the TUF client.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.errors import InvalidInputError, UntrustedError
from slmops.registry.durable import write_atomically
from slmops.registry.envelope import open_envelope
from slmops.wire import codec

DIRECTORS = "directors.json"
"""File in the state folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    keys: tuple[str, ...]


class Directors:
    """The trusted keys of the director, hex."""

    def __init__(self, enrolled: str, file: Path | None = None) -> None:
        """Take what is trusted.

        Args:
            enrolled: the key that enrolment told.
            file: keeps what the root names; None keeps it in memory only.
        """
        self._enrolled = enrolled
        self._file = file
        self._learnt: tuple[str, ...] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that count now."""
        if self._learnt is None:
            self._learnt = self._read()
        return self._learnt or (self._enrolled,)

    def learn(self, keys: Iterable[str]) -> bool:
        """Take the keys that a verified root names; none leaves what is known.

        Returns:
            Whether other keys count now.

        Raises:
            OSError: the disk refuses.
        """
        named = tuple(keys)
        if not named or named == self.keys:
            return False
        if self._file is not None:
            write_atomically(self._file, codec.encode_json(_Known(keys=named)))
        self._learnt = named
        return True

    def open(self, envelope: str) -> bytes:
        """Return the payload of an envelope that one of the keys signed.

        Raises:
            UntrustedError: none did, or it is malformed.
        """
        problem = UntrustedError("envelope is not signed by the director")
        for key in self.keys:
            try:
                return open_envelope(envelope, key)
            except UntrustedError as error:
                problem = error
        raise problem

    def _read(self) -> tuple[str, ...]:
        # What a power cut left of the file is forgotten: the next check of an offer
        # learns the keys anew, and nothing is installed without one.
        try:
            raw = b"" if self._file is None else self._file.read_bytes()
            return codec.decode_json(raw, _Known, where=DIRECTORS).keys
        except (OSError, InvalidInputError):
            return ()
