"""zstd with a window of the old file as dictionary (what ``--patch-from`` does)."""

import sys
from typing import Any

from slmops.domain.errors import InvalidInputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_LEVEL = 15
_LEAST_PREFIX = 8
_WINDOW_LOG = 23
"""8 MiB: more memory is refused when decompressing."""


def press(content: bytes, window: bytes = b"") -> bytes:
    """Compress; equal input gives equal bytes with one version of zstd."""
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: _LEVEL}
    if window:
        options |= {
            zstd.CompressionParameter.enable_long_distance_matching: 1,
            zstd.CompressionParameter.window_log: _WINDOW_LOG,
        }
    dictionary = _prefix(window)
    return zstd.compress(content, options=options, zstd_dict=dictionary)


def unpress(pressed: bytes, length: int, window: bytes = b"") -> bytes:
    """Decompress to exactly `length` bytes; no more are ever made.

    Raises:
        InvalidInputError: damaged, or of another length.
    """
    dictionary = _prefix(window)
    decompressor = zstd.ZstdDecompressor(
        zstd_dict=dictionary,
        options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG},
    )
    try:
        content = decompressor.decompress(pressed, max_length=length + 1)
    except (zstd.ZstdError, EOFError, ValueError) as error:
        raise InvalidInputError(f"delta: zstd: {error}") from None
    if len(content) != length or not decompressor.eof or decompressor.unused_data:
        raise InvalidInputError("delta: pressed bytes have another length")
    return content


def _prefix(window: bytes) -> Any:  # noqa: ANN401 - zstd's own pair
    if len(window) < _LEAST_PREFIX:
        return None
    return zstd.ZstdDict(window, is_raw=True).as_prefix
