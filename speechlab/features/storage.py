"""Stored features: Kaldi's binary archives, written and read through lhotse.

An ``.ark`` holds many float32 matrices one after another, without loss. Kaldi, ESPnet and kaldiio read it as it is (a
line of their scp files is ``utterance file.ark:offset``). One file holds 500 utterances, where lhotse's ``numpy_files``
makes one file per utterance: AISHELL-1 is 300 files (17 GB) and not 150,000. Importing this module registers reader and
writer with lhotse as the storage type ``kaldi_ark``; lhotse's own type ``kaldiio`` needs another package to read the
same file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from lhotse.features.io import FeaturesReader, FeaturesWriter, register_reader, register_writer

from speechlab.errors import UserError

# "\0B" (binary), "FM " (float matrix), then rows and columns, each after its own width in bytes.
_HEADER = struct.Struct("<2s3sbibi")


@register_writer
class ArkWriter(FeaturesWriter):
    """Appends matrices (rows, columns) to a new file; the key of each is its offset in the file.

    Args:
        storage_path: the file to write.
        named: the path that manifests shall name, if the file gets another name when it is whole.
    """

    name = "kaldi_ark"

    def __init__(self, storage_path: str | Path, named: str | Path | None = None, **_: object):
        self._named = str(storage_path if named is None else named)
        self._file: BinaryIO = open(storage_path, "wb", buffering=1 << 20)
        self._offset = 0

    @property
    def storage_path(self) -> str:
        return self._named

    def write(self, key: str, value: np.ndarray) -> str:
        """Append ``value`` as float32 under the utterance's name ``key``; returns its offset, by which it is read."""
        head = "".join(key.split()).encode() + b" "  # a space ends the name in an archive
        rows, columns = value.shape
        start = self._offset + len(head)
        self._file.write(head + _HEADER.pack(b"\0B", b"FM ", 4, rows, 4, columns))
        self._file.write(np.ascontiguousarray(value, dtype="<f4").data)
        self._offset = start + _HEADER.size + 4 * rows * columns
        return str(start)

    def close(self) -> None:
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


@register_reader
class ArkReader(FeaturesReader):
    """Reads a matrix, or some of its rows, by its offset.

    It keeps no file open: opening one takes microseconds, forked loaders share no file position, and thousands of
    archives do not need thousands of open files.
    """

    name = "kaldi_ark"

    def __init__(self, storage_path: str | Path, **_: object):
        self._path = storage_path

    def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> np.ndarray:
        """Rows from ``left_offset_frames`` to ``right_offset_frames`` (None: the last) as float32 (rows, columns)."""
        try:
            with open(self._path, "rb", buffering=0) as file:
                file.seek(int(key))
                mark, kind, _, rows, _, columns = _HEADER.unpack(file.read(_HEADER.size))
                first, last, _ = slice(left_offset_frames, right_offset_frames).indices(rows)
                if mark + kind != b"\0BFM ":
                    raise ValueError
                values = np.empty((max(0, last - first), columns), dtype="<f4")
                file.seek(4 * columns * first, 1)
                if values.size and file.readinto(values.data.cast("B")) != values.nbytes:
                    raise ValueError
        except FileNotFoundError:
            raise UserError(f"no stored features {self._path}: make them again (stage 2)") from None
        except (struct.error, ValueError):
            raise UserError(f"{self._path} has no whole matrix at {key}: make the features again (stage 2)") from None
        return values
