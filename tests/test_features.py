"""HiddenState in Dataset.map: the textbook's numbers, the cache, and what it refuses."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher

from indexer import HiddenState
from indexer.encoder.bulk import BulkEncoder
from indexer.errors import UsageError

TEXTS = [" ".join(["the storm took the old boat"] * (1 + i * 7 % 11))[: 20 + 13 * i] for i in range(23)]


@pytest.fixture
def stored(tmp_path: Path) -> datasets.Dataset:
    """A data set on disk, so that `map` has a cache."""
    made = datasets.Dataset.from_dict({"text": TEXTS, "title": [f"day {i}" for i in range(len(TEXTS))]})
    made.save_to_disk(str(tmp_path / "stored"))
    return datasets.load_from_disk(str(tmp_path / "stored"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are loaded, one entry for each time."""
    names: list[str] = []
    load = BulkEncoder.load

    def counted(options: Any, **more: Any) -> BulkEncoder:
        names.append(options.model)
        return load(options, **more)

    monkeypatch.setattr(BulkEncoder, "load", counted)
    return names


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def column(mapped: datasets.Dataset, name: str = "hidden_state") -> np.ndarray:
    return np.asarray(mapped.with_format("numpy")[name][:])


def textbook(directory: Path, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the last hidden states, (n, t, d), and the mask, (n, t), as transformers alone gives them."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    return hidden.numpy(), inputs["attention_mask"].numpy()


def test_the_column_is_the_raw_hidden_state_of_the_textbook_loop(stored: datasets.Dataset, tiny_bert: Path) -> None:
    hidden, _ = textbook(tiny_bert, TEXTS)
    mapped = stored.map(HiddenState(str(tiny_bert), dtype="float32"), batched=True, batch_size=10)
    assert mapped.column_names == ["text", "title", "hidden_state"]
    assert mapped.features["hidden_state"].feature.dtype == "float32"
    found = column(mapped)
    assert found.shape == (len(TEXTS), 32)
    assert np.abs(found - hidden[:, 0]).max() < 1e-5
    assert np.abs(np.linalg.norm(found, axis=1) - 1).min() > 0.1


def test_mean_pooling_and_unit_length_are_those_of_the_textbook(tiny_bert: Path) -> None:
    hidden, mask = textbook(tiny_bert, TEXTS)
    mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    found = HiddenState(str(tiny_bert), dtype="float32", pooling="mean")({"text": TEXTS})["hidden_state"]
    assert found.dtype == np.float32
    assert np.abs(found - mean).max() < 1e-5
    unit = HiddenState(str(tiny_bert), dtype="float32", pooling="mean", normalize=True)({"text": TEXTS})
    assert np.abs(unit["hidden_state"] - mean / np.linalg.norm(mean, axis=1, keepdims=True)).max() < 1e-5


def test_an_equal_recipe_takes_the_result_from_the_cache_of_map(
    stored: datasets.Dataset, tiny_bert: Path, loads: list[str]
) -> None:
    first = stored.map(HiddenState(str(tiny_bert), pooling="cls"), batched=True, batch_size=5)
    assert len(loads) == 1  # with five batches
    again = stored.map(HiddenState(str(tiny_bert), pooling="cls"), batched=True, batch_size=5)
    assert len(loads) == 1
    assert np.array_equal(column(first), column(again))
    other = stored.map(HiddenState(str(tiny_bert), pooling="mean"), batched=True, batch_size=5)
    assert len(loads) == 2
    assert not np.allclose(column(first), column(other))


def test_the_fingerprint_follows_the_recipe_alone(tiny_bert: Path) -> None:
    recipe: dict[str, Any] = {"text_field": "text", "pooling": "cls"}
    used = HiddenState(str(tiny_bert), **recipe)
    before = Hasher.hash(used)
    used({"text": TEXTS[:2]})
    assert Hasher.hash(used) == before == Hasher.hash(HiddenState(str(tiny_bert)))
    assert len(pickle.dumps(used)) < 2_000
    changes: list[dict[str, Any]] = [
        {"text_field": "title"},
        {"column": "other"},
        {"pooling": "last"},
        {"normalize": True},
        {"revision": "v2"},
        {"max_length": 16},
        {"doc_prompt": "passage: "},
        {"dtype": "float32"},
        {"device": "cpu"},
        {"batch_tokens": 99},
    ]
    prints = {Hasher.hash(HiddenState(str(tiny_bert), **{**recipe, **change})) for change in changes}
    assert len(prints | {before}) == len(changes) + 1


def test_a_pickled_copy_gives_the_same_vectors(tiny_bert: Path) -> None:
    recipe = HiddenState(str(tiny_bert), dtype="float32")
    vectors = recipe({"text": TEXTS})["hidden_state"]
    assert np.array_equal(pickle.loads(pickle.dumps(recipe))({"text": TEXTS})["hidden_state"], vectors)


def test_several_fields_are_joined_by_a_space_as_an_index_does(tiny_bert: Path) -> None:
    joined = HiddenState(str(tiny_bert), text_field=["title", "text"], column="both", dtype="float32")
    found = joined({"title": ["great day", ""], "text": ["a storm", "the boat"]})
    alone = HiddenState(str(tiny_bert), dtype="float32")({"text": ["great day a storm", "the boat"]})
    assert np.array_equal(found["both"], alone["hidden_state"])


@pytest.mark.parametrize(
    ("batch", "phrase"),
    [
        ({"body": ["a"], "label": [1]}, "the columns are 'body', 'label'"),
        ({"text": ["a", None]}, "row 1 .* None"),
        ({"text": "a single row"}, "batched=True"),
    ],
)
def test_a_batch_without_texts_is_refused_before_a_model_is_loaded(batch: Any, phrase: str, loads: list[str]) -> None:
    with pytest.raises(UsageError, match=phrase):
        HiddenState("no/model")(batch)
    assert loads == []


def test_an_unknown_pooling_is_refused_when_the_recipe_is_made() -> None:
    with pytest.raises(UsageError, match="choose cls, mean, last, auto"):
        HiddenState("no/model", pooling="max")


def test_torch_has_its_threads_again_once_the_recipe_is_closed_or_gone(tiny_bert: Path) -> None:
    before = threads_of_a_new_thread()
    with_close, forgotten = HiddenState(str(tiny_bert)), HiddenState(str(tiny_bert))
    with_close({"text": TEXTS[:2]})
    encoder = weakref.ref(with_close._encoder)
    with_close.close()
    gc.collect()
    assert encoder() is None
    assert threads_of_a_new_thread() == before
    assert with_close({"text": TEXTS[:2]})["hidden_state"].shape[0] == 2
    with_close.close()
    forgotten({"text": TEXTS[:2]})
    del forgotten
    gc.collect()
    assert threads_of_a_new_thread() == before


IN_A_CHILD = """
import gc, os, sys
from indexer import HiddenState
used = HiddenState(sys.argv[1])
used({"text": ["a storm"]})
child = os.fork()
if not child:
    used = None
    gc.collect()
    sys.exit(HiddenState(sys.argv[1])({"text": ["a storm"]})["hidden_state"].shape != (1, 32))
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_may_forget_what_it_inherits_and_encode_by_itself(tiny_bert: Path) -> None:
    assert subprocess.run([sys.executable, "-c", IN_A_CHILD, str(tiny_bert)], timeout=60, check=False).returncode == 0


def test_importing_the_name_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom indexer import HiddenState\nHiddenState('no/model')\n"
        "sys.stdout.write(' '.join({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == ""
