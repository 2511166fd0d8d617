"""Three writers and four readers at once, in processes of their own: no reader ever sees anything but one commit."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from crowd import N_WRITERS, Script, create, read, write
from indexes import sql

from indexer.maintenance.verify import verify_index

SMALL_S, FULL_S = 15, 60
START_S = 3
N_READERS = 4
COMPACT_EVERY = 10


def test_every_hit_is_that_of_its_snapshot(tmp_path: Path, torture: bool, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "index"
    create(out)
    until_s = time.monotonic() + START_S + (FULL_S if torture else SMALL_S)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(N_WRITERS + N_READERS, mp_context=context) as pool:
        writing = [pool.submit(write, out, w, until_s, 0 if w else COMPACT_EVERY) for w in range(N_WRITERS)]
        reading = [pool.submit(read, out, r, until_s) for r in range(N_READERS)]
        written = [future.result() for future in writing]
        reports = [future.result() for future in reading] + [report for _, report in written]
    counts = sum((report.counts for report in reports), Counter[str]())
    searches = sorted(ms for report in reports for ms in report.search_ms)
    refreshes = sorted(ms for report in reports for ms in report.refresh_ms)
    with capsys.disabled():
        print(
            f"\ncrowd: {dict(counts)}, {len(searches)} searches of a batch; ms: refresh median "
            f"{refreshes[len(refreshes) // 2]:.1f}, longest {refreshes[-1]:.0f}; search median "
            f"{searches[len(searches) // 2]:.1f}, longest {searches[-1]:.0f}"
        )
    assert [line for report in reports for line in report.wrong] == []
    assert min(counts[name] for name in ("commits", "compactions", "refusals", "hits")) > 0
    assert verify_index(out, deep=True) == []
    held = {id_: (text, n) for id_, text, n in sql(out, "SELECT id, text, metadata ->> 'n' FROM documents")}
    expected = [Script(writer).state(number) for writer, (number, _) in enumerate(written)]
    assert held == {id_: kept for state in expected for id_, kept in state.items()}
