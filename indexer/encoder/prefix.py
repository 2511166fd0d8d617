"""The first words of a long text, and whether a tokenizer gives for them what the whole text begins with."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS_A_TOKEN = 16  # of the prefix; a text of twice as many is cut
_ACROSS = re.compile(r"\S[\s▁]")


def first_words(text: str, max_length: int) -> str:
    """Return the start of a long text, whole words of at most 16 characters a token of the maximum.

    It ends behind a letter or digit and before a space. A text of up to 32 characters a token, and one without such a
    place, comes back as it is.
    """
    end = CHARACTERS_A_TOKEN * max_length
    if len(text) <= 2 * end:
        return text
    end += 1
    while (end := text.rfind(" ", 0, end)) > 0:
        last = text[end - 1]
        # What NFKC changes may become a space, or a mark that is then removed; every other letter stays a letter.
        if last.isalnum() and unicodedata.is_normalized("NFKC", last):
            return text[:end]
    return text


def reads_words_alone(backend: Tokenizer) -> bool:
    """Tell whether the tokens of `first_words` are always the first ones of the whole text.

    They are where nothing spans the letter and the space at the cut: no step of the normalizer, no word of the
    pre-tokenizer, whose words the model sees one by one, and no added token. A step that is not known here may.
    """
    from tokenizers import pre_tokenizers as steps

    keep_borders = (steps.Digits, steps.Punctuation)
    first: Any = next((step for step in _steps(backend.pre_tokenizer) if not isinstance(step, keep_borders)), None)
    match first:
        case steps.BertPreTokenizer() | steps.Whitespace() | steps.WhitespaceSplit():
            drops_spaces, splits_at = True, " "
        case steps.ByteLevel(use_regex=True):
            drops_spaces, splits_at = False, " "
        case steps.Metaspace(split=True, replacement="▁"):
            drops_spaces, splits_at = False, " ▁"
        case _:
            return False
    return all(_is_local(step, drops_spaces, splits_at) for step in _steps(backend.normalizer)) and not any(
        _ACROSS.search(form) for form in _added_tokens(backend)
    )


def _is_local(normalizer: object, drops_spaces: bool, splits_at: str) -> bool:
    """Tell whether a normalizer keeps the letter and the space at the cut, and looks past neither."""
    from tokenizers import normalizers as known

    match normalizer:
        case known.NFC() | known.NFD() | known.NFKC() | known.NFKD() | known.Nmt() | known.Precompiled():
            return True
        case known.Lowercase() | known.StripAccents() | known.Strip() | known.Prepend():
            return True
        case known.BertNormalizer():  # puts spaces around Chinese characters
            return drops_spaces
        case known.Replace():
            # Its attributes raise; what it is saved as has them.
            step = json.loads(normalizer.__getstate__())
            pattern, content = step["pattern"], step["content"]
            if pattern in ({"String": " "}, {"Regex": " {2,}"}):
                return len(content) == 1 and content in splits_at
            string = pattern.get("String", "")
            return bool(string and content) and not re.search(r"[\s▁]", string + content)
        case _:
            return False


def _added_tokens(backend: Tokenizer) -> list[str]:
    """Return the added tokens as they stand in a text, and as they stand in a normalised one."""
    tokens = backend.get_added_tokens_decoder().values()
    contents = [token.content for token in tokens]
    if backend.normalizer is not None:
        contents += [backend.normalizer.normalize_str(token.content) for token in tokens if token.normalized]
    return contents


def _steps(part: Any) -> list[Any]:  # noqa: ANN401 - a normalizer, a pre-tokenizer or None
    from tokenizers.normalizers import Sequence as Normalizers
    from tokenizers.pre_tokenizers import Sequence as PreTokenizers

    if part is None:
        return []
    has_steps = isinstance(part, (Normalizers, PreTokenizers))
    return list(part) if has_steps else [part]
