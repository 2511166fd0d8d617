"""Makes a FAISS index over all rows of a vector file, in bounded memory, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.ann.engine import empty_index, load_faiss, said
from indexer.ann.kinds import Kind, Recipe
from indexer.errors import UsageError
from indexer.vectors import VectorReader

# Called with what is done, in [0, 1], and a word for the step; an interrupt raised in it, or between calls, is safe.
OnStep: TypeAlias = Callable[[float, str], None]

_SAMPLE_PER_LIST = 64
_SAMPLE_LEAST = 50_000
_SAMPLE_BYTES = 256_000_000
_ROUNDS = 10
_TRAINING_SHARE = 0.4
_SEED = 1234


def make_index(vectors: VectorReader, recipe: Recipe, on_step: OnStep) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return a trained FAISS index that holds all rows; its ids are slots.

    The training sample takes at most 256 MB, and rows are added a block at a time.

    Args:
        vectors: the vector file.
        recipe: what to make.
        on_step: told after each round of training and each block.

    Raises:
        UsageError: the index cannot be trained with so few vectors, or not at all.
    """
    index = empty_index(recipe, vectors.layout.dim)
    trained_share = 0.0
    try:
        if not index.is_trained:
            trained_share = _TRAINING_SHARE
            sample = _sample(vectors, index)
            if recipe.kind is Kind.IVF:
                _train_lists(index, sample, on_step)
            index.train(sample)
            del sample
            on_step(trained_share, "trained")
        if recipe.kind is Kind.FLAT:
            _reserve(index, vectors.n_rows)
        for first, block in vectors.streamed():
            index.add(block)
            done = (first + len(block)) / vectors.n_rows
            on_step(trained_share + (1 - trained_share) * done, "adding")
    except RuntimeError as error:
        msg = f"--kind {recipe.factory!r} cannot be built over {vectors.n_rows:,} vectors: {said(error)}"
        raise UsageError(msg) from error
    return index


def _reserve(index: Any, n_rows: int) -> None:  # noqa: ANN401 - faiss is untyped
    """Take the memory for all rows at once: growing by doubling needs up to twice as much for a moment."""
    index.codes.resize(n_rows * index.code_size)
    index.codes.resize(0)


def _sample(vectors: VectorReader, index: Any) -> NDArray[np.float32]:  # noqa: ANN401 - faiss is untyped
    wanted = max(_SAMPLE_LEAST, _SAMPLE_PER_LIST * getattr(index, "nlist", 0))
    n = min(vectors.n_rows, wanted, _SAMPLE_BYTES // (4 * vectors.layout.dim))
    slots = np.sort(np.random.default_rng(_SEED).choice(vectors.n_rows, n, replace=False))
    return vectors.rows(slots)


def _train_lists(index: Any, sample: NDArray[np.float32], on_step: OnStep) -> None:  # noqa: ANN401 - faiss is untyped
    """Place the centres of the lists by k-means on the sphere, one round at a time so that it can be interrupted."""
    faiss = load_faiss()
    centres: NDArray[np.float32] | None = None
    for number in range(1, _ROUNDS + 1):
        rounds = faiss.Kmeans(
            index.d,
            index.nlist,
            niter=1,
            spherical=True,
            seed=_SEED,
            max_points_per_centroid=len(sample),
            min_points_per_centroid=1,
        )
        rounds.train(sample, init_centroids=centres)
        centres = rounds.centroids
        on_step(_TRAINING_SHARE * number / _ROUNDS, "training")
    index.quantizer.train(centres)
    index.quantizer.add(centres)
