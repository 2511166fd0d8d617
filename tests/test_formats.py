"""What is printed: for programs to the letter, for people within the width of the terminal."""

from __future__ import annotations

import json

import pytest

from indexer.errors import UsageError
from search import Hit, Hits
from search.formats import Format, render
from search.queries import Query

HITS = Hits(
    [
        Hit(1, "d1", 0.98765432, "some words", {"label": "joy", "n": 1}),
        Hit(2, "d2", -0.25, "more\nwords", {"label": None}),
    ],
    plan="exact",
    exact=True,
)
NONE = Hits([], plan="exact", exact=True)
ONE, TWO = Query("q1", "first"), Query("q2", "second")


def lines(form: Format, queries: list[Query], answers: list[Hits], width: int = 80, hidden: tuple[str, ...] = ()):
    return list(render(form, queries, answers, width=width, hidden=hidden))


def test_json_is_one_list_of_all_hits() -> None:
    (line,) = lines(Format.JSON, [ONE, TWO], [HITS, NONE])
    rows = json.loads(line)
    assert [(row["query_id"], row["rank"], row["id"]) for row in rows] == [("q1", 1, "d1"), ("q1", 2, "d2")]
    assert lines(Format.JSON, [ONE], [NONE]) == ["[]"]


def test_jsonl_is_one_hit_a_line_and_a_query_without_id_gives_none() -> None:
    rows = [json.loads(line) for line in lines(Format.JSONL, [Query(None, "x")], [HITS])]
    assert rows == [hit.to_json() for hit in HITS]
    assert [list(row) for row in rows] == [["rank", "id", "score", "text", "metadata"]] * 2
    assert lines(Format.JSONL, [ONE], [NONE]) == []


@pytest.mark.parametrize("form", [Format.JSON, Format.JSONL])
def test_programs_get_every_text_as_it_is(form: Format) -> None:
    text = "naïve 日本 🚀 \u2028 \x1b[31m\n"
    hits = Hits([Hit(1, "é", 1.0, text, {"k": text})], plan="", exact=True)
    (line,) = lines(form, [ONE], [hits])
    found = json.loads(line)
    row = found[0] if form is Format.JSON else found
    assert (row["id"], row["text"], row["metadata"]) == ("é", text, {"k": text})
    assert "naïve" in line
    assert "\n" not in line


def test_trec_has_six_columns_a_line_with_falling_scores() -> None:
    rows = [line.split() for line in lines(Format.TREC, [ONE, TWO], [HITS, HITS])]
    assert rows[0] == ["q1", "Q0", "d1", "1", "0.987654", "clsindex"]
    assert [row[0] for row in rows] == ["q1", "q1", "q2", "q2"]
    assert all(len(row) == 6 for row in rows)
    assert lines(Format.TREC, [Query(None, "x")], [HITS])[0].startswith("1 Q0 d1 1 ")


def test_a_trec_run_that_cannot_carry_an_id_prints_nothing() -> None:
    printed = render(Format.TREC, [ONE, Query("two words", "x")], [HITS, HITS], width=80)
    with pytest.raises(UsageError, match="'two words' holds white space"):
        next(printed)


@pytest.mark.parametrize("id_", ["two words", "tab\tid", "line\nid"])
def test_trec_never_has_other_than_six_columns(id_: str) -> None:
    hits = Hits([Hit(1, id_, 1.0, "text", {})], plan="", exact=True)
    for query, answer in ((Query("q", "x"), hits), (Query(id_, "x"), HITS)):
        try:
            shown = lines(Format.TREC, [query], [answer])
        except UsageError:
            continue  # refusing ids that the format cannot carry is as good
        assert [len(line.split()) for line in shown] == [6] * len(answer)


def test_a_table_has_rank_score_id_text_and_metadata() -> None:
    shown = lines(Format.TABLE, [Query(None, "x")], [HITS])
    assert shown[0].split() == ["1", "0.988", "d1", "some", "words"]
    assert "label=joy" in shown[1]
    assert "n=1" in shown[1]
    assert "more words" in shown[2]
    assert "label=null" in shown[3]
    assert "label" not in "".join(lines(Format.TABLE, [ONE], [HITS], hidden=("label",)))
    assert lines(Format.TABLE, [ONE], [NONE])[:2] == ["q1: first", "no hits"]


AWKWARD = {
    "wide": "日本語のとても長い文章" * 30,
    "right to left": "שלום עולם " * 30,
    "combining": "e\u0301" * 200,
    "emoji": "👩‍👩‍👧‍👦" * 50,
    "one long word": "w" * 5_000,
    "lines": "a\nb\r\nc\td\u2028e",
    "escape": "\x1b[31mred\x1b]0;title\x07\x9b31m",
}


@pytest.mark.parametrize("width", [0, 1, 20, 80, 1_000])
@pytest.mark.parametrize("name", AWKWARD)
def test_a_table_is_two_lines_a_hit_within_the_width_whatever_the_texts_are(name: str, width: int) -> None:
    text = AWKWARD[name]
    hits = Hits(
        [Hit(1, text[:900], 0.5, text, {"k": text, text[:50]: 1}), Hit(2, "b", 0.4, None, {})], plan="", exact=True
    )
    shown = lines(Format.TABLE, [Query(None, text)], [hits], width=width)
    assert len(shown) == 3
    assert not any(character < " " or character in "\x7f\x9b\u2028" for line in shown for character in line)
    if width >= 80:
        assert max(map(len, shown)) <= width


def test_a_query_with_line_breaks_takes_one_line_of_a_table() -> None:
    shown = lines(Format.TABLE, [Query("q\n1", "first\nsecond")], [HITS])
    assert all("\n" not in line for line in shown)
