"""Mending what is derived: SQL indexes, derived metadata, the FAISS file; and, if asked, vectors from their texts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from indexer.ann.generation import Generation
from indexer.ann.index import require_faiss
from indexer.config import EncoderOptions
from indexer.documents import JsonValue
from indexer.errors import IndexCorruptError, IndexNotFoundError, StorageError
from indexer.maintenance.reencode import find_damage, mend_vectors
from indexer.maintenance.verify import derived_problems, totals_problem, verify_index
from indexer.opening import TextEncoderLoader, load_bulk_encoder
from indexer.progress import OnProgress, OnShare, Phase, Progress, part_of, tell_nobody
from indexer.storage.database import check_place, connect_writer, stored_json, transaction, translated
from indexer.storage.files import DATABASE, mend
from indexer.storage.lock import writer_lock
from indexer.storage.metadata import MetadataTable, create_indexes, indexed_columns
from indexer.storage.schema import create_derived, create_missing_indexes
from indexer.storage.store import Store
from indexer.storage.totals import count_totals, keep_totals
from indexer.upkeep import asked_before, bring_generation_up_to_date

_BATCH = 1_000
# How far looking for damage is when the vectors are still to be looked at.
_DERIVED_DONE = 0.5


@dataclass(slots=True)
class RepairReport:
    """What was mended, what is left, and what the user should know, one line each."""

    mended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the reply of `index repair --json`."""
        return {"ok": not self.left, **asdict(self)}


def repair_index(
    directory: Path,
    *,
    encode_damaged: bool = False,
    model: str | None = None,
    device: str | None = None,
    load_encoder: TextEncoderLoader | None = None,
    on_progress: OnProgress = tell_nobody,
) -> RepairReport:
    """Mend what can be made again from what is sound, and name the rest; `Index.repair` says more.

    Args:
        directory: of the index.
        encode_damaged: encode the texts of damaged vectors again, as the index prescribes.
        model: another place of the same weights.
        device: where to encode.
        load_encoder: makes the encoder; the default loads the model with torch.
        on_progress: told after each step.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexLockedError: another writer holds the index.
    """
    require_faiss()
    path = directory / DATABASE
    check_place(path)
    if not path.exists():
        msg = f"{directory} is not an index (no {DATABASE} in it); restore a backup, or build it anew"
        raise IndexNotFoundError(msg)
    with suppress(IndexCorruptError, StorageError):
        connect_writer(path).close()  # refuses what is not ours, or newer, before anything is touched
    report = RepairReport()
    with writer_lock(directory):
        try:
            on_progress(Progress(phase=Phase.CHECK))
            _mend_database(path, report, on_progress)
            load, options = load_encoder or load_bulk_encoder, EncoderOptions(model=model, device=device)
            if _mend_vectors(directory, report, load, encode_damaged, options, on_progress):
                _mend_generations(directory, report, device, on_progress)
        except (IndexCorruptError, StorageError) as error:
            report.left.append(str(error))
        report.left += verify_index(directory, deep=True, on_progress=on_progress)
    report.mended, report.left = _without_advice(report.mended, directory), _without_advice(report.left, directory)
    return report


def _without_advice(lines: list[str], directory: Path) -> list[str]:
    """Leave out the advice to run this very command, and lines that another one says more about."""
    said = list(dict.fromkeys(line.replace(f"; {mend(directory)}", "") for line in lines))
    return [line for line in said if not any(other != line and other.startswith(line) for other in said)]


def _mend_vectors(
    directory: Path,
    report: RepairReport,
    load_encoder: TextEncoderLoader,
    encode_damaged: bool,
    options: EncoderOptions,
    on_progress: OnProgress,
) -> bool:
    """Mend the vector file if it is allowed to, and tell whether it is sound now."""
    with closing(Store.open(directory, without_vectors=True)) as store:
        damage = find_damage(store, part_of(on_progress, Phase.CHECK, _DERIVED_DONE))
        if damage is None:
            return True
        if damage.n_live and not encode_damaged:
            report.left.append(
                f"{damage.reason}: {damage.n_live:,} passages have lost their vector; "
                f"index repair {directory} --encode-damaged encodes them again"
            )
            return False
        mend_vectors(store, damage, load_encoder, options, on_progress)
        report.mended.append(f"{damage.reason}: written anew, {damage.n_live:,} passages encoded again")
        return True


