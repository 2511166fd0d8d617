"""Looking after an index that exists: check, mend, compact, copy, take in."""
