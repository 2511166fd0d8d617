"""Writes the golden index of the present format: python tests/golden/make.py, once for each format, never again.

Every later version must open it (tests/test_golden.py). It holds a changed text, changed metadata,
a deleted document, identical texts, passages, fields of every JSON type, a tail.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fakes import FakeEncoder  # noqa: E402
from indexes import build  # noqa: E402

from indexer.delete import delete_documents  # noqa: E402
from indexer.storage.schema import FORMAT_VERSION  # noqa: E402

FIRST = [
    {"id": "a", "text": "one two three four five six", "n": 1, "big": 2**70, "ok": True, "label": "joy"},
    {"id": "b", "text": "seven eight", "n": 2.5, "ok": False, "label": None, "tags": ["x", "y"]},
    {"id": "c", "text": "seven eight", "deep": {"er": [1, 2]}, "with space": "é \u202e \U0001f680"},
    {"id": "d", "text": "to be deleted", "n": 4},
    {"id": "e", "text": "to be changed", "n": 5},
]
SECOND = [
    {"id": "e", "text": "has been changed", "n": 5},
    {"id": "b", "text": "seven eight", "n": 3, "ok": False, "label": None, "tags": ["x", "y"]},
    {"id": "f", "text": "the youngest of all", "n": 6},
]


def main() -> None:
    """Write the index, unless it is there."""
    out = HERE / f"v{FORMAT_VERSION}"
    if (out / "index.db").exists():
        sys.exit(f"{out} is there already; a golden index is never written again")
    build(out, FIRST, encoder=FakeEncoder(chunk_tokens=4))
    delete_documents(out, ["d"])
    build(out, SECOND, encoder=FakeEncoder(chunk_tokens=4), adds=True)
    for name in ("writer.lock", "index.db-journal"):
        (out / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
