"""Add vectors to one store in batches until killed, or check what a killed one left; `kill_peers.py` runs it.

    PYTHON kill_peers_worker.py STORE add DIR             prints "ready PID", then the number of acknowledged documents
    PYTHON kill_peers_worker.py STORE check DIR:N...      prints one JSON object for each directory with N acknowledged

Runs in the interpreter that the store is installed in, and needs numpy there. Document i has the text "document i" and
row i of one random matrix as its vector; each store is used as its own manual shows it, one acknowledged call a batch.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

N_DOCUMENTS = 20_000
BATCH = 1_000
DIM = 64
PROBES = 25
K = 3
SCORE_TOLERANCE = 5e-3  # float16 and 8 bit storage are no lie

Hits = list[tuple[int, str, float]]
"""Id, text and cosine of each hit."""

_random = np.random.default_rng(7).standard_normal((N_DOCUMENTS, DIM)).astype(np.float32)
VECTORS = _random / np.linalg.norm(_random, axis=1, keepdims=True)


def text_of(i: int) -> str:
    return f"document {i}"


def embed(texts: Sequence[str]) -> np.ndarray:
    """Return the vectors of some texts, (n, d) float32."""
    return VECTORS[[int(text.rsplit(" ", 1)[1]) for text in texts]]


class Store(Protocol):
    """One store on disk, opened or created by its constructor."""

    packages: tuple[str, ...]
    imported_once: tuple[str, ...]

    def __init__(self, directory: Path) -> None: ...
    def add(self, ids: range) -> None: ...
    def texts(self, ids: range) -> dict[int, str]: ...
    def nearest(self, i: int) -> Hits: ...


class Clsindex:
    """This project, with an encoder that looks its vectors up; a new index is made by its first batch."""

    packages = ("clsindex", "faiss-cpu")
    imported_once = ()

    def __init__(self, directory: Path) -> None:
        sys.path.append(str(Path(__file__).parents[1] / "tests"))
        from dataclasses import replace

        import fakes

        import search.searcher
        from indexer.errors import IndexNotFoundError

        class Encoder(fakes.FakeEncoder):
            def encode(self, texts: Sequence[str]) -> np.ndarray:
                return np.stack(
                    [embed([t])[0] if t.startswith("document ") else fakes.fake_vector(t, DIM) for t in texts]
                )

            encode_queries = encode

        def encoder() -> Encoder:
            made = Encoder(batch=256)
            made.contract = replace(made.contract, dim=DIM)
            return made

        self._encoder = encoder
        search.searcher.open_query_encoder = lambda *_, **__: encoder()
        self._directory = directory
        try:
            self._searcher = search.Searcher.open(directory)
        except IndexNotFoundError:  # killed before anything was committed: the first batch makes it
            self._searcher = None

    def add(self, ids: range) -> None:
        from indexer.build import BuildOptions, run_build

        records = [{"id": str(i), "text": text_of(i)} for i in ids]
        options = BuildOptions(adds=ids.start > 0)
        run_build([records], self._directory, options, load_encoder=self._encoder().load)

    def texts(self, ids: range) -> dict[int, str]:
        import sqlite3

        if self._searcher is None:
            return {}
        with sqlite3.connect(self._directory / "index.db") as sql:
            held = {int(id_): text for id_, text in sql.execute("SELECT id, text FROM documents")}
        return {i: held[i] for i in ids if i in held}

    def nearest(self, i: int) -> Hits:
        return [(int(hit.id), hit.text, hit.score) for hit in self._searcher.search(text_of(i), K)]


class Txtai:
    packages = ("txtai", "faiss-cpu")
    imported_once = ("txtai",)

    def __init__(self, directory: Path) -> None:
        os.environ["ALLOW_RESOLVE_TRANSFORM"] = "True"  # else a transform that is named in a saved index is refused
        from txtai import Embeddings

        transform = "kill_peers_worker.embed"
        self._directory = directory
        self._embeddings = Embeddings(method="external", transform=transform, content=True)
        self._is_new = not (directory / "config.json").exists() and not (directory / "config").exists()
        if not self._is_new:
            self._embeddings.load(str(directory))

    def add(self, ids: range) -> None:
        self._embeddings.upsert([(i, text_of(i), None) for i in ids])
        self._embeddings.save(str(self._directory))

    def texts(self, ids: range) -> dict[int, str]:
        if self._is_new:
            return {}
        rows = self._embeddings.search(f"select id, text from txtai limit {N_DOCUMENTS}")
        held = {int(row["id"]): row["text"] for row in rows}
        return {i: held[i] for i in ids if i in held}

    def nearest(self, i: int) -> Hits:
        return [(int(row["id"]), row["text"], row["score"]) for row in self._embeddings.search(text_of(i), K)]


class Chroma:
    packages = ("chromadb",)
    imported_once = ("chromadb",)

    def __init__(self, directory: Path) -> None:
        import chromadb

        client = chromadb.PersistentClient(str(directory), chromadb.Settings(anonymized_telemetry=False))
        self._collection = client.get_or_create_collection(
            "documents", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    def add(self, ids: range) -> None:
        self._collection.add(
            ids=[str(i) for i in ids], embeddings=VECTORS[ids.start : ids.stop], documents=[text_of(i) for i in ids]
        )

    def texts(self, ids: range) -> dict[int, str]:
        found = self._collection.get(include=["documents"])
        held = {int(id_): text for id_, text in zip(found["ids"], found["documents"], strict=True)}
        return {i: held[i] for i in ids if i in held}

    def nearest(self, i: int) -> Hits:
        found = self._collection.query(VECTORS[i : i + 1], n_results=K, include=["documents", "distances"])
        hits = zip(found["ids"][0], found["documents"][0], found["distances"][0], strict=True)
        return [(int(id_), text, 1 - distance) for id_, text, distance in hits]


class LanceDB:
    packages = ("lancedb",)
    imported_once = ()

    def __init__(self, directory: Path) -> None:
        import lancedb
        import pyarrow as pa

        self._schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), DIM))])
        self._pa = pa
        self._table = lancedb.connect(directory).create_table("documents", schema=self._schema, exist_ok=True)

    def add(self, ids: range) -> None:
        vectors = self._pa.FixedSizeListArray.from_arrays(VECTORS[ids.start : ids.stop].ravel(), DIM)
        columns = [list(ids), [text_of(i) for i in ids], vectors]
        self._table.add(self._pa.table(columns, schema=self._schema))

    def texts(self, ids: range) -> dict[int, str]:
        rows = self._table.to_arrow().select(["id", "text"]).to_pylist()
        held = {row["id"]: row["text"] for row in rows}
        return {i: held[i] for i in ids if i in held}

    def nearest(self, i: int) -> Hits:
        rows = self._table.search(VECTORS[i]).distance_type("cosine").limit(K).to_list()
        return [(row["id"], row["text"], 1 - row["_distance"]) for row in rows]


class MilvusLite:
    packages = ("milvus-lite", "pymilvus")
    imported_once = ()

    def __init__(self, directory: Path) -> None:
        from pymilvus import MilvusClient

        self._client = MilvusClient(str(directory / "milvus.db"))
        if not self._client.has_collection("documents"):
            self._client.create_collection("documents", dimension=DIM, metric_type="COSINE", consistency_level="Strong")
        self._client.load_collection("documents")

    def add(self, ids: range) -> None:
        self._client.insert("documents", [{"id": i, "vector": VECTORS[i].tolist(), "text": text_of(i)} for i in ids])

    def texts(self, ids: range) -> dict[int, str]:
        held = {}
        for first in range(ids.start, ids.stop, BATCH):
            part = list(range(first, min(first + BATCH, ids.stop)))
            rows = self._client.get("documents", ids=part, output_fields=["id", "text"])
            held.update({row["id"]: row["text"] for row in rows})
        return held

    def nearest(self, i: int) -> Hits:
        found = self._client.search("documents", data=[VECTORS[i].tolist()], limit=K, output_fields=["text"])
        return [(hit["id"], hit["entity"]["text"], hit["distance"]) for hit in found[0]]


class FaissPickle:
    """The script that many tutorials show: a FAISS file for the vectors, a pickle for the documents."""

    packages = ("faiss-cpu",)
    imported_once = ()

    def __init__(self, directory: Path) -> None:
        import faiss

        self._faiss = faiss
        self._index_path, self._documents_path = directory / "index.faiss", directory / "documents.pkl"
        if self._index_path.exists() or self._documents_path.exists():
            self._index = faiss.read_index(str(self._index_path))
            with self._documents_path.open("rb") as file:
                self._documents: list[tuple[int, str]] = pickle.load(file)
        else:
            self._index, self._documents = faiss.IndexFlatIP(DIM), []

    def add(self, ids: range) -> None:
        self._index.add(VECTORS[ids.start : ids.stop])
        self._documents += [(i, text_of(i)) for i in ids]
        self._faiss.write_index(self._index, str(self._index_path))
        with self._documents_path.open("wb") as file:
            pickle.dump(self._documents, file)

    def texts(self, ids: range) -> dict[int, str]:
        held = dict(self._documents)
        return {i: held[i] for i in ids if i in held}

    def nearest(self, i: int) -> Hits:
        scores, rows = self._index.search(VECTORS[i : i + 1], K)
        return [(*self._documents[row], score) for row, score in zip(rows[0], scores[0], strict=True)]


STORES: dict[str, type[Store]] = {
    "clsindex": Clsindex,
    "txtai": Txtai,
    "chroma": Chroma,
    "lancedb": LanceDB,
    "milvus-lite": MilvusLite,
    "faiss+pickle": FaissPickle,
}


def add(kind: type[Store], directory: Path) -> None:
    """Tell the id of the process to kill, then add; a store whose import is slow and forks well adds in a child."""
    for module in kind.imported_once:
        __import__(module)
    while True:
        child = os.fork() if kind.imported_once else 0
        if not child:
            add_all(kind, directory)
            return
        os.waitpid(child, 0)
        print("killed", flush=True)
        if not (line := sys.stdin.readline()):
            return
        directory = Path(line.rstrip("\n"))


def add_all(kind: type[Store], directory: Path) -> None:
    directory.mkdir()
    store = kind(directory)
    print(f"ready {os.getpid()}", flush=True)
    for first in range(0, N_DOCUMENTS, BATCH):
        store.add(range(first, first + BATCH))
        print(first + BATCH, flush=True)
    signal.pause()  # an orderly exit would be more than a kill leaves


def check(kind: type[Store], directory: Path, n_acknowledged: int) -> dict[str, Any]:
    """Open what a kill left and count what is not as it was acknowledged."""
    result: dict[str, Any] = {"acknowledged": n_acknowledged, "opened": False, "lost": 0, "wrong": 0, "missed": 0}
    try:
        store = kind(directory)
        held = store.texts(range(n_acknowledged))
    except Exception as error:  # noqa: BLE001 - whatever a store raises
        result["error"] = f"{type(error).__name__}: {error}"[:300]
        return result
    result["opened"] = True
    result["lost"] = sum(held.get(i) != text_of(i) for i in range(n_acknowledged))
    for i in np.random.default_rng(n_acknowledged).permutation(n_acknowledged)[:PROBES]:
        try:
            hits = store.nearest(int(i))
        except Exception as error:  # noqa: BLE001 - whatever a store raises
            result["wrong"] += 1
            result["error"] = f"{type(error).__name__}: {error}"[:300]
            continue
        result["missed"] += int(not hits or hits[0][0] != i)
        result["wrong"] += int(any(not is_true(int(i), *hit) for hit in hits))
    return result


def is_true(query: int, id_: int, text: str, score: float) -> bool:
    """Tell whether a hit carries the text and the score of its document."""
    is_document = 0 <= id_ < N_DOCUMENTS and text == text_of(id_)
    return is_document and abs(float(VECTORS[query] @ VECTORS[id_]) - score) <= SCORE_TOLERANCE


def main() -> None:
    name, role, *rest = sys.argv[1:]
    kind = STORES[name]
    if role == "versions":
        print(", ".join(f"{package} {version(package)}" for package in kind.packages))
    elif role == "add":
        add(kind, Path(rest[0]))
    else:
        for item in rest:
            directory, _, n_acknowledged = item.rpartition(":")
            print(json.dumps(check(kind, Path(directory), int(n_acknowledged))), flush=True)


if __name__ == "__main__":
    main()
