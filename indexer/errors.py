"""Every error that the packages raise on purpose; stdlib only.

IndexerError                      code, exit_code; the base of both packages
├── UsageError                    arguments that cannot be used (exit 2)
│   ├── ContractError             options that contradict what the index records
│   └── FilterError               a filter that cannot be understood
├── CorpusError                   source, line, reason: a record that cannot be used (exit 4)
├── EncoderError                  the model cannot be used
│   ├── ModelNotFoundError        the model cannot be had here
│   └── NonFiniteVectorError      the model gave NaN or Inf
├── IndexNotFoundError            no index at this path
├── IndexCorruptError             the data of an index is damaged
├── IndexFormatError              a format that this version cannot read
├── IndexLockedError              another writer holds the index
├── StorageError                  the file system or SQLite refused a write
└── MissingExtraError             an optional library is not installed

A message says what happened, names the values and says what to do. It is never parsed: use `code` and the fields.
"""

from __future__ import annotations


class IndexerError(Exception):
    """Base of every deliberate error; `code` is stable, `exit_code` is what the command line returns."""

    code = "error"
    exit_code = 1


class UsageError(IndexerError):
    """An argument or option that cannot be used."""

    code = "usage"
    exit_code = 2


class ContractError(UsageError):
    """An option that contradicts what the index records.

    Args:
        field: name of the option, as on the command line without dashes.
        stored: the value that the index records.
        given: the value that was asked for.
        advice: what to do, appended to the message.
    """

    code = "contract"

    def __init__(self, field: str, stored: object, given: object, advice: str) -> None:
        built = "without it" if stored is None else f"with {stored!r}"
        super().__init__(f"--{field} is {given!r}, but the index was built {built}; {advice}")
        self.field = field
        self.stored = stored
        self.given = given


class FilterError(UsageError):
    """A filter that cannot be understood."""

    code = "filter"


class CorpusError(IndexerError):
    """A record, or a whole source, that cannot be used.

    Args:
        source: the file or source as the user named it.
        line: 1-based line of a text file or record of a binary one, None when the whole source is meant.
        reason: what is wrong and what to do; never the text of a document.
    """

    code = "corpus"
    exit_code = 4

    def __init__(self, source: str, line: int | None, reason: str) -> None:
        super().__init__(f"{source}:{line}: {reason}" if line is not None else f"{source}: {reason}")
        self.source = source
        self.line = line
        self.reason = reason


class EncoderError(IndexerError):
    """The model cannot be used as asked."""

    code = "encoder"


class ModelNotFoundError(EncoderError):
    """The model cannot be had on this machine."""

    code = "model_not_found"


class NonFiniteVectorError(EncoderError):
    """The model gave NaN or Inf for a text; nothing of its batch is committed.

    Args:
        message: what happened.
        position: which of the texts given to the encoder.
    """

    code = "non_finite_vector"

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class IndexNotFoundError(IndexerError):
    """There is no index at the path."""

    code = "index_not_found"


class IndexCorruptError(IndexerError):
    """Data of the index is damaged; `index verify` names every problem."""

    code = "index_corrupt"


class IndexFormatError(IndexerError):
    """The index has a format that this version cannot read."""

    code = "index_format"


class IndexLockedError(IndexerError):
    """Another writer holds the index."""

    code = "index_locked"


class StorageError(IndexerError):
    """The file system or SQLite refused a write; what was committed before stands."""

    code = "storage"


class MissingExtraError(IndexerError):
    """An optional library is not installed.

    Args:
        module: import name of the library.
        extra: the extra of clsindex that installs it.
    """

    code = "missing_extra"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; run: pip install 'clsindex[{extra}]'")
        self.module = module
        self.extra = extra
