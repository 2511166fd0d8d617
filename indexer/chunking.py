"""A long document into passages: windows over the tokenizer's own tokens, cut between words."""

from __future__ import annotations

from collections.abc import Sequence


def cut_windows(
    offsets: Sequence[tuple[int, int]], words: Sequence[int | None], size: int, overlap: int
) -> list[tuple[int, int]]:
    """Cut tokens into windows and return the characters of each.

    A window ends before a word that would not fit as a whole, unless that word is longer than half a window; the next
    one starts with a whole word, about `overlap` tokens before the end of the last.

    Args:
        offsets: characters [start, end) of each token, without special tokens.
        words: which word each token belongs to, as the tokenizer numbers them; None belongs to no word.
        size: tokens of a window, at least 1.
        overlap: tokens that a window shares with the one before, less than `size`.

    Returns:
        Characters [start, end) of each window, in order; together they hold every token. None for no tokens.
    """
    spans = []
    start, n_tokens = 0, len(offsets)
    while start < n_tokens:
        end = min(start + size, n_tokens)
        if end < n_tokens:
            end = _word_start(words, end, start + max(size // 2, 1))
        spans.append((offsets[start][0], offsets[end - 1][1]))
        if end == n_tokens:
            break
        start = max(_word_start(words, end - overlap, start + 1), start + 1) if overlap else end
    return spans


def _word_start(words: Sequence[int | None], token: int, lowest: int) -> int:
    """Return the first token of the word that a token is part of, but the token itself if that is below `lowest`."""
    first = token
    while first > lowest and words[first] is not None and words[first] == words[first - 1]:
        first -= 1
    inside = words[first] is not None and first > 0 and words[first] == words[first - 1]
    return token if inside else first
