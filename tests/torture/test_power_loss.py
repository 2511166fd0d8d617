"""Power cuts: whatever they leave of a run opens, is whole, and holds every commit that was acknowledged."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing.pool import Pool
from pathlib import Path

import pytest
from disk import Image, Step, final, images, read_tree
from inspection import Find, judge
from mutants import MUTANTS
from recording import record
from workloads import WORKLOADS

N_IMAGES, N_IMAGES_TORTURE = 350, 3_500
N_IMAGES_MUTANT = 3_000
MUTANTS_ALWAYS = ("vectors not synced", "TRUNCATE with NORMAL")
BATCH = 128
SEED = 20_261_124

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def finds(workload: str, base: Image, steps: list[Step], workers: Pool, n: int) -> Iterator[Find]:
    """Judge up to n images."""
    cuts = islice(images(base, steps, SEED), n)
    tasks = (
        Find(workload, acknowledged, position, image, writer_first=number % 3 == 2)
        for number, (acknowledged, position, image) in enumerate(cuts)
    )
    while batch := list(islice(tasks, BATCH)):  # a pool would read all images ahead
        yield from workers.map(judge, batch, chunksize=4)


@needs_strace
@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_power_cut_loses_an_acknowledged_commit(
    workload: str, memory: Path, workers: Pool, torture: bool, figures: list[str]
) -> None:
    recording = record(workload, memory)
    base, steps = recording.base, recording.steps
    assert final(base, steps) == read_tree(recording.root), "the recording is not all that the program did"
    n, start_s = N_IMAGES_TORTURE if torture else N_IMAGES, time.monotonic()
    found = list(finds(workload, base, steps, workers, n))
    rate = len(found) / (time.monotonic() - start_s)
    bad = [find for find in found if find.violation]
    figures.append(f"power loss, {workload}: {len(found):,} images, {len(bad)} bad, {rate:.0f} images/s")
    assert bad == [], f"{bad[0].violation}: after {steps[: bad[0].position + 1][-3:]}"
    assert len(found) == n


@needs_strace
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_protocol_is_caught(
    mutant: str, memory: Path, workers: Pool, torture: bool, figures: list[str]
) -> None:
    if not torture and mutant not in MUTANTS_ALWAYS:
        pytest.skip("part of make torture")
    workload = MUTANTS[mutant].workload
    recording = record(workload, memory, mutant=mutant)
    steps = MUTANTS[mutant].recorded(recording.base, recording.steps)
    for n, find in enumerate(finds(workload, recording.base, steps, workers, N_IMAGES_MUTANT), 1):
        if find.violation:
            figures.append(f"mutant {mutant!r}: caught by image {n}: {find.violation[:120]}")
            return
    pytest.fail(f"{mutant!r} passes for sound")


def test_the_page_names_every_broken_protocol() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert set(MUTANTS) == set(re.findall(r"`([^`]+)`", page)) & set(MUTANTS)
    assert f"{len(MUTANTS)} of {len(MUTANTS)}" in page
