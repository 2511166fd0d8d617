"""Text files and directories give the documents that they hold, lazily and with true places."""

import gc
import gzip
import json
import os
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from corpora import read

from indexer.config import ReadOptions
from indexer.corpus import check_sources, read_corpus
from indexer.documents import Document
from indexer.errors import CorpusError, UsageError

PLAIN = ReadOptions()


def as_rows(documents: list[Document]) -> list[dict[str, object]]:
    return [{"id": document.id, "text": document.text, **document.metadata} for document in documents]


def test_json_lines_split_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = "a\u2028b\u0085c\u2029d\x1ce\x0bf"
    rows = [json.dumps({"id": n, "text": text}, ensure_ascii=False) for n in range(3)]
    path.write_bytes(b"\xef\xbb\xbf" + (rows[0] + "\r\n\n  \r\n" + rows[1] + "\n" + rows[2]).encode())
    documents = read(path)
    assert [(document.id, document.text) for document in documents] == [(str(n), text) for n in range(3)]
    assert [document.place.line for document in documents] == [1, 4, 5]


def test_fractions_follow_the_bytes_of_all_sources(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.txt")]
    paths[0].write_bytes(b'{"text": "aaaa"}\n' * 3)
    paths[1].write_bytes(b"x" * 48 + b"\n")
    fractions = [document.place.fraction for document in read_corpus(paths, PLAIN)]
    assert fractions == pytest.approx([0.17, 0.34, 0.51, 1.0])
    assert [document.place.fraction for document in read_corpus([*paths, [{"text": "a"}]], PLAIN)] == [None] * 5


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_big_file_is_read_as_it_is_asked_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    rows = [json.dumps({"id": n, "text": "some words " * 20}) for n in range(20_000)]
    path.write_text("[" + ",\n".join(rows) + "]" if suffix == ".json" else "\n".join(rows))
    before = open_files()
    with closing(read_corpus([path], PLAIN)) as documents:
        assert open_files() == before
        last = list(islice(documents, 10))[-1]
        assert (last.place.fraction or 1) < 0.001
        assert path in open_files()
    assert path not in open_files()
    gc.collect()


def open_files() -> set[Path]:
    """Return the files that this process has open, where the system tells."""
    table = Path("/proc/self/fd")
    if not table.is_dir():
        pytest.skip("needs /proc")
    return {entry.readlink() for entry in table.iterdir() if os.path.lexists(entry)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"id": "1", "text": "a"}\n{"id": "2", "text": "b"}'),
        ("a.json", '\n[{"id": "1", "text": "a"},{"id": "2", "text": "b"}]\n'),
        ("a.csv", 'text,id\r\na,1\r\n\r\n"b",2'),
        ("a.tsv", "text\tid\na\t1\nb\t2\n"),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_formats_read_alike_plain_and_compressed(name: str, content: str, mark: str, tmp_path: Path) -> None:
    plain, zipped, upper = tmp_path / name, tmp_path / f"{name}.gz", tmp_path / name.upper()
    data = (mark + content).encode()
    plain.write_bytes(data)
    upper.write_bytes(data)
    zipped.write_bytes(gzip.compress(data[:9]) + gzip.compress(data[9:]))
    for path in (plain, zipped, upper):
        documents = read(path)
        assert as_rows(documents) == [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]
        assert documents[0].place.source == str(path)


def test_one_object_is_a_json_file_and_an_empty_list_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n {"id": 1,\n "text": "a"}')
    (document,) = read(path)
    assert (document.id, document.place.line) == ("1", 2)
    path.write_text(" [ ] ")
    assert read(path) == []


def test_csv_keeps_line_ends_in_quotes_and_counts_physical_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\r\n1,"a\r\nb ""c"", \\n"\r\n2,\\"d\n3," e "\n4,\n')
    skipped = []
    found = list(read_corpus([path], PLAIN, on_skip=lambda place, *_: skipped.append(place.line)))
    assert [(d.id, d.text, d.place.line) for d in found] == [
        ("1", 'a\r\nb "c", \\n', 2),
        ("2", '\\"d', 4),
        ("3", " e ", 5),
    ]
    assert skipped == [6]


def test_csv_fields_may_be_longer_than_the_csv_module_allows_by_default(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 300_000 + "\n")
    (document,) = read(path)
    assert len(document.text) == 300_000


def test_columns_name_the_fields_of_a_file_without_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1,a\n2,b\n3\n")
    rejects: list[CorpusError] = []
    options = ReadOptions(columns=("id", "text"))
    found = list(read_corpus([path], options, on_reject=rejects.append))
    assert [document.id for document in found] == ["1", "2"]
    assert [str(error) for error in rejects] == [f"{path}:3: 1 field where --columns names 2"]


def test_columns_are_refused_for_other_sources(tmp_path: Path) -> None:
    for name in ("a.csv", "b.txt"):
        (tmp_path / name).write_text("a\n")
    options = ReadOptions(columns=("text",))
    for source in (tmp_path / "b.txt", tmp_path, [{"text": "a"}], "-"):
        with pytest.raises(UsageError, match=r"--columns names the columns of .csv and .tsv files"):
            read_corpus([source], options)


def test_a_text_file_has_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a\r\n\n b\u2028c \nd".encode())
    skipped = []
    found = list(read_corpus([path], PLAIN, on_skip=lambda place, reason, _: skipped.append((place.line, reason))))
    assert [(d.text, d.place.line) for d in found] == [("a", 1), (" b\u2028c ", 3), ("d", 4)]
    assert skipped == [(2, "empty_text")]


def test_a_markdown_file_is_one_document_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_bytes(b"# B\r\n\ntext\n")
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(b"# C"))
    assert as_rows(read(tmp_path)) == [
        {"id": "c.md.gz", "text": "# C"},
        {"id": "sub/b.md", "text": "# B\r\n\ntext\n"},
    ]
    assert as_rows(read(tmp_path / "sub" / "b.md")) == [{"id": "b.md", "text": "# B\r\n\ntext\n"}]


def test_a_directory_is_read_in_order_without_hidden_and_unknown_files(inside: Path) -> None:
    for name in ("b/z.txt", "b/a.txt", "a.txt", "c.TXT", ".hidden.txt", ".git/x.txt", "notes.docx", "b/.x/y.txt"):
        path = inside / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (inside / "corpus" / "b" / "up").symlink_to(inside / "corpus", target_is_directory=True)
    (inside / "other").mkdir()
    (inside / "other" / "o.txt").write_text("other")
    (inside / "corpus" / "link").symlink_to(inside / "other", target_is_directory=True)
    documents = read("corpus")
    assert [d.text for d in documents] == ["a.txt", "b/a.txt", "b/z.txt", "c.TXT", "other"]
    assert [d.place.source for d in documents][:2] == ["corpus/a.txt", "corpus/b/a.txt"]
    fractions = [d.place.fraction or 0 for d in documents]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize("name", ["corpus", "corpus/f.md"])
def test_a_pipe_among_files_is_refused_and_not_waited_for(name: str, inside: Path) -> None:
    (inside / "corpus").mkdir(exist_ok=True)
    os.mkfifo(inside / "corpus" / "f.md")
    with pytest.raises(CorpusError, match=r"f\.md: not a regular file"):
        check_sources([str(inside / name)])
