"""The Python interface beside what its page shows: what is logged, and what arguments may be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import build_model

from indexer import Index, build_index
from indexer.errors import UsageError

RECORDS = [{"id": n, "text": f"word number {n}"} for n in range(6)]


def test_what_the_command_warns_of_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(tmp_path / "model")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    (model / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        ' {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]',
        encoding="utf-8",
    )
    with caplog.at_level(logging.WARNING):
        report = build_index(RECORDS, tmp_path / "index", model=str(model))
    assert any("pooling" in warning for warning in report.warnings)
    assert [record.getMessage() for record in caplog.records if "pooling" in record.getMessage()]


def test_memory_may_be_given_as_on_the_command_line(tmp_path: Path, tiny_bert: Path) -> None:
    out = tmp_path / "index"
    build_index(RECORDS, out, model=str(tiny_bert), max_index_memory="4G")
    assert Index(out).info()["generations"][0]["details"]["asked"]["max_memory_bytes"] == 4 << 30
    assert Index(out).rebuild(max_index_memory="500M").slots == 6
    for wrong in ("x", "-1", True, 1.5, 1.5e400, [1]):
        with pytest.raises(UsageError, match="max-index-memory"):
            Index(out).rebuild(max_index_memory=wrong)
    with pytest.raises(UsageError, match="max-errors"):
        build_index(RECORDS, out, max_errors=-1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_length": "a"}, "--max-length is 'a'; it must be a whole number"),
        ({"max_length": 3.5}, r"--max-length is 3\.5; it must be a whole number"),
        ({"batch_tokens": True}, "--batch-tokens is True; it must be a whole number"),
        ({"max_errors": "a"}, "--max-errors is 'a'; it must be a whole number"),
        ({"kind": 5}, "--kind is 5; choose auto"),
        ({"source_name": 5}, "--source-name is 5; give a name"),
        ({"columns": "text,b"}, "columns is one text, 'text,b'; give a list of names"),
    ],
)
def test_a_value_of_another_type_is_an_argument_that_cannot_be_used(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        build_index(RECORDS, tmp_path / "index", **wrong)


def test_sizes_may_be_integers_of_numpy(tmp_path: Path, tiny_bert: Path) -> None:
    out = tmp_path / "index"
    build_index(RECORDS, out, model=str(tiny_bert), max_length=np.int64(32), max_index_memory=np.int64(10**9))
    assert Index(out).info()["model"]["max_length_tokens"] == 32


def test_a_prune_that_drops_most_is_asked_for_twice(tmp_path: Path, tiny_bert: Path) -> None:
    out = tmp_path / "index"
    build_index(RECORDS, out, model=str(tiny_bert))
    with pytest.raises(UsageError, match="add --yes"):
        build_index(RECORDS[:1], out, prune=True)
    assert build_index(RECORDS[:1], out, prune=True, yes=True).deleted == 5
