"""The kinds of FAISS index that a generation can be, and which one fits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from indexer.config import VectorDtype, whole_number
from indexer.errors import UsageError

TARGET_RECALL = 0.95
# Comparing with so many stored numbers takes about 3 ms on one core; up to here nothing needs to be approximate.
FLAT_NUMBERS = 20_000_000
_ONE_BIT_DIM = 64  # below, one bit for each dimension tells too little
_TRAINING_PER_LIST = 39  # what FAISS asks for
_PQ_ROWS = 256 * _TRAINING_PER_LIST  # what a product quantiser of 8 bits asks for; fewer rows are fast in any code
_FAST_BLOCK = 32  # FastScan fills each list up to a multiple of this
# FastScan codes cannot be mapped: each reader holds a copy. Beyond, codes that are mapped take their place.
_FAST_BYTES = 1 << 30
_HNSW_LINKS = 32
GRAPH_DEGREE = 64
LEAST_FOR_CAGRA = 1_000  # https://github.com/facebookresearch/faiss/issues/4260: over 3 or 4 vectors it never ends
_ID_BYTES = 8
_LIST_BYTES = 8  # its length


class Kind(StrEnum):
    """AUTO lets size and memory decide; FLAT compares with every vector and is exact; FACTORY is FAISS's own string.

    CAGRA is a graph that only a GPU builds, with the extra `cuvs`, and any CPU searches.
    """

    AUTO = "auto"
    FLAT = "flat"
    IVF = "ivf"
    HNSW = "hnsw"
    CAGRA = "cagra"
    FACTORY = "factory"

    @property
    def is_exact(self) -> bool:
        """Whether a search always finds the nearest vectors."""
        return self is Kind.FLAT


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnOptions:
    """What is asked of a generation; None leaves a value to what was asked before, then to the default.

    `kind` is auto, flat, ivf, hnsw, cagra, or a FAISS factory string such as `IVF256,PQ32`; `target_recall` the
    recall@10, in (0, 1], that the search parameters are tuned for; `max_memory_bytes` what the index may take.
    """

    kind: str | None = None
    target_recall: float | None = None
    max_memory_bytes: int | None = None

    @classmethod
    def of(cls, kind: str | None, target_recall: float | None, max_index_memory: int | str | None) -> AnnOptions:
        """Return what a caller asks for, who may write the memory as text, e.g. 4G."""
        limit = max_index_memory
        if isinstance(limit, str):
            limit = parse_bytes(limit, "max-index-memory")
        return cls(kind=kind, target_recall=target_recall, max_memory_bytes=limit)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        recall = self.target_recall
        if recall is not None and not (isinstance(recall, float | int) and 0 < recall <= 1):
            msg = f"--target-recall is {recall!r}; it must be a number above 0 and at most 1"
            raise UsageError(msg)
        if self.max_memory_bytes is not None:
            object.__setattr__(self, "max_memory_bytes", whole_number(self.max_memory_bytes, "max-index-memory", 1))
        if self.kind is not None and (not isinstance(self.kind, str) or self.kind in {"", Kind.FACTORY}):
            msg = (
                f"--kind is {self.kind!r}; choose auto, flat, ivf, hnsw, cagra, or a FAISS factory string such as "
                "IVF256,PQ32"
            )
            raise UsageError(msg)

    @property
    def named_kind(self) -> Kind:
        """The kind that is asked for; FACTORY for everything that is not a name."""
        if self.kind is None:
            return Kind.AUTO
        return Kind(self.kind) if self.kind in set(Kind) else Kind.FACTORY

    @property
    def target(self) -> float:
        """The recall to tune for."""
        return TARGET_RECALL if self.target_recall is None else self.target_recall

    def over(self, before: AnnOptions) -> AnnOptions:
        """Return these, with what they leave open taken from what was asked before."""
        return AnnOptions(
            kind=before.kind if self.kind is None else self.kind,
            target_recall=before.target_recall if self.target_recall is None else self.target_recall,
            max_memory_bytes=before.max_memory_bytes if self.max_memory_bytes is None else self.max_memory_bytes,
        )


def parse_bytes(text: str, option: str) -> int:
    """Return the bytes that a size such as 4G, 500M or 1000000 names; K, M, G and T are powers of 1,024.

    Raises:
        UsageError: it names none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        msg = f"--{option} is {text!r}; give bytes, or a size such as 500M or 4G"
        raise UsageError(msg)
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What to build: a FAISS factory string, and about how many bytes the index will take.

    `copies` says in how many lists of an IVF index each vector is.
    """

    kind: Kind
    factory: str
    n_bytes: int
    copies: int = 1


def choose_recipe(options: AnnOptions, n_rows: int, dim: int, dtype: VectorDtype) -> Recipe:
    """Return what to build for what was asked for.

    AUTO is flat while comparing with every vector is fast and fits; then IVF, each vector in two lists, or in one and
    with shorter codes until they fit. HNSW is built on request alone: it takes nearly five times the memory
    (docs/decisions/0025). Fewer vectors than 1,000 get HNSW where CAGRA was asked for.

    Args:
        options: what was asked for.
        n_rows: vectors to index.
        dim: of the vectors.
        dtype: number format of the vector file.
    """
    limit = math.inf if options.max_memory_bytes is None else options.max_memory_bytes
    flat = Recipe(
        kind=Kind.FLAT,
        factory="SQfp16" if dtype is VectorDtype.F16 else "Flat",
        n_bytes=n_rows * dim * dtype.itemsize,
    )
    match options.named_kind:
        case Kind.FLAT:
            return flat
        case Kind.AUTO:
            few = n_rows * dim <= FLAT_NUMBERS and flat.n_bytes <= limit
            return flat if few else _ivf(n_rows, dim, limit)
        case Kind.IVF:
            return _ivf(n_rows, dim, limit)
        case Kind.CAGRA if n_rows >= LEAST_FOR_CAGRA:
            return Recipe(kind=Kind.CAGRA, factory="CAGRA", n_bytes=n_rows * 4 * (dim + GRAPH_DEGREE))
        case Kind.HNSW | Kind.CAGRA:
            row_bytes = dim + _HNSW_LINKS * 2 * 4 + 16
            return Recipe(kind=Kind.HNSW, factory=f"HNSW{_HNSW_LINKS},SQ8", n_bytes=n_rows * row_bytes)
        case Kind.FACTORY:
            return Recipe(kind=Kind.FACTORY, factory=options.kind or "", n_bytes=0)


def _ivf(n_rows: int, dim: int, limit: float) -> Recipe:
    lists = min(2 ** round(math.log2(math.sqrt(max(n_rows, 1)))), max(n_rows // _TRAINING_PER_LIST, 1))
    recipes = [
        Recipe(
            kind=Kind.IVF,
            factory=f"IVF{lists},{code}",
            copies=copies,
            n_bytes=slots * (n + _ID_BYTES) + (lists + table) * dim * 4 + lists * _LIST_BYTES,
        )
        for code, n, table, slots, copies in _codes(n_rows, dim, lists)
    ]
    return next((recipe for recipe in recipes if recipe.n_bytes <= limit), min(recipes, key=lambda each: each.n_bytes))


def _codes(n_rows: int, dim: int, lists: int) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield codes, the most wanted first.

    Each is its name, the bytes of a code, the vectors of its table, the room in the lists in codes, and the copies of a
    vector.
    """
    plain = "SQ8" if dim < _ONE_BIT_DIM else "RaBitQ"
    plain_bytes = dim if dim < _ONE_BIT_DIM else math.ceil(dim / 8) + 8
    parts = next(dim // width for width in (3, 4, 2, 1) if dim % width == 0)
    fast_bytes = math.ceil(parts / 2)
    for copies in (2, 1) if lists > 1 else (1,):
        n = n_rows * copies
        if dim >= _ONE_BIT_DIM and n_rows >= _PQ_ROWS and n * (fast_bytes + _ID_BYTES) <= _FAST_BYTES:
            yield f"PQ{parts}x4fs", fast_bytes, 2**4, n + lists * _FAST_BLOCK // 2, copies
        yield plain, plain_bytes, 0, n, copies
    if n_rows >= _PQ_ROWS:
        yield from ((f"PQ{m}", m, 2**8, n_rows, 1) for m in (32, 16, 8) if dim % m == 0 and m < plain_bytes)
