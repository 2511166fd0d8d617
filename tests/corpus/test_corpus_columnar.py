"""Parquet and Arrow files give their rows, with JSON types or an error."""

import datetime
import gc
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from corpora import read

from indexer.config import ReadOptions
from indexer.corpus import read_corpus
from indexer.documents import Document
from indexer.errors import CorpusError

PLAIN = ReadOptions()
ROWS = [{"id": f"d{n}", "text": f"text {n}", "n": n, "tags": ["a", None], "x": {"y": n / 2}} for n in range(2500)]


def as_rows(documents: list[Document]) -> list[dict[str, object]]:
    return [{"id": document.id, "text": document.text, **document.metadata} for document in documents]


def write_parquet(path: Path, table: object) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path, row_group_size=700)


def write_arrow_file(path: Path, table: object) -> None:
    import pyarrow.ipc

    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1800)


def write_arrow_stream(path: Path, table: object) -> None:
    import pyarrow.ipc

    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1800)


COLUMNAR = [
    pytest.param("a.parquet", write_parquet, id="parquet"),
    pytest.param("a.arrow", write_arrow_file, id="arrow file"),
    pytest.param("a.arrow", write_arrow_stream, id="arrow stream"),
]


@pytest.mark.parametrize(("name", "write"), COLUMNAR)
def test_columnar_files_give_their_rows(name: str, write: Callable[[Path, object], None], tmp_path: Path) -> None:
    import pyarrow

    path = tmp_path / name
    write(path, pyarrow.Table.from_pylist(ROWS))
    documents = read(path)
    assert as_rows(documents) == ROWS
    assert [document.place.line for document in documents] == list(range(1, 2501))
    fractions = [document.place.fraction or 0 for document in documents]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] <= 1.0
    with closing(read_corpus([path], PLAIN)) as some:
        next(some)
    gc.collect()


@pytest.mark.parametrize(("name", "write"), COLUMNAR)
def test_columnar_types_become_json_types_or_an_error(
    name: str, write: Callable[[Path, object], None], tmp_path: Path
) -> None:
    import pyarrow as pa

    path = tmp_path / name
    moment = datetime.datetime(2021, 2, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)
    columns = {
        "text": pa.array(["a"]).dictionary_encode(),
        "date": pa.array([moment.date()]),
        "time": pa.array([moment.time()]),
        "utc": pa.array([moment], pa.timestamp("us", "UTC")),
        "naive": pa.array([moment.replace(tzinfo=None)], pa.timestamp("ns")),
        "inner": pa.array([[{"d": moment.date()}]]),
        "decimal": pa.array([Decimal("1.50")]),
        "small": pa.array([1], pa.uint8()),
        "bool": pa.array([True]),
        "float": pa.array([0.5], pa.float32()),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "none": pa.nulls(1),
    }
    write(path, pa.table(columns))
    (document,) = read(path)
    assert document.metadata == {
        "date": "2021-02-03",
        "time": "04:05:06.000007",
        "utc": "2021-02-03T04:05:06.000007+00:00",
        "naive": "2021-02-03T04:05:06.000007",
        "inner": [{"d": "2021-02-03"}],
        "decimal": "1.50",
        "small": 1,
        "bool": True,
        "float": 0.5,
        "map": {"k": 1},
        "none": None,
    }


@pytest.mark.parametrize(("name", "write"), COLUMNAR)
def test_columnar_rows_without_a_json_form_are_rejected_alone(
    name: str, write: Callable[[Path, object], None], tmp_path: Path
) -> None:
    import pyarrow as pa

    path = tmp_path / name
    not_utf8 = pa.Array.from_buffers(pa.string(), 1, [None, *pa.array([b"\xff"]).buffers()[1:]])
    columns = {
        "text": pa.array(["a", "b", "c", "d", "e"]),
        "blob": pa.array([None, b"x", None, None, None]),
        "number": pa.array([1.0, None, float("nan"), None, 2.0]),
        "word": pa.concat_arrays([pa.array(["x", "x", "x"]), not_utf8, pa.array(["y"])]),
    }
    write(path, pa.table(columns))
    rejects: list[CorpusError] = []
    documents = list(read_corpus([path], PLAIN, on_reject=rejects.append))
    assert [(document.text, document.place.line) for document in documents] == [("a", 1), ("e", 5)]
    by_line = {error.line: error.reason for error in rejects}
    assert list(by_line) == [2, 3, 4] or sorted(by_line) == [2, 3, 4]
    assert "field 'blob' holds a value of type bytes" in by_line[2]
    assert "field 'number' holds nan" in by_line[3]
    assert "field 'word' has no form in Python (UnicodeDecodeError)" in by_line[4]
    with pytest.raises(CorpusError, match=r":2: field 'blob'"):
        list(read_corpus([path], PLAIN))


@pytest.mark.parametrize(("name", "write"), COLUMNAR)
def test_two_columns_of_one_name_are_refused(name: str, write: Callable[[Path, object], None], tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / name
    write(path, pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]))
    with pytest.raises(CorpusError, match="two columns are named 'text'"):
        read(path)


def test_damage_inside_a_parquet_file_says_how_far_it_was_good(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{n * 7919 % 10007} words" for n in range(3000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=1000, write_page_checksum=True, use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(byte ^ 0xFF for byte in content[middle : middle + 40])
    path.write_bytes(content)
    found: list[Document] = []
    with pytest.raises(CorpusError, match="cannot be read after record 1000") as caught:
        found.extend(read_corpus([path], PLAIN, on_reject=lambda error: None))
    assert caught.value.line == 1001
