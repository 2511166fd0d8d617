"""The command line as a user meets it: exit codes, what goes to stdout and to stderr, formats, environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from shutil import copytree

import pytest

from search.cli import main

INDEX = str(Path(sys.executable).parent / "index")
Capture = pytest.CaptureFixture[str]
Run = Callable[..., subprocess.CompletedProcess[str]]
RECORDS = [
    {"id": "a", "text": "red apples and green pears", "kind": "fruit", "year": 2020, "fresh": True},
    {"id": "b", "text": "a bridge over the river", "kind": "place", "year": 2021, "fresh": False},
    {"id": "c", "text": "the river runs under the bridge", "kind": "place", "year": 2022},
    {"id": "d", "text": "", "kind": "nothing"},
    {"id": "e", "text": "pears are ripe in autumn", "kind": "fruit", "year": 2023, "fresh": True},
]


@pytest.fixture
def run() -> Run:
    def call(*arguments: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [INDEX, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=120,
        )

    return call


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny_bert: Path) -> Path:
    out = tmp_path_factory.mktemp("index") / "my.index"
    done = subprocess.run(
        [INDEX, "build", str(corpus), "--out", str(out), "--model", str(tiny_bert), "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["documents"] == report["encoded"] == 4
    assert report["skipped"] == {"empty_text": 1}
    assert set(report["seconds"]) == {"load", "read", "tokenize", "encode", "commit", "index", "total"}
    return out


def one_line(stderr: str) -> str:
    """Return the only line of an error message that is no traceback."""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def ids(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["id"] for line in done.stdout.splitlines()]


def test_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").stdout.strip() == version("clsindex")


def test_help_loads_no_heavy_library() -> None:
    heavy = "torch transformers faiss sqlite_utils datasets numpy pandas tokenizers"
    code = (
        "import sys\nfrom search.cli import main\nsys.argv = ['index', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"sys.stderr.write(' '.join(m for m in '{heavy}'.split() if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""


def test_query_and_info_load_neither_torch_nor_transformers_nor_sqlite_utils(index: Path) -> None:
    for command in (["query", str(index), "a river"], ["info", str(index)]):
        code = (
            f"import sys\nfrom search.cli import main\nsys.argv = ['index', *{command!r}]\n"
            "try: main()\nexcept SystemExit: pass\n"
            "heavy = 'torch transformers sqlite_utils datasets pandas'.split()\n"
            "sys.stderr.write(' '.join(m for m in heavy if m in sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout


def test_query_joins_unquoted_words_and_gives_one_hit_a_line_in_a_pipe(run: Run, index: Path) -> None:
    done = run("query", index, "a", "bridge", "over", "the", "river", "-k", "2")
    assert ids(done)[0] == "b"
    first = json.loads(done.stdout.splitlines()[0])
    assert set(first) == {"rank", "id", "score", "text", "metadata"}
    assert first["score"] == pytest.approx(1.0, abs=1e-3)
    assert first["metadata"] == {"kind": "place", "year": 2021, "fresh": False}
    assert len(done.stdout.splitlines()) == 2


def test_query_formats(run: Run, index: Path) -> None:
    as_list = json.loads(run("query", index, "river", "--format", "json", "-k", "3").stdout)
    assert [hit["rank"] for hit in as_list] == [1, 2, 3]
    trec = run("query", index, "river", "--format", "trec", "-k", "1").stdout.split()
    assert [trec[1], trec[3], trec[5]] == ["Q0", "1", "clsindex"]
    table = run("query", index, "river", "--format", "table", "-k", "1").stdout
    assert as_list[0]["id"] in table
    without = json.loads(run("query", index, "river", "--format", "json", "-k", "1", "--no-text").stdout)
    assert "text" not in without[0]


def test_query_filters_with_json_and_with_field_equals_value(run: Run, index: Path) -> None:
    assert set(ids(run("query", index, "river", "--where", "kind=fruit"))) == {"a", "e"}
    assert set(ids(run("query", index, "river", "--where", "year=2021"))) == {"b"}
    assert set(ids(run("query", index, "river", "--where", '{"fresh": {"$ne": true}}'))) == {"b", "c"}
    assert set(ids(run("query", index, "river", "--where", "kind=place", "--where", "year=2022"))) == {"c"}
    assert set(
        ids(run("query", index, "river", "--where", '{"$or": [{"year": {"$gte": 2023}}, {"kind": "place"}]}'))
    ) == {
        "b",
        "c",
        "e",
    }


def test_query_with_an_unknown_field_lists_the_fields_and_exits_2(run: Run, index: Path) -> None:
    done = run("query", index, "river", "--where", "colour=red")
    assert done.returncode == 2
    line = one_line(done.stderr)
    assert "colour" in line
    for name in ("fresh", "kind", "year"):
        assert name in line


def test_a_filter_that_nothing_meets_is_answered_with_the_types_of_its_fields(run: Run, index: Path) -> None:
    done = run("query", index, "river", "--where", '{"year": "2021"}')
    assert done.returncode == 0
    assert done.stdout == ""
    assert "year: integer" in one_line(done.stderr)


def test_query_like_a_document_leaves_it_out(run: Run, index: Path) -> None:
    found = ids(run("query", index, "--id", "b", "-k", "10"))
    assert sorted(found) == ["a", "c", "e"]
    done = run("query", index, "--id", "nobody")
    assert done.returncode == 2
    assert "nobody" in one_line(done.stderr)


def test_query_many_from_a_file_and_from_stdin(run: Run, index: Path, tmp_path: Path) -> None:
    lines = '{"_id": "q1", "text": "ripe pears"}\n{"id": 7, "text": "a bridge"}\n'
    path = tmp_path / "queries.jsonl"
    path.write_text(lines, encoding="utf-8")
    from_file = run("query", index, "--queries", path, "-k", "1")
    rows = [json.loads(line) for line in from_file.stdout.splitlines()]
    assert [row["query_id"] for row in rows] == ["q1", "7"]
    assert run("query", index, "--queries", "-", "-k", "1", stdin=lines).stdout == from_file.stdout


def test_query_explains_its_plan_on_stderr(run: Run, index: Path) -> None:
    done = run("query", index, "river", "--where", "kind=fruit", "--explain")
    assert "2 of 4" in one_line(done.stderr)
    assert ids(done)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ((), "TEXT"),
        (("river", "--id", "a"), "one of"),
        ((" ",), "empty"),
        (("river", "--where", "{broken"), "JSON"),
        (("river", "--device", "cuda:99"), "--device cuda:99 cannot be used here"),
    ],
)
def test_query_that_cannot_be_understood_exits_2(
    run: Run, index: Path, arguments: tuple[str, ...], phrase: str
) -> None:
    done = run("query", index, *arguments)
    assert done.returncode == 2
    assert phrase in one_line(done.stderr)


def test_a_path_without_an_index_exits_1_with_the_line_that_builds_one(run: Run, tmp_path: Path) -> None:
    for command in (("query", tmp_path, "x"), ("info", tmp_path), ("verify", tmp_path), ("delete", tmp_path, "x")):
        done = run(*command)
        assert done.returncode == 1
        assert "index build" in one_line(done.stderr)


def test_a_malformed_record_exits_4_with_file_and_line(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id":"1","text":"good"}\n{"id":"2","text":\n{"id":"3","text":"fine"}\n', encoding="utf-8")
    done = run("build", path, "--out", tmp_path / "x", "--model", tiny_bert)
    assert done.returncode == 4
    assert "bad.jsonl:2:" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert json.loads(run("info", tmp_path / "x", "--json").stdout)["documents"] == 0

    skipping = run("build", path, "--out", tmp_path / "x", "--model", tiny_bert, "--on-error", "skip", "--json")
    assert skipping.returncode == 3
    assert json.loads(skipping.stdout)["rejected"] == 1
    rejects = [json.loads(line) for line in (tmp_path / "x" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in rejects] == [2]
    assert json.loads(run("info", tmp_path / "x", "--json").stdout)["documents"] == 2


def test_a_source_that_is_missing_exits_4_and_makes_no_directory(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    done = run("build", tmp_path / "none.jsonl", "--out", tmp_path / "x", "--model", tiny_bert)
    assert done.returncode == 4
    assert "none.jsonl" in one_line(done.stderr)
    assert not (tmp_path / "x").exists()


def test_documents_are_added_with_a_model_that_has_moved(
    run: Run, corpus: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    model, out, more = tmp_path / "model", tmp_path / "my.index", tmp_path / "more.jsonl"
    copytree(tiny_bert, model)
    more.write_text('{"id": "z", "text": "a boat on the river"}\n', encoding="utf-8")
    assert run("build", corpus, "--out", out, "--model", model).returncode == 0
    model.rename(tmp_path / "moved")
    assert f"model {model} cannot be had" in run("add", out, more).stderr
    assert run("add", out, more, "--model", tmp_path / "moved").returncode == 0
    assert ids(run("query", out, "a boat on the river", "-k", 1, "--model", tmp_path / "moved")) == ["z"]
    vectors = next(out.glob("vectors-*"))
    with vectors.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert run("repair", out, "--encode-damaged").returncode == 1
    assert run("repair", out, "--encode-damaged", "--model", tmp_path / "moved").returncode == 0


def test_a_model_that_cannot_be_had_fails_soon_and_makes_no_directory(run: Run, corpus: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    done = run("build", corpus, "--out", tmp_path / "x", "--model", "nobody/no-such-model")
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    assert "nobody/no-such-model" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_options_that_contradict_the_index_are_refused_naming_both_values(
    run: Run, index: Path, corpus: Path, tiny_bert: Path
) -> None:
    for option, given, stored in (("--pooling", "mean", "cls"), ("--vector-dtype", "f32", "f16")):
        done = run("build", corpus, "--out", index, "--model", tiny_bert, option, given)
        assert done.returncode == 2
        line = done.stderr.splitlines()[-1]
        assert given in line
        assert stored in line


def test_options_come_from_the_environment_too(run: Run, corpus: Path, tmp_path: Path, tiny_bert: Path) -> None:
    out = tmp_path / "x"
    done = run("build", corpus, "--out", out, INDEX_BUILD_MODEL=str(tiny_bert), INDEX_BUILD_POOLING="mean")
    assert done.returncode == 0, done.stderr
    assert json.loads(run("info", out, "--json").stdout)["model"]["pooling"] == "mean"
    assert len(ids(run("query", out, "river", INDEX_QUERY_TOP_K="2"))) == 2


def test_a_filter_in_the_environment_is_one_filter(run: Run, index: Path) -> None:
    assert ids(run("query", index, "river", INDEX_QUERY_WHERE='{"kind": "place", "year": 2022}')) == ["c"]
    assert ids(run("query", index, "river", "--where", "year=2021", INDEX_QUERY_WHERE="year=2022")) == ["b"]


def test_build_add_and_delete_bring_the_index_up_to_date(
    run: Run, corpus: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    out = tmp_path / "x"
    assert run("build", corpus, "--out", out, "--model", tiny_bert).returncode == 0
    again = json.loads(run("build", corpus, "--out", out, "--json").stdout)
    assert (again["encoded"], again["unchanged"]) == (0, 4)
    record = '{"id": "f", "text": "a boat on the river", "kind": "thing"}\n'
    added = json.loads(run("add", out, "-", "--json", stdin=record).stdout)
    assert (added["encoded"], added["documents"]) == (1, 5)
    assert ids(run("query", out, "a boat on the river", "-k", "1")) == ["f"]
    gone = json.loads(run("delete", out, "f", "nobody", "--json").stdout)
    assert gone == {"deleted": 1, "unknown": 1, "documents": 4}
    assert "f" not in ids(run("query", out, "a boat on the river"))
    by_filter = json.loads(run("delete", out, "--where", "kind=place", "--json").stdout)
    assert by_filter["deleted"] == 2
    assert run("verify", out, "--deep").returncode == 0


def test_prune_drops_what_left_the_source_but_asks_before_dropping_most(
    run: Run, tmp_path: Path, tiny_bert: Path
) -> None:
    path, out = tmp_path / "c.jsonl", tmp_path / "x"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    assert run("build", path, "--out", out, "--model", tiny_bert).returncode == 0
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[1:]), encoding="utf-8")
    kept = json.loads(run("build", path, "--out", out, "--json").stdout)
    assert (kept["documents"], kept["deleted"]) == (4, 0)
    pruned = json.loads(run("build", path, "--out", out, "--prune", "--json").stdout)
    assert (pruned["documents"], pruned["deleted"]) == (3, 1)
    path.write_text(json.dumps(RECORDS[1]) + "\n", encoding="utf-8")
    refused = run("build", path, "--out", out, "--prune")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr.splitlines()[-1]
    meant = json.loads(run("build", path, "--out", out, "--prune", "--yes", "--json").stdout)
    assert (meant["documents"], meant["deleted"]) == (1, 2)


def test_verify_exits_1_and_names_the_damage(run: Run, corpus: Path, tmp_path: Path, tiny_bert: Path) -> None:
    out = tmp_path / "x"
    assert run("build", corpus, "--out", out, "--model", tiny_bert).returncode == 0
    vectors = next(out.glob("vectors-*"))
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    done = run("verify", out, "--deep", "--json")
    assert done.returncode == 1
    reply = json.loads(done.stdout)
    assert reply["ok"] is False
    assert vectors.name in reply["problems"][0]


def test_a_terminated_build_exits_130_and_goes_on_where_it_stopped(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    out = tmp_path / "x"
    process = subprocess.Popen(
        [INDEX, "build", "-", "--out", str(out), "--model", str(tiny_bert)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    lines = [json.dumps({"id": str(i), "text": f"text number {i}"}) + "\n" for i in range(6000)]
    process.stdin.writelines(lines[:4500])
    process.stdin.flush()
    for _ in range(600):
        info = run("info", out, "--json")
        if info.returncode == 0 and json.loads(info.stdout)["documents"] > 0:
            break
        time.sleep(0.1)
    assert json.loads(info.stdout)["complete"] is False
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate()[1]
    assert process.returncode == 130
    assert "run the same command again" in stderr.splitlines()[-1]
    done = run("build", "-", "--out", out, "--json", stdin="".join(lines))
    report = json.loads(done.stdout)
    assert report["documents"] == 6000
    assert report["unchanged"] > 0
    assert report["encoded"] + report["unchanged"] == 6000


@pytest.mark.parametrize(
    ("command", "function", "said"),
    [
        ("build", "build.run_build", "interrupted: nothing was committed yet; run the same command again"),
        (
            "compact",
            "maintenance.compact.compact_index",
            "interrupted: what was committed stands; run the same command again",
        ),
        ("verify", "maintenance.verify.verify_index", "interrupted"),
    ],
)
def test_an_interrupted_command_says_how_things_stand(
    command: str, function: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"indexer.{function}", interrupt)
    monkeypatch.setattr(sys, "argv", ["index", command, str(tmp_path), *(["-o", str(tmp_path)] * (command == "build"))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (130, said + "\n")


def test_eval_prints_the_figures(run: Run, index: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"_id": "q", "text": "a bridge over the river"}\n', encoding="utf-8")
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tb\t1\n", encoding="utf-8")
    done = run("eval", index, "--queries", tmp_path / "q.jsonl", "--qrels", tmp_path / "qrels.tsv", "--json")
    figures = json.loads(done.stdout)
    assert figures["ndcg@10"] == figures["mrr"] == figures["recall@10"] == 1.0


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    assert "Traceback" in run("info", tmp_path, "--debug").stderr
