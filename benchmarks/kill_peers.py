"""Kill (-9) stores in the middle of an add of 20,000 vectors, open them again, and count what they lost or got wrong.

    python benchmarks/kill_peers.py --peer txtai=TXTAI_PYTHON --peer chroma=CHROMA_PYTHON --peer faiss+pickle=PYTHON …

Names of stores: clsindex (always run, in this interpreter), txtai, chroma, lancedb, milvus-lite, faiss+pickle; each
with the interpreter of an environment that has it. Prints a table in Markdown; `--json FILE` keeps every trial. Exit
code 1 when clsindex lost an acknowledged document, gave a wrong hit or did not open.

A moment is drawn as a batch and a part of the time that this batch took in an undisturbed run. Acknowledged is what the
store's own call returned for. Power loss is another matter: what the kernel holds survives a kill.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kill_peers_worker import BATCH, DIM, N_DOCUMENTS, PROBES, STORES

WORKER = Path(__file__).with_name("kill_peers_worker.py")
CHECKED_TOGETHER = 5
WAIT_S = 600


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    python: str

    def command(self, role: str, *arguments: str) -> list[str]:
        return [self.python, str(WORKER), self.name, role, *arguments]

    def versions(self) -> str:
        return subprocess.run(self.command("versions"), capture_output=True, text=True, check=True).stdout.strip()


class Adder:
    """The process that adds; kept for the next directory where its store is added to in a child of it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0

    def start(self, directory: Path) -> None:
        if self._process is None:
            command = self._peer.command("add", str(directory))
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        else:
            self._process.stdin.write(f"{directory}\n")
            self._process.stdin.flush()
        word, _, pid = self._process.stdout.readline().partition(" ")
        if word != "ready":
            msg = f"{self._peer.name} did not start"
            raise RuntimeError(msg)
        self._pid = int(pid)

    def acknowledged(self) -> int:
        """Wait for the next batch and return how many documents are acknowledged."""
        return int(self._process.stdout.readline())

    def kill(self) -> int:
        """Kill what adds, and return the last number that it had acknowledged since it was asked, 0 for none."""
        os.kill(self._pid, signal.SIGKILL)
        last = 0
        while (line := self._process.stdout.readline()) not in ("", "killed\n"):
            last = int(line)
        if not line:
            self.close()
        return last

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None


def undisturbed(adder: Adder, peer: Peer, directory: Path) -> list[float]:
    """Add everything and return the seconds of each batch; raises when the store cannot even do that."""
    adder.start(directory)
    seconds = []
    for _ in range(N_DOCUMENTS // BATCH):
        began_s = time.monotonic()
        adder.acknowledged()
        seconds.append(time.monotonic() - began_s)
    adder.kill()
    (result,) = check(peer, [(directory, N_DOCUMENTS)])
    if not result["opened"] or result["lost"] or result["wrong"]:
        msg = f"{peer.name} does not hold what an undisturbed run added: {result}"
        raise RuntimeError(msg)
    return seconds


def kill_once(adder: Adder, directory: Path, batch_seconds: list[float], moment: random.Random) -> int:
    """Kill at a random moment and return how many documents were acknowledged."""
    batch = moment.randrange(len(batch_seconds))
    adder.start(directory)
    for _ in range(batch):
        adder.acknowledged()
    time.sleep(moment.random() * batch_seconds[batch])
    return adder.kill() or batch * BATCH


def check(peer: Peer, trials: list[tuple[Path, int]]) -> list[dict[str, Any]]:
    """Check a few directories in each process; one that a directory brings down is started again behind it."""
    results: list[dict[str, Any]] = []
    while rest := trials[len(results) :][:CHECKED_TOGETHER]:
        command = peer.command("check", *(f"{directory}:{n}" for directory, n in rest))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            output, end = process.communicate(timeout=WAIT_S)[0], f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, end = process.communicate()[0], f"no answer within {WAIT_S} s"
        answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        results += answers
        if len(answers) < len(rest):
            results.append({"acknowledged": rest[len(answers)][1], "opened": False, "error": end})
    return results


def run(peer: Peer, n_kills: int, seed: int) -> dict[str, Any]:
    moment = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kill-peers-") as folder:
        adder = Adder(peer)
        batch_seconds = undisturbed(adder, peer, Path(folder, "undisturbed"))
        trials = []
        for number in itertools.count():
            directory = Path(folder, str(number))
            n_acknowledged = kill_once(adder, directory, batch_seconds, moment)
            if n_acknowledged < N_DOCUMENTS:  # else the kill came too late
                trials.append((directory, n_acknowledged))
            if len(trials) == n_kills:
                break
        adder.close()
        results = check(peer, trials)
    return {"store": peer.name, "versions": peer.versions(), "add_seconds": sum(batch_seconds), "trials": results}


def row(outcome: dict[str, Any]) -> str:
    trials = outcome["trials"]
    opened = [trial for trial in trials if trial["opened"]]
    n_probes = sum(min(PROBES, trial["acknowledged"]) for trial in opened)
    losing = [trial for trial in opened if trial["lost"]]
    shut = [trial for trial in trials if not trial["opened"]]
    columns = (
        f"{outcome['store']} ({outcome['versions']})",
        f"{len(shut)} of {len(trials)}",
        f"{sum(trial['acknowledged'] for trial in shut):,}",
        f"{sum(trial['lost'] for trial in opened):,} in {len(losing)} kills",
        f"{sum(trial['wrong'] for trial in opened):,} of {n_probes:,}",
        f"{sum(trial['missed'] for trial in opened):,}",
        f"{outcome['add_seconds']:.1f} s",
    )
    return f"| {' | '.join(columns)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="STORE=PYTHON")
    parser.add_argument("--only-peers", action="store_true", help="leave clsindex out")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    named = [tuple(item.split("=", 1)) for item in arguments.peer]
    if unknown := [name for name, _ in named if name not in STORES]:
        parser.error(f"unknown store {unknown[0]}; choose from {', '.join(STORES)}")
    ours = [] if arguments.only_peers else [Peer("clsindex", sys.executable)]
    peers = ours + [Peer(name, python) for name, python in named]
    outcomes = []
    print(f"{N_DOCUMENTS:,} vectors, d = {DIM}, batches of {BATCH:,}, {datetime.now(UTC).date()}\n")
    print(
        "| store | does not open | acknowledged, unreachable | acknowledged, lost | wrong answers | not found | add |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for peer in peers:
        outcomes.append(run(peer, arguments.kills, arguments.seed))
        print(row(outcomes[-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(outcomes, indent=1))
    trials = [trial for outcome in outcomes if outcome["store"] == "clsindex" for trial in outcome["trials"]]
    return int(any(not trial["opened"] or trial["lost"] or trial["wrong"] or trial["missed"] for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
