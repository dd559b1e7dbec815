"""Pictures of the sizes the scenarios need, made without an image library."""

from __future__ import annotations

import random
import struct
import zlib


def _png(width: int, height: int, rows: bytes, filler: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))]
    parts.append(chunk(b"IDAT", zlib.compress(rows, 9)))
    if filler:
        parts.append(chunk(b"fiLl", filler))  # an ancillary chunk: weight that every reader skips
    return b"".join([*parts, chunk(b"IEND", b"")])


def small() -> bytes:
    """A black 1024x1024 PNG of a few hundred bytes."""
    return _png(1024, 1024, b"\0" * (1024 // 8 + 1) * 1024)


def large(size: int) -> bytes:
    """The same picture weighing about ``size`` bytes, incompressible."""
    return _png(1024, 1024, b"\0" * (1024 // 8 + 1) * 1024, random.Random(1).randbytes(size))
