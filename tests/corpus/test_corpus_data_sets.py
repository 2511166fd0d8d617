"""Data sets of a caller, of a folder and of the hub are read split by split."""

import datetime
import json
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from corpora import read

from indexer.config import ReadOptions
from indexer.corpus import check_sources, data_sets, read_corpus
from indexer.documents import Document
from indexer.errors import CorpusError

PLAIN = ReadOptions()
ROWS = [{"id": f"d{n}", "text": f"text {n}", "n": n, "tags": ["a", None], "x": {"y": n / 2}} for n in range(2500)]


def as_rows(documents: list[Document]) -> list[dict[str, object]]:
    return [{"id": document.id, "text": document.text, **document.metadata} for document in documents]


def test_a_data_set_of_the_caller_gives_its_rows_and_types() -> None:
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    documents = read(table.with_format("numpy"))
    assert as_rows(documents) == ROWS
    assert documents[624].place.fraction == 0.25
    assert as_rows(read(table.to_iterable_dataset())) == ROWS
    assert read(table.to_iterable_dataset())[0].place.fraction is None


def test_a_dict_of_data_sets_is_read_split_by_split() -> None:
    import datasets

    splits = {name: datasets.Dataset.from_list(rows) for name, rows in (("train", ROWS[:3]), ("test", ROWS[3:4]))}
    documents = read(datasets.DatasetDict(splits))
    assert as_rows(documents) == ROWS[:4]
    assert [(d.place.source, d.place.line) for d in documents][2:] == [("python@train", 3), ("python@test", 1)]
    assert [d.place.fraction for d in documents] == [0.25, 0.5, 0.75, 1.0]


def test_a_saved_data_set_is_read_as_one_and_not_as_json_files(inside: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list([{**row, "when": datetime.date(2020, 1, 2)} for row in ROWS[:5]])
    expected = [{**row, "when": "2020-01-02"} for row in ROWS[:5]]
    table.save_to_disk("one")
    datasets.DatasetDict({"train": table, "test": table.select([4])}).save_to_disk("both")
    for source in ("one", Path("one"), "hf:one", "hf:./one", "hf:both@train"):
        assert as_rows(read(source)) == expected
        check_sources([source])
    assert as_rows(read("both")) == as_rows(read("hf:both")) == [*expected, expected[4]]
    assert [d.place.source for d in read("both")][-2:] == ["both@train", "both@test"]
    for source in ("hf:both@dev", "hf:one@dev"):
        with pytest.raises(CorpusError, match=r"no split 'dev'; the folder has (train, test|none)"):
            read(source)
    (inside / "one" / "state.json").write_text("{")
    with pytest.raises(CorpusError, match="one: cannot be opened"):
        read("one")


def test_a_saved_data_set_inside_a_directory_is_one_part_of_it(inside: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS[:2]).save_to_disk("corpus/saved")
    (inside / "corpus" / "a.txt").write_text("a")
    documents = read("corpus")
    assert [d.text for d in documents] == ["a", "text 0", "text 1"]
    assert documents[-1].place.source == "corpus/saved"


def test_a_folder_of_files_is_a_data_set_when_named_so(inside: Path) -> None:
    folder = inside / "set@home"
    folder.mkdir()
    for split, rows in (("train", ROWS[:3]), ("test", ROWS[3:4])):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    documents = read("hf:set@home")
    assert as_rows(documents) == ROWS[:4]
    assert [(d.place.source, d.place.line) for d in documents][2:] == [
        ("hf:set@home@train", 3),
        ("hf:set@home@test", 1),
    ]
    assert as_rows(read("hf:./set@home@test")) == ROWS[3:4]
    with closing(read_corpus(["hf:set@home@train"], PLAIN)) as some:
        next(some)
    with pytest.raises(CorpusError, match="hf:set@home@dev: cannot be opened: Bad split: dev"):
        read("hf:set@home@dev")


def test_a_broken_file_of_a_local_data_set_is_a_corpus_error_without_its_text(inside: Path) -> None:
    (inside / "set").mkdir()
    (inside / "set" / "train.jsonl").write_text('{"text": "a"}\n{"text": sesame}\n')
    with pytest.raises(CorpusError, match="hf:set") as caught:
        read("hf:set")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name", "config", "split"),
    [
        ("hf:squad", "squad", None, None),
        ("hf:org/set:en", "org/set", "en", None),
        ("hf:org/set@train", "org/set", None, "train"),
        ("hf:org/set:en@test", "org/set", "en", "test"),
    ],
)
def test_names_of_data_sets_are_taken_apart(source: str, name: str, config: str | None, split: str | None) -> None:
    found = data_sets.parse_name(source)
    assert (found.name, found.config, found.split, str(found)) == (name, config, split, source)


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    from huggingface_hub import constants

    def point(port: int) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(data_sets, "TIMEOUT_S", 0.2)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    return point


def test_a_silent_hub_is_an_error_within_seconds_that_says_what_works(hub_at: Callable[[int], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub_at(silent.getsockname()[1])
        for action in (lambda: check_sources(["hf:org/set:en"]), lambda: read("hf:org/set:en")):
            with pytest.raises(CorpusError, match=r"hf:org/set:en: .*hub cannot be reached .* download .*hf:FOLDER"):
                action()


def test_a_data_set_that_the_hub_does_not_have_is_an_error(hub_at: Callable[[int], None]) -> None:
    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        hub_at(server.server_address[1])
        with pytest.raises(CorpusError, match="neither a folder here nor a data set of the hub that you may read"):
            check_sources(["hf:org/missing"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("hf:", "give the name of a data set or a folder"),
        ("hf:@train", "give the name of a data set or a folder"),
        ("hf:./missing", "no such folder"),
        ("hf:/missing/set@train", "no such folder"),
        ("hf:empty", "the folder is empty"),
        ("hf:a b", "neither a folder here nor a name that the hub allows"),
    ],
)
def test_impossible_data_sets_are_refused_without_the_hub(source: str, reason: str, inside: Path) -> None:
    (inside / "empty").mkdir()
    with pytest.raises(CorpusError, match=reason):
        check_sources([source])
    with pytest.raises(CorpusError, match=reason):
        read_corpus([source], PLAIN)


def test_a_folder_with_a_script_is_a_corpus_error(inside: Path) -> None:
    (inside / "scripted").mkdir()
    (inside / "scripted" / "scripted.py").write_text("raise SystemExit('this must never run')\n")
    with pytest.raises(CorpusError, match="cannot be opened"):
        read("hf:scripted")
