"""Zstandard with our parameters: Python's own module, and its backport before Python 3.14."""

from __future__ import annotations

import sys
from typing import IO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Content that comes again within this distance (128 MiB) is stored once, such as weights that the
# graph and several engines have. Larger windows need an option in `zstd` and `tar`, and memory of
# that size to unpack.
_WINDOW_LOG = 27
# With which a frame begins (RFC 8878, section 3.1.1).
MAGIC = b"\x28\xb5\x2f\xfd"

Error = zstd.ZstdError


def compressed(file: IO[bytes]) -> zstd.ZstdFile:
    """Returns a file that writes one frame with a checksum to `file`.

    The same content gives the same bytes, with the same version of libzstd.
    """
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: 3,
        zstd.CompressionParameter.window_log: _WINDOW_LOG,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    return zstd.ZstdFile(file, "w", options=options)


def decompressor() -> zstd.ZstdDecompressor:
    """Returns a decompressor of one frame whose window is not larger than ours."""
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
