"""docs/errors.md is true: each row of its catalogue happens as it says, and its table of classes is complete."""

from __future__ import annotations

import gzip
import inspect
import json
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest
from indexes import flip_byte, only, sql
from models import build_model

from indexer import build_index, errors
from indexer.storage.lock import writer_lock
from search.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
Command = list[object]
RECORDS = [
    {"id": "a", "text": "a cat on the mat", "year": 2020, "kind": "cat"},
    {"id": "b", "text": "a storm over the bank", "year": 2021, "kind": "storm"},
    {"id": "c", "text": "the card works abroad", "year": 2022, "kind": "card"},
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
GOOD = b'{"id": "a", "text": "a cat"}\n'
QUERIES = b'{"_id": "q", "text": "a cat"}\n'
SWAPPED_CANARIES = "UPDATE canaries SET vector = zeroblob(length(vector))"
UNSEALED = "DELETE FROM meta WHERE key = 'seal'"


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the tables under a heading of the page, without their heads."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in table]
    return [row for row in cells if not set(row[0]) <= {"-"} and row[0] not in {"class", "what is wrong"}]


CATALOGUE = {row[0]: row for row in rows("What can be wrong")}


@dataclass
class World:
    """What a case is made of: a folder of its own, a tiny model, a copy of a small index; methods return commands."""

    folder: Path
    model: Path
    sound: Path
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def new(self) -> Path:
        return self.folder / "new.index"

    def file(self, content: bytes, name: str = "corpus.jsonl") -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def build(self, content: bytes, *options: object, name: str = "corpus.jsonl") -> Command:
        return ["build", self.file(content, name), "--out", self.new, "--model", self.model, *options]

    def index(self) -> Path:
        return shutil.copytree(self.sound, self.folder / "my.index")

    def again(self, *options: object) -> Command:
        return ["build", self.file(LINES), "--out", self.index(), *options]

    def query(self, *options: object) -> Command:
        return ["query", self.index(), "a cat", *options]

    def eval(self, queries: bytes, qrels: bytes) -> Command:
        asked, judged = self.file(queries, "queries.jsonl"), self.file(qrels, "qrels.tsv")
        return ["eval", self.index(), "--queries", asked, "--qrels", judged]

    def after_sql(self, statement: str, command: Command, *more: str) -> Command:
        for each in (statement, *more):
            sql(self.folder / "my.index", each)
        return command

    def after_cut(self, pattern: str, n_bytes: int, command: Command) -> Command:
        path = only(self.folder / "my.index", pattern)
        path.write_bytes(path.read_bytes()[:n_bytes])
        return command

    def within(self, context: AbstractContextManager[object], command: Command) -> Command:
        self.stack.enter_context(context)
        return command

    def with_model(self, change: Callable[[Path], object]) -> Command:
        change(model := shutil.copytree(self.model, self.folder / "model"))
        return ["build", self.file(LINES), "--out", self.new, "--model", model]

    def with_changed_weights(self) -> Command:
        model = shutil.copytree(self.model, self.folder / "model")
        build_index(self.file(LINES), self.new, model=str(model))
        build_model(model, seed=1)
        return ["query", self.new, "a cat"]

    def damaged(self) -> Path:
        flip_byte(only(self.index(), "vectors-*"), -1)
        return self.folder / "my.index"

    def hard_linked(self) -> Path:
        index = self.index()
        (vectors,) = index.glob("vectors-*")
        (self.folder / "elsewhere").hardlink_to(vectors)
        return index

    def linked(self) -> Path:
        database = self.index() / "index.db"
        database.rename(self.folder / "elsewhere")
        database.symlink_to(self.folder / "elsewhere")
        return database.parent

    def pruning(self) -> Command:
        build_index(self.file(LINES), self.new, model=str(self.model))
        return self.build(GOOD, "--prune")

    def cut_off(self) -> Command:
        self.new.mkdir()
        return ["info", self.file(b"", "new.index/index.db").parent]


@contextmanager
def disk_of(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def nan_weights(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] *= float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def other_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


CASES: dict[str, Callable[[World], Command]] = {
    # Sources and records.
    "a source that is not there": lambda w: ["build", "nowhere.jsonl", "--out", w.new],
    "a file of another kind": lambda w: w.build(b"%PDF", name="corpus.pdf"),
    "a folder without a file that can be read": lambda w: ["build", w.folder, "--out", w.new],
    "a line that is not JSON": lambda w: w.build(GOOD + b'{"text": }\n'),
    "a record that is not an object": lambda w: w.build(GOOD + b'["a cat"]\n'),
    "a record without the text field": lambda w: w.build(GOOD + b'{"id": "b", "body": "a dog"}\n'),
    "a text that is not a string": lambda w: w.build(GOOD + b'{"id": "b", "text": 7}\n'),
    "a record without the id field that was asked for": lambda w: w.build(GOOD, "--id-field", "key"),
    "an id that is neither string nor integer": lambda w: w.build(b'{"id": 1.5, "text": "a cat"}\n'),
    "one id for two records that differ": lambda w: w.build(GOOD + b'{"id": "a", "text": "a dog"}\n'),
    "a key twice in one object": lambda w: w.build(b'{"text": "a cat", "year": 1, "year": 2}\n'),
    "NaN or Infinity": lambda w: w.build(b'{"text": "a cat", "year": NaN}\n'),
    "half of a surrogate pair": lambda w: w.build(rb'{"text": "a cat \ud800"}'),
    "a NUL character": lambda w: w.build(rb'{"text": "a cat \u0000"}'),
    "bytes that are not UTF-8": lambda w: w.build(GOOD + b'{"text": "caf\xe9"}\n'),
    "a file in UTF-16": lambda w: w.build(GOOD.decode().encode("utf-16")),
    "a gzip file that was cut off": lambda w: w.build(gzip.compress(GOOD * 99)[:-9], name="corpus.jsonl.gz"),
    "a gzip file without .gz in its name": lambda w: w.build(gzip.compress(GOOD)),
    "a CSV row of another length than the header": lambda w: w.build(b"id,text\na\n", name="corpus.csv"),
    "a CSV header that names a column twice": lambda w: w.build(b"text,text\na,b\n", name="corpus.csv"),
    "a CSV quote that is never closed": lambda w: w.build(b'id,text\na,"a cat\n', name="corpus.csv"),
    "a statement that SQLite refuses": lambda w: [
        *("build", f"sqlite:{w.index() / 'index.db'}?sql=SELECT x FROM y", "--out", w.new)
    ],
    "more bad records than --max-errors": lambda w: w.build(GOOD + b"1\n2\n", "--on-error=skip", "--max-errors=1"),
    "bad records with --on-error skip": lambda w: w.build(GOOD + b"1\n2\n", "--on-error=skip"),
    "a changed record with --if-exists error": lambda w: ["add", w.index(), w.file(GOOD), "--if-exists=error"],
    "a query file whose line has no id": lambda w: w.eval(b'{"text": "a cat"}\n', b"q a 1\n"),
    "a judgement with too few columns": lambda w: w.eval(QUERIES, b"q a\n"),
    # Arguments.
    "a required option left out": lambda w: ["build", w.file(GOOD)],
    "a value that is not one of the choices": lambda w: w.build(GOOD, "--pooling", "max"),
    "a maximum length below 3": lambda w: w.build(GOOD, "--max-length", 2),
    "a maximum length beyond the model": lambda w: w.build(GOOD, "--max-length", 1000),
    "an overlap without --chunk-tokens": lambda w: w.build(GOOD, "--chunk-overlap", 8),
    "an overlap of more than half": lambda w: w.build(GOOD, "--chunk-tokens", 16, "--chunk-overlap", 9),
    "passages longer than the model reads": lambda w: w.build(GOOD, "--chunk-tokens", 1000),
    "--columns for something else than CSV or TSV": lambda w: w.build(GOOD, "--columns", "id,text"),
    "a device that is not there": lambda w: w.build(GOOD, "--device", "cuda:7"),
    "--out is a file": lambda w: ["build", w.file(GOOD), "--out", w.file(b"", "taken")],
    "--out holds other files": lambda w: ["build", w.file(GOOD), "--out", w.folder],
    "--prune would drop more than half": lambda w: w.pruning(),
    "nothing to delete": lambda w: ["delete", w.index()],
    "nothing to search for": lambda w: ["query", w.index()],
    "an empty query": lambda w: ["query", w.index(), " "],
    "-k below 1": lambda w: w.query("-k", 0),
    "--id that the index does not have": lambda w: ["query", w.index(), "--id", "z"],
    "a filter that is not JSON": lambda w: w.query("--where", '{"year": }'),
    "a filter that is neither JSON nor field=value": lambda w: w.query("--where", "recent"),
    "a filter on a field that no document has": lambda w: w.query("--where", "yaer=2020"),
    "an operator that does not exist": lambda w: w.query("--where", '{"year": {"$above": 2020}}'),
    "a comparison that cannot be made": lambda w: w.query("--where", '{"year": {"$gt": [2020]}}'),
    "queries and judgements that do not belong together": lambda w: w.eval(QUERIES, b"r a 1\n"),
    # What the index records.
    "another pooling than the index has": lambda w: w.again("--pooling", "mean"),
    "another maximum length": lambda w: w.again("--max-length", 32),
    "other text fields": lambda w: w.again("--text-field", "kind"),
    "another format of vectors": lambda w: w.again("--vector-dtype", "f32"),
    "another model": lambda w: w.again("--model", build_model(w.folder / "other", seed=1)),
    "a model whose files have changed": lambda w: w.with_changed_weights(),
    # Models.
    "a model that is not here": lambda w: w.build(GOOD, "--model", "nobody/nothing"),
    "a package that is not installed": lambda w: w.build(GOOD, "--model", "package:no_such_package"),
    "a model folder without config.json": lambda w: w.with_model(lambda model: (model / "config.json").unlink()),
    "weights in another format than safetensors": lambda w: w.with_model(other_weights),
    "--pooling auto with a model that declares none": lambda w: w.build(GOOD, "--pooling", "auto"),
    "a model that gives NaN": lambda w: w.with_model(nan_weights),
    "libraries or files that give other vectors": lambda w: w.after_sql(SWAPPED_CANARIES, w.again(), UNSEALED),
    # The index.
    "no index at the path": lambda w: ["query", w.folder / "nowhere", "a cat"],
    "a build that was cut off before its first commit": lambda w: w.cut_off(),
    "a database of another program": lambda w: w.after_sql("PRAGMA application_id = 1", w.query()),
    "an index of a newer version": lambda w: w.after_sql("PRAGMA user_version = 99", w.query()),
    "a damaged database": lambda w: w.after_cut("index.db", 5000, w.query()),
    "a vector file that is too short": lambda w: w.after_cut("vectors-*", 4100, w.query()),
    "a second writer": lambda w: w.within(writer_lock(w.index()), ["delete", w.folder / "my.index", "a"]),
    "damage that `repair` cannot mend": lambda w: ["repair", w.damaged()],
    "a view or trigger in the database": lambda w: w.after_sql("CREATE VIEW evil AS SELECT 1", w.query()),
    "a link where a file should be": lambda w: ["query", w.linked(), "a cat"],
    "a vector file with other names (hard links)": lambda w: ["delete", w.hard_linked(), "one"],
    "an index from elsewhere that is not sound": lambda w: ["import", w.damaged()],
    "a backup to a directory with something in it": lambda w: [
        *("backup", w.index(), w.file(LINES, "full/corpus.jsonl").parent)
    ],
    "damaged vectors in the way of compact or backup": lambda w: ["backup", w.damaged(), w.new],
    "a full disk": lambda w: w.within(disk_of(2000), w.build(GOOD)),
    "no FAISS": lambda w: w.within(patch.dict(sys.modules, {"faiss": None}), w.build(GOOD)),
    "no scikit-learn": lambda w: w.within(
        patch.dict(sys.modules, {"sklearn": None}), ["eval", w.index(), "--label-field", "kind"]
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    out = tmp_path_factory.mktemp("sound") / "sound.index"
    build_index(RECORDS, out, model=str(tiny_bert))
    return out


def test_every_row_of_the_catalogue_has_its_case() -> None:
    assert list(CATALOGUE) == list(CASES)


@pytest.mark.parametrize("wrong", CASES)
def test_the_catalogue_shows_what_happens(
    wrong: str, tmp_path: Path, tiny_bert: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, message, exit_code, advice = CATALOGUE[wrong]
    world = World(tmp_path, tiny_bert, sound)
    with world.stack:
        command = CASES[wrong](world)
        capsys.readouterr()
        with patch.object(sys, "argv", ["index", *map(str, command)]), pytest.raises(SystemExit) as ended:
            main()
    last = capsys.readouterr().err.splitlines()[-1]
    shown = ".*".join(re.escape(part) for part in message.strip("`").split("…"))
    assert re.fullmatch(rf"(index: |Error: )?{shown}\.?", last), last
    assert ended.value.code == int(exit_code)
    assert advice


def test_every_error_class_stands_in_the_table_with_its_code_and_exit_code() -> None:
    classes = {
        f"`{name}`": [f"`{each.__base__.__name__}`", f"`{each.code}`", str(each.exit_code)]
        for name, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.IndexerError)
    }
    table = {row[0]: row[1:4] for row in rows("Classes")}
    assert table == classes
    assert len({code for _, code, _ in table.values()}) == len(table)


def test_the_table_of_classes_names_fields_that_the_errors_have() -> None:
    samples = {
        "ContractError": errors.ContractError("pooling", "cls", "mean", "leave it out"),
        "CorpusError": errors.CorpusError("corpus.jsonl", 2, "not valid JSON"),
        "MissingExtraError": errors.MissingExtraError("faiss", "cpu"),
        "NonFiniteVectorError": errors.NonFiniteVectorError("the model gives NaN", 3),
    }
    for row in rows("Classes"):
        sample = samples.get(row[0].strip("`"), errors.IndexerError("…"))
        assert set(re.findall(r"`(\w+)`", row[5])) == set(vars(sample))