def _mend_generations(directory: Path, report: RepairReport, device: str | None, on_progress: OnProgress) -> None:
    with closing(Store.open(directory)) as store:
        asked, bad = asked_before(store), []
        for row in store.generations():
            try:
                if row.vector_file != store.vector_file or row.n_slots > store.n_rows:
                    bad.append(row.name)
                else:
                    Generation(directory, row, store.layout.dim, check_every_byte=True)
            except (FileNotFoundError, IndexCorruptError):
                bad.append(row.name)
        store.drop_generations(bad)
        had = {row.name for row in store.generations()}
        report.warnings += bring_generation_up_to_date(store, asked, on_progress, device)
        if new := {row.name for row in store.generations()} - had:
            report.mended.append(f"{directory / new.pop()}: the FAISS file was built again")


def _mend_database(path: Path, report: RepairReport, on_progress: OnProgress) -> None:
    """Make anew the SQL indexes, the derived metadata and the catalogue of fields, where they are wrong."""
    with translated(path), closing(connect_writer(path)) as sql:
        with transaction(sql, path, "IMMEDIATE"):
            made = create_missing_indexes(sql)
        if made:
            report.mended.append(f"{path}: the SQL index {', '.join(made)} was missing")
        if sql.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            with transaction(sql, path, "IMMEDIATE"):
                sql.execute("REINDEX")
            if sql.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok":
                report.mended.append(f"{path}: the SQL indexes were made again")
        if _derived_is_wrong(sql, path, part_of(on_progress, Phase.CHECK, 0.0, _DERIVED_DONE)):
            with _commit(sql, path):
                indexed = indexed_columns(sql)
                create_derived(sql)
                table = MetadataTable(sql)
                for rows in _metadata(sql, path):
                    table.add(rows)
                table.finish()
                create_indexes(sql, indexed)
            report.mended.append(f"{path}: the derived metadata and the catalogue of fields were made again")
        if totals_problem(sql, path):
            with _commit(sql, path):
                keep_totals(sql, count_totals(sql))
            report.mended.append(f"{path}: documents and tokens were counted again")


@contextmanager
def _commit(sql: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Hold the transaction of a commit that readers see as a new one."""
    with transaction(sql, path, "IMMEDIATE"):
        yield
        sql.execute("UPDATE meta SET value = value + 1 WHERE key = 'seq'")


def _derived_is_wrong(sql: sqlite3.Connection, path: Path, on_share: OnShare) -> bool:
    kinds = dict(sql.execute("SELECT name, type FROM sqlite_master WHERE name IN ('metadata', 'fields')"))
    if set(kinds.values()) - {"table"}:
        return False  # a view in its place is nothing that broke; opening the index refuses it
    if len(kinds) < 2:
        return True
    missing = """SELECT count(*) FROM (SELECT row_id FROM documents EXCEPT SELECT document FROM metadata)"""
    extra = """SELECT count(*) FROM (SELECT document FROM metadata EXCEPT SELECT row_id FROM documents)"""
    if any(sql.execute(query).fetchone()[0] for query in (missing, extra)):
        return True
    return next(derived_problems(sql, path, on_share), None) is not None


def _metadata(sql: sqlite3.Connection, path: Path) -> Iterator[list[tuple[int, dict[str, JsonValue]]]]:
    cursor = sql.execute("SELECT row_id, metadata FROM documents ORDER BY row_id")
    while rows := cursor.fetchmany(_BATCH):
        yield [(row_id, stored_json(text, path)) for row_id, text in rows]
