"""Kinds of index: what `auto` takes, what a factory string may say, and the size that is foretold."""

from __future__ import annotations

from pathlib import Path

import faiss
import pytest
from anns import DIM, N, clustered, nearest_through_generation, snapshot_of

from indexer.ann.index import empty_index
from indexer.ann.kinds import FLAT_NUMBERS, AnnOptions, Kind, choose_recipe, parse_bytes
from indexer.config import VectorDtype
from indexer.errors import UsageError
from indexer.progress import tell_nobody
from indexer.upkeep import check_recipe, rebuild_generation
from search.view import View


@pytest.mark.parametrize(
    ("n", "dim", "limit", "kind", "factory"),
    [
        (50_000, 384, None, Kind.FLAT, "SQfp16"),
        (FLAT_NUMBERS // 384 + 1, 384, None, Kind.IVF, "IVF256,PQ128x4fs"),
        (12_000_000, 384, None, Kind.IVF, "IVF4096,RaBitQ"),
        (200_000, 384, None, Kind.IVF, "IVF512,PQ128x4fs"),
        (800_000, 384, None, Kind.IVF, "IVF1024,PQ128x4fs"),
        (800_000, 1_024, None, Kind.IVF, "IVF1024,PQ256x4fs"),
        (100_000_000, 384, None, Kind.IVF, "IVF8192,RaBitQ"),
        (1_000_000, 32, None, Kind.IVF, "IVF1024,SQ8"),
        (50_000, 384, 10_000_000, Kind.IVF, "IVF256,PQ128x4fs"),
        (50_000, 384, 3_700_000, Kind.IVF, "IVF256,RaBitQ"),
        (12_000, 384, 900_000, Kind.IVF, "IVF128,PQ16"),
        (12_000, 384, 800_000, Kind.IVF, "IVF128,PQ8"),
        (10_000_000, 384, 500_000_000, Kind.IVF, "IVF4096,PQ32"),
        (1_000_000, 48, 40_000_000, Kind.IVF, "IVF1024,PQ16"),
        (1_000_000, 96, 17_000_000, Kind.IVF, "IVF1024,PQ8"),
        (1_000_000, 256, 35_000_000, Kind.IVF, "IVF1024,PQ16"),
    ],
)
def test_auto_goes_by_size_dimension_and_memory(n: int, dim: int, limit: int | None, kind: Kind, factory: str) -> None:
    recipe = choose_recipe(AnnOptions(max_memory_bytes=limit), n, dim, VectorDtype.F16)
    assert (recipe.kind, recipe.factory) == (kind, factory)
    assert limit is None or recipe.n_bytes <= limit


def test_vectors_are_in_two_lists_where_memory_allows() -> None:
    def recipe_with(limit: int | None) -> tuple[str, int]:
        recipe = choose_recipe(AnnOptions(kind="ivf", max_memory_bytes=limit), 800_000, 384, VectorDtype.F16)
        return recipe.factory, recipe.copies

    assert recipe_with(None) == ("IVF1024,PQ128x4fs", 2)
    assert recipe_with(110_000_000) == ("IVF1024,RaBitQ", 2)
    assert recipe_with(80_000_000) == ("IVF1024,PQ128x4fs", 1)
    assert recipe_with(55_000_000) == ("IVF1024,RaBitQ", 1)


@pytest.mark.parametrize("kind", ["nonsense", "IVF16,PQ7", "IDMap,Flat", "PCA32,IDMap2,Flat", "IVF0,Flat"])
def test_a_factory_string_that_faiss_cannot_make_is_refused_at_once(ann_index: Path, kind: str) -> None:
    with pytest.raises(UsageError, match="--kind"):
        check_recipe(AnnOptions(kind=kind), DIM)
    with pytest.raises(UsageError, match="--kind"):
        rebuild_generation(ann_index, AnnOptions(kind=kind), tell_nobody)


@pytest.mark.parametrize(("kind", "n_transforms"), [("PQ8", 0), ("IVF16,PQ8", 0), ("PCA32,IVF16,PQ8", 1)])
def test_product_codes_are_not_trained_for_a_search_that_is_not_made(kind: str, n_transforms: int) -> None:
    index = empty_index(choose_recipe(AnnOptions(kind=kind), 1_000, DIM, VectorDtype.F16), DIM)
    for _ in range(n_transforms):
        index = faiss.downcast_index(index.index)
    assert index.do_polysemous_training is False


def test_product_codes_with_many_lists_for_few_vectors_can_be_opened(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="IVF128,PQ32", target_recall=0.1), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    assert nearest_through_generation(view, clustered(1, DIM, 5), 3, view.live()).plan.startswith("factory index")


def test_the_size_that_is_foretold_is_about_that_of_the_file(ann_index: Path) -> None:
    for kind in ("flat", "ivf", "hnsw"):
        row, _ = rebuild_generation(ann_index, AnnOptions(kind=kind, target_recall=0.5), tell_nobody)
        recipe = choose_recipe(AnnOptions(kind=kind), N, DIM, VectorDtype.F16)
        assert recipe.n_bytes == pytest.approx(row.n_bytes, rel=0.1)


@pytest.mark.usefixtures("fast_codes")
@pytest.mark.parametrize("limit", [200_000, 400_000, 600_000])
def test_an_index_stays_within_its_memory(ann_index: Path, limit: int) -> None:
    asked = AnnOptions(kind="ivf", max_memory_bytes=limit, target_recall=0.1)
    row, warnings = rebuild_generation(ann_index, asked, tell_nobody)
    assert row.n_bytes <= limit
    assert choose_recipe(asked, N, DIM, VectorDtype.F16).n_bytes == pytest.approx(row.n_bytes, rel=0.1)
    assert warnings == []


def test_an_index_over_its_memory_is_said(ann_index: Path) -> None:
    _, warnings = rebuild_generation(ann_index, AnnOptions(kind="ivf", max_memory_bytes=1000), tell_nobody)
    assert "--max-index-memory 1,000; there are no smaller codes" in warnings[0]


@pytest.mark.parametrize(("text", "n"), [("4G", 4 * 1024**3), ("1.5m", 1_572_864), ("10 KiB", 10_240), ("7", 7)])
def test_sizes_are_read(text: str, n: int) -> None:
    assert parse_bytes(text, "max-index-memory") == n


@pytest.mark.parametrize("text", ["", "G", "4X", "-1", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="max-index-memory"):
        parse_bytes(text, "max-index-memory")


@pytest.mark.parametrize(
    "options", [{"target_recall": 0.0}, {"target_recall": 1.1}, {"max_memory_bytes": 0}, {"kind": ""}]
)
def test_options_that_cannot_be_meant_are_refused(options: dict) -> None:
    with pytest.raises(UsageError):
        AnnOptions(**options)
