"""Bytes of an archive that belong to none of its files: no list names them, no sum covers them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import IO
from zipfile import ZipFile

from fptq_onnx.errors import FptqError

# A compressed piece. zlib copies what it has not yet used of it, so it is small.
_PACKED = 1 << 14
_PIECE = 1 << 20

# Of a zip file: its end without a comment, a member's header, and what may follow a member's data.
_ZIP_END = 22
_ZIP_HEADER = struct.Struct("<26xHH")
_ZIP_DESCRIPTOR = 24
_HAS_DESCRIPTOR = 8


class GzipContent:
    """What a .gz file holds, for tarfile: one stream that ends where the file ends."""

    def __init__(self, packed: IO[bytes], take: Callable[[int], None]) -> None:
        """Begin.

        Args:
            packed: the .gz file.
            take: is called with the number of bytes of each piece that comes out.
        """
        self._packed, self._take = packed, take
        self._stream = zlib.decompressobj(wbits=31)
        self._read = self._last = 0

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end.

        Raises:
            EOFError: the file is cut short.
            zlib.error: it is damaged; sum and size at its end are compared, too.
        """
        piece = b""
        while not piece and not self._stream.eof:
            packed = self._stream.unconsumed_tail or self._packed.read(_PACKED)
            if not packed:
                raise EOFError("it ends before its time")
            piece = self._stream.decompress(packed, size)
        self._take(len(piece))
        # gzip files end in zeros: a tar file is filled up with them.
        if used := len(piece.rstrip(b"\0")):
            self._last = self._read + used
        self._read += len(piece)
        return piece

    def finish(self, end: int) -> None:
        """Read the rest.

        Args:
            end: where the tar file's last member ends; zeros may follow.

        Raises:
            FptqError: anything else follows, there or after the stream.
            EOFError, zlib.error: see `read`.
        """
        while self.read(_PIECE):
            pass
        if self._last > end:
            raise _stray("after its last file")
        if self._stream.unused_data or self._packed.read(1):
            raise _stray("after the end of its gzip stream")


def check_zip(archive: ZipFile, packed: IO[bytes]) -> None:
    """Refuse a zip file with bytes before, between or after its members and its directory.

    Args:
        archive: its directory.
        packed: the file.

    Raises:
        FptqError: there are some.
    """
    packed.seek(-_ZIP_END, 2)
    end = packed.read()
    if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":
        raise _stray("after its end")
    place, spare = 0, 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if not place <= entry.header_offset <= place + spare:
            raise _stray(f"before {entry.filename!r}")
        packed.seek(entry.header_offset)
        header = packed.read(_ZIP_HEADER.size)
        if len(header) < _ZIP_HEADER.size:
            raise EOFError("it ends before its time")
        place = packed.tell() + sum(_ZIP_HEADER.unpack(header)) + entry.compress_size
        spare = _ZIP_DESCRIPTOR if entry.flag_bits & _HAS_DESCRIPTOR else 0
    if not place <= archive.start_dir <= place + spare:
        raise _stray("before its directory")


def _stray(where: str) -> FptqError:
    return FptqError(
        f"refused: the archive has bytes {where}, which no list names: get the package again"
    )
