"""The raw vector file, compared with plain numpy arrays."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from indexes import flip_byte

from indexer.config import VectorDtype
from indexer.errors import IndexCorruptError, StorageError
from indexer.storage.vectors import (
    HEADER_BYTES,
    VectorLayout,
    VectorReader,
    VectorWriter,
    create_vector_file,
    encode_rows,
)

DIM = 6


def units(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def layout_of(dtype: VectorDtype) -> VectorLayout:
    return VectorLayout(dim=DIM, dtype=dtype, index_uuid="ab" * 16)


def filled(directory: Path, n: int, dtype: VectorDtype = VectorDtype.F16) -> tuple[str, VectorLayout, np.ndarray]:
    layout = layout_of(dtype)
    name, rows = create_vector_file(directory, layout), encode_rows(units(n), layout)
    writer = VectorWriter(directory, name, layout)
    writer.append(0, rows)
    writer.close()
    return name, layout, rows


@pytest.mark.parametrize("dtype", VectorDtype)
def test_rows_come_back_bit_for_bit_in_any_order(dtype: VectorDtype, tmp_path: Path) -> None:
    name, layout, rows = filled(tmp_path, 50, dtype)
    slots = np.array([49, 0, 7, 7, 31], np.int64)
    with VectorReader(tmp_path, name, layout, 50) as reader:
        assert reader.rows(slots).dtype == np.float32
        np.testing.assert_array_equal(reader.rows(slots), rows[slots].astype(np.float32))
        blocks = list(reader.blocks(3, 50, size=10))
    assert [first for first, _ in blocks] == [3, 13, 23, 33, 43]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), rows[3:50].astype(np.float32))


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [(VectorDtype.F16, "<f2"), (VectorDtype.F32, "<f4")])
def test_numpy_alone_can_map_the_file(dtype: VectorDtype, numpy_dtype: str, tmp_path: Path) -> None:
    name, _, rows = filled(tmp_path, 20, dtype)
    mapped = np.memmap(tmp_path / name, dtype=numpy_dtype, mode="r", offset=4096, shape=(20, DIM))
    np.testing.assert_array_equal(mapped, rows)
    assert name.endswith(dtype.value)


def test_f16_rows_are_the_nearest_half_precision_numbers() -> None:
    vectors = units(30)
    np.testing.assert_array_equal(encode_rows(vectors, layout_of(VectorDtype.F16)), vectors.astype(np.float16))


@pytest.mark.parametrize(
    "bad",
    [
        np.full((1, DIM), np.nan, np.float32),
        np.full((1, DIM), np.inf, np.float32),
        np.zeros((1, DIM), np.float32),
        units(1) * 2,
        units(1, dim=DIM + 1),
        units(1)[0],
    ],
    ids=["nan", "inf", "zero", "long", "wrong dim", "one-dimensional"],
)
def test_a_row_that_is_no_unit_vector_is_never_written(bad: np.ndarray) -> None:
    with pytest.raises(StorageError):
        encode_rows(bad, layout_of(VectorDtype.F16))
    if bad.ndim == 2 and bad.shape[1] == DIM:
        with pytest.raises(StorageError, match="vector 2 "):
            encode_rows(np.concatenate((units(2), bad, units(1))), layout_of(VectorDtype.F16))


def test_the_checksum_of_an_append_is_that_of_its_rows_on_disk(tmp_path: Path) -> None:
    layout = layout_of(VectorDtype.F16)
    name = create_vector_file(tmp_path, layout)
    writer = VectorWriter(tmp_path, name, layout)
    first, second = encode_rows(units(5, 1), layout), encode_rows(units(4, 2), layout)
    assert writer.append(0, first) == zlib.crc32(first.tobytes())
    crc = writer.append(5, second)
    writer.close()
    with VectorReader(tmp_path, name, layout, 9) as reader:
        assert reader.checksum(5, 4) == crc == zlib.crc32(second.tobytes())
        assert reader.checksum(0, 5) != crc


def test_rows_that_no_commit_names_are_cut_off_and_committed_ones_kept(tmp_path: Path) -> None:
    name, layout, rows = filled(tmp_path, 10)
    writer = VectorWriter(tmp_path, name, layout)
    writer.recover(6)
    writer.close()
    assert (tmp_path / name).stat().st_size == layout.file_bytes(6)
    with VectorReader(tmp_path, name, layout, 6) as reader:
        np.testing.assert_array_equal(reader.rows(np.arange(6)), rows[:6].astype(np.float32))


def test_missing_committed_rows_are_damage_for_reader_and_writer(tmp_path: Path) -> None:
    name, layout, _ = filled(tmp_path, 10)
    writer = VectorWriter(tmp_path, name, layout)
    with pytest.raises(IndexCorruptError, match="restore a backup"):
        writer.recover(11)
    writer.close()
    with pytest.raises(IndexCorruptError, match="11 committed rows"):
        VectorReader(tmp_path, name, layout, 11)
    assert (tmp_path / name).stat().st_size == layout.file_bytes(10)


@pytest.mark.parametrize("offset", [0, 9, 17, 30, 50, HEADER_BYTES - 1])
def test_a_damaged_header_is_noticed(offset: int, tmp_path: Path) -> None:
    name, layout, _ = filled(tmp_path, 3)
    flip_byte(tmp_path / name, offset)
    with pytest.raises(IndexCorruptError, match="header"):
        VectorReader(tmp_path, name, layout, 3)


def test_the_file_of_another_index_or_shape_is_refused(tmp_path: Path) -> None:
    name, layout, _ = filled(tmp_path, 3)
    others = [
        VectorLayout(dim=DIM, dtype=layout.dtype, index_uuid="cd" * 16),
        VectorLayout(dim=DIM // 2, dtype=layout.dtype, index_uuid=layout.index_uuid),
        VectorLayout(dim=DIM, dtype=VectorDtype.F32, index_uuid=layout.index_uuid),
    ]
    for other in others:
        with pytest.raises(IndexCorruptError, match="header"):
            VectorReader(tmp_path, name, other, 1)


def test_a_missing_file_is_damage_for_the_writer_and_a_reason_to_look_again_for_the_reader(tmp_path: Path) -> None:
    name, layout, _ = filled(tmp_path, 3)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError):
        VectorReader(tmp_path, name, layout, 3)
    with pytest.raises(IndexCorruptError, match="missing"):
        VectorWriter(tmp_path, name, layout)


@pytest.mark.parametrize("function", ["pwrite", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_refused_append_can_be_made_again_at_the_same_slot(
    function: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, layout, rows = filled(tmp_path, 4)
    more = encode_rows(units(3, 9), layout)
    writer = VectorWriter(tmp_path, name, layout)

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, function, refuse)
        with pytest.raises(StorageError, match=os.strerror(code)):
            writer.append(4, more)
    writer.append(4, more)
    writer.close()
    with VectorReader(tmp_path, name, layout, 7) as reader:
        np.testing.assert_array_equal(reader.rows(np.arange(7)), np.concatenate((rows, more)).astype(np.float32))


@pytest.mark.parametrize("dtype", VectorDtype)
def test_rows_are_streamed_in_order_and_a_file_that_shrinks_is_damage(dtype: VectorDtype, tmp_path: Path) -> None:
    name, layout, rows = filled(tmp_path, 25, dtype)
    with VectorReader(tmp_path, name, layout, 25) as reader:
        blocks = list(reader.streamed(10))
        assert [first for first, _ in blocks] == [0, 10, 20]
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), rows.astype(np.float32))
        os.truncate(tmp_path / name, layout.file_bytes(24))
        with pytest.raises(IndexCorruptError, match="slots 20 to 24"):
            list(reader.streamed(10))


def test_an_empty_file_has_no_rows_and_no_blocks(tmp_path: Path) -> None:
    layout = layout_of(VectorDtype.F16)
    with VectorReader(tmp_path, create_vector_file(tmp_path, layout), layout, 0) as reader:
        assert reader.rows(np.empty(0, np.int64)).shape == (0, DIM)
        assert list(reader.blocks(0, 0)) == []


@pytest.mark.parametrize("what", ["another file", "a link"])
def test_a_writer_cuts_nothing_off_a_file_that_is_not_the_one(what: str, tmp_path: Path) -> None:
    name, layout, _ = filled(tmp_path, 10)
    if what == "a link":
        (tmp_path / "elsewhere").hardlink_to(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(bytes(50_000))
    before = (tmp_path / name).read_bytes()
    with pytest.raises(IndexCorruptError, match=r"hard links|another index"):
        VectorWriter(tmp_path, name, layout)
    assert (tmp_path / name).read_bytes() == before
