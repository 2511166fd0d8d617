"""Makes a FAISS index over all rows of a vector file, in bounded memory, one step at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.ann.gpu import Gpu
from indexer.ann.index import empty_index, load_faiss, said
from indexer.ann.kinds import Kind, Recipe
from indexer.ann.lists import ListFiller
from indexer.errors import UsageError
from indexer.storage.vectors import VectorReader

logger = logging.getLogger(__name__)

# Called with what is done, in [0, 1], and a word for the step; an interrupt raised in it, or between calls, is safe.
OnStep: TypeAlias = Callable[[float, str], None]

_SAMPLE_PER_LIST = 64
_SAMPLE_LEAST = 50_000
_SAMPLE_BYTES = 256_000_000
_ROUNDS = 10
_TRAINING_SHARE = 0.4
_SEED = 1234


def make_index(
    vectors: VectorReader,
    recipe: Recipe,
    gpu: Gpu | None,
    on_step: OnStep,
) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return a trained FAISS index that holds all rows; its ids are slots.

    The training sample takes at most 256 MB, and rows are added a block at a time; only a graph by a GPU is built of
    all rows at once. Where the GPU fails, mostly for want of memory, the CPU does it alone.

    Args:
        vectors: the vector file.
        recipe: what to make.
        gpu: what helps with it.
        on_step: told after each round of training and each block.

    Raises:
        UsageError: the index cannot be trained with so few vectors, or not at all.
    """
    try:
        if recipe.kind is Kind.CAGRA and gpu is not None:
            return gpu.build_graph(vectors)
        return _trained_and_filled(empty_index(recipe, vectors.layout.dim), vectors, recipe, gpu, on_step)
    except (RuntimeError, MemoryError) as error:
        if gpu is not None and recipe.kind is not Kind.CAGRA:
            logger.warning("FAISS could not use the GPU (%s); the CPU makes the index alone", said(error))
            return make_index(vectors, recipe, None, on_step)
        if isinstance(error, MemoryError) and gpu is None:
            raise
        msg = f"--kind {recipe.factory!r} cannot be built over {vectors.n_rows:,} vectors: {said(error)}"
        raise UsageError(msg) from error


def grow_index(index: Any, vectors: VectorReader, recipe: Recipe, on_step: OnStep) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return a FAISS index that holds all rows, from one of the same recipe that holds the first of them.

    Args:
        index: read into memory; of no use afterwards.
        vectors: the vector file.
        recipe: by which it was made.
        on_step: told after each block.

    Raises:
        UsageError: FAISS cannot add to it.
    """
    try:
        return _trained_and_filled(index, vectors, recipe, None, on_step)
    except RuntimeError as error:
        msg = f"{recipe.factory!r} takes no further vectors: {said(error)}"
        raise UsageError(msg) from error


def _trained_and_filled(
    index: Any,  # noqa: ANN401 - faiss is untyped
    vectors: VectorReader,
    recipe: Recipe,
    gpu: Gpu | None,
    on_step: OnStep,
) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return an index with the training and the rows that it lacks; it may be another one than was given."""
    faiss = load_faiss()
    # FastScan takes no lists that were found elsewhere: ours is filled in another form, and both stand at the end.
    becomes_fast = recipe.kind is Kind.IVF and isinstance(index, faiss.IndexIVFPQFastScan)
    if becomes_fast:
        index = _without_fast_scan(index)
    trained_share = 0.0
    if not index.is_trained:
        trained_share = _TRAINING_SHARE
        sample = _sample(vectors, index)
        if recipe.kind is Kind.IVF:
            _train_lists(index, sample, gpu, on_step)
        index.train(sample)
        del sample
        on_step(trained_share, "trained")
    if recipe.kind is Kind.FLAT:
        _reserve(index, vectors.n_rows)
    takes_lists = isinstance(index, faiss.IndexIVF) and not isinstance(index, faiss.IndexIVFFastScan)
    is_helped = takes_lists and gpu is not None
    lists = ListFiller(index, recipe.copies, gpu) if recipe.kind is Kind.IVF or is_helped else None
    for first, block in vectors.streamed(start=index.ntotal // recipe.copies):
        if lists is None:
            index.add(block)
        else:
            lists.add(first, block)
        done = (first + len(block)) / vectors.n_rows
        on_step(trained_share + (1 - trained_share) * done, "adding")
    return _with_fast_scan(index) if becomes_fast else index


def _without_fast_scan(index: Any) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return an index that holds what a FastScan one does, in the layout that takes lists."""
    plain = load_faiss().IndexIVFPQ(
        index.quantizer, index.d, index.nlist, index.pq.M, index.pq.nbits, index.metric_type
    )
    plain.by_residual = index.by_residual
    if index.is_trained:
        plain.pq = index.pq
        plain.is_trained = True
        index.orig_invlists = plain.invlists
        index.reconstruct_orig_invlists()
        index.orig_invlists = None
        plain.ntotal = index.ntotal
        index.reset()
    plain.own_fields, index.own_fields = True, False
    return plain


def _with_fast_scan(index: Any) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return an index that holds what another one does, in the layout of FastScan."""
    fast = load_faiss().IndexIVFPQFastScan(index)
    fast.own_fields, index.own_fields = True, False
    index.reset()  # FAISS keeps it for as long as the other one
    return fast


def _reserve(index: Any, n_rows: int) -> None:  # noqa: ANN401 - faiss is untyped
    """Take the memory for all rows at once: growing by doubling needs up to twice as much for a moment."""
    index.codes.resize(n_rows * index.code_size)
    index.codes.resize(0)


def _sample(vectors: VectorReader, index: Any) -> NDArray[np.float32]:  # noqa: ANN401 - faiss is untyped
    wanted = max(_SAMPLE_LEAST, _SAMPLE_PER_LIST * getattr(index, "nlist", 0))
    n = min(vectors.n_rows, wanted, _SAMPLE_BYTES // (4 * vectors.layout.dim))
    slots = np.sort(np.random.default_rng(_SEED).choice(vectors.n_rows, n, replace=False))
    return vectors.rows(slots)


def _train_lists(
    index: Any,  # noqa: ANN401 - faiss is untyped
    sample: NDArray[np.float32],
    gpu: Gpu | None,
    on_step: OnStep,
) -> None:
    """Place the centres of the lists by k-means on the sphere, one round at a time so that it can be interrupted."""
    faiss = load_faiss()
    centres: NDArray[np.float32] | None = None
    nearest = None if gpu is None else gpu.copy(faiss.IndexFlatIP(index.d))
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
        if nearest is not None:
            rounds.index = nearest
        rounds.train(sample, init_centroids=centres)
        centres = rounds.centroids
        on_step(_TRAINING_SHARE * number / _ROUNDS, "training")
    index.quantizer.train(centres)
    index.quantizer.add(centres)
