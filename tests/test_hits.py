"""Hits: a sequence, a row of JSON, a line in a shell, a table in a notebook."""

from __future__ import annotations

import json
import pickle

import pytest

from search import Hit, Hits

HITS = [
    Hit(1, "a", 0.87654321, "one\n  two", {"n": 1, "<b>": "<script>alert(1)</script>"}),
    Hit(2, "<i>", -0.5, "w" * 300, {"n": [1, {"x": None}], "other": True}, (3, 303)),
    Hit(3, "c", 0.0, None, {}),
]


@pytest.fixture
def hits() -> Hits:
    return Hits(HITS, plan="exact: compared with 3 <passages>", exact=True)


def test_hits_are_a_list(hits: Hits) -> None:
    assert isinstance(hits, list)
    assert len(hits) == 3
    assert hits == list(hits) == [*hits] == HITS
    assert hits[0] is HITS[0]
    assert hits[-1].id == "c"
    assert [hit.id for hit in hits[1:]] == ["<i>", "c"]
    assert HITS[1] in hits
    assert Hits([], plan="", exact=True) == []
    with pytest.raises(IndexError):
        hits[3]


def test_hits_with_the_same_hits_are_equal_whatever_their_plan(hits: Hits) -> None:
    assert hits == Hits(HITS, plan="another", exact=False)
    assert hits != Hits(HITS[:2], plan=hits.plan, exact=True)
    with pytest.raises(TypeError):
        hash(hits)


def test_hits_come_back_from_another_process(hits: Hits) -> None:
    there = pickle.loads(pickle.dumps(hits))
    assert (there, there.plan, there.exact) == (hits, hits.plan, hits.exact)


def test_a_hit_as_json_has_the_documented_keys_and_types() -> None:
    rows = [json.loads(json.dumps(hit.to_json())) for hit in HITS]
    assert rows[0] == {
        "rank": 1,
        "id": "a",
        "score": 0.876543,
        "text": "one\n  two",
        "metadata": {"n": 1, "<b>": "<script>alert(1)</script>"},
    }
    assert list(rows[1]) == ["rank", "id", "score", "text", "metadata", "span"]
    assert rows[1]["span"] == [3, 303]
    assert "text" not in rows[2]


def test_a_shell_shows_one_short_line_a_hit(hits: Hits) -> None:
    lines = repr(hits).splitlines()
    assert len(lines) == 4
    assert lines[0] == "3 hits (exact: compared with 3 <passages>)"
    assert "+0.8765" in lines[1]
    assert "one two" in lines[1]
    assert max(map(len, lines)) < 120
    assert repr(Hits([], plan="p", exact=True)) == "0 hits (p)"


def test_a_notebook_shows_a_table_in_which_every_value_is_escaped(hits: Hits) -> None:
    shown = hits._repr_html_()
    assert shown.count("<tr>") == 4
    assert "<script>" not in shown
    assert "<i>" not in shown
    assert "<b>" not in shown
    assert "<passages>" not in shown
    assert "&lt;script&gt;" in shown
