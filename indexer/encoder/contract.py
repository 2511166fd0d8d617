"""The encoder contract: what an index records about how its vectors were made, and enforces. Stdlib only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from indexer.config import EncoderOptions, Pooling
from indexer.documents import JsonValue
from indexer.encoder.declared import Declared
from indexer.errors import ContractError, IndexFormatError, UsageError

# Short, longer than most models read, no letters, digits, accents, other scripts, code: the vectors of these texts are
# stored with an index and show whether a model still gives what it gave.
CANARY_TEXTS: tuple[str, ...] = (
    "the cat sat on the mat",
    " ".join(f"In year {year} the harbour counted {year % 97} ships, and the storm took some." for year in range(60)),
    "... --- ... !?",
    "3.14159 2,718 +49 170 0000000 1e-12 2024-02-29 0x7f",
    "Ærøskøbing, Škoda, naïve façade, Ångström, São Tomé, Zürich",
    "今日はとても良い天気です。机器学习 한국어 문장",
    "🚀🔥 deploy on Friday 🙃 👩‍👩‍👧‍👦",
    "def area(r: float) -> float:\n    return 3.0 * r ** 2  # {'unit': \"m²\"}",
)
_ENFORCED = ("pooling", "max_length", "query_prompt", "doc_prompt", "chunk_tokens", "chunk_overlap")
_QUERY_NAMES = frozenset({"query", "search_query"})
_DOCUMENT_NAMES = frozenset({"document", "passage", "corpus", "search_document"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """How the vectors of an index are made; two encoders with equal contracts give equal vectors.

    `model` is as the user gave it, a directory made absolute; `revision` the commit hash where one is known. The hashes
    are those of `ModelFiles`. `pooling` is never AUTO. `max_length_tokens`, `chunk_tokens` and `chunk_overlap` count
    tokens, the first two with special tokens. Both prompts are literal text.
    """

    model: str
    revision: str | None
    weights_sha256: str
    tokenizer_sha256: str
    architecture: str
    pooling: Pooling
    max_length_tokens: int
    query_prompt: str
    doc_prompt: str
    chunk_tokens: int | None
    chunk_overlap: int
    dim: int

    def to_json(self) -> dict[str, JsonValue]:
        """Return the contract as it is stored."""
        return {name: value.value if isinstance(value, Pooling) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Contract:
        """Return the contract that `to_json` stored; fields that a later version added are left alone.

        Raises:
            IndexFormatError: a field is missing or has no usable value.
        """
        try:
            known = {each.name: record[each.name] for each in fields(cls)}
            return cls(**{**known, "pooling": Pooling(str(known["pooling"]))})  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            msg = f"the encoder contract of the index cannot be read ({error}); it was written by another version"
            raise IndexFormatError(msg) from error


def resolve_options(options: EncoderOptions, declared: Declared) -> EncoderOptions:
    """Return the options with AUTO pooling and names of prompts replaced by what the model declares for them.

    Raises:
        UsageError: AUTO was asked for, but the model declares nothing that is available.
    """
    pooling = options.pooling
    if pooling is Pooling.AUTO:
        pooling = declared.pooling
        if pooling is None:
            found = f"declares {declared.pooling_name!r} pooling" if declared.pooling_name else "declares no pooling"
            msg = f"--pooling auto: the model {found}; pass --pooling cls, mean or last"
            raise UsageError(msg)
    prompts = declared.prompts
    return replace(
        options,
        pooling=pooling,
        query_prompt=prompts.get(options.query_prompt or "", options.query_prompt),
        doc_prompt=prompts.get(options.doc_prompt or "", options.doc_prompt),
    )


def check_options(contract: Contract, options: EncoderOptions) -> None:
    """Refuse an option that was given and contradicts the contract; None and AUTO contradict nothing.

    A differing model name is not refused here: the same weights may stand elsewhere, so their hash decides. Names of
    prompts must have been resolved before.

    Raises:
        ContractError: names the option and both values.
    """
    stored = {**contract.to_json(), "max_length": contract.max_length_tokens}
    for name in _ENFORCED:
        given = getattr(options, name)
        if given is None or given is Pooling.AUTO or given == stored[name]:
            continue
        shown = given.value if isinstance(given, Pooling) else given
        advice = "leave the option out, or build another directory"
        raise ContractError(name.replace("_", "-"), stored[name], shown, advice)


def check_same_model(contract: Contract, *, model: str, weights_sha256: str, tokenizer_sha256: str) -> None:
    """Refuse a model whose weights or tokenizer are not those of the contract.

    Raises:
        ContractError: names both hashes and the model to pass.
    """
    for part, stored, found in (
        ("weights", contract.weights_sha256, weights_sha256),
        ("tokenizer", contract.tokenizer_sha256, tokenizer_sha256),
    ):
        if found != stored:
            revision = f" --revision {contract.revision}" if contract.revision else ""
            advice = (
                f"pass --model {contract.model}{revision}, or build another directory"
                if model != contract.model
                else "its files have changed since: put the old ones back, or build another directory"
            )
            raise ContractError(
                "model", f"{contract.model} ({part} {stored[:12]})", f"{model} ({part} {found[:12]})", advice
            )


def check_same_dim(contract: Contract, dim: int) -> None:
    """Refuse an encoder whose vectors have another length than those of the index.

    Raises:
        ContractError: names both.
    """
    if dim != contract.dim:
        advice = f"pass --model {contract.model}, or build another directory"
        raise ContractError("model", f"dim {contract.dim}", f"a model of dim {dim}", advice)


def lint(declared: Declared, contract: Contract) -> list[str]:
    """Return one line of warning for each thing that the model's own files declare and the contract does not do."""
    warnings = []
    if declared.pooling is not None and declared.pooling is not contract.pooling:
        warnings.append(
            f"{contract.model} declares {declared.pooling} pooling, but {contract.pooling} pooling is used: "
            "expect worse results; --pooling auto uses what it declares"
        )
    elif declared.pooling_name and declared.pooling is None:
        warnings.append(
            f"{contract.model} declares {declared.pooling_name} pooling, which is not available: "
            f"{contract.pooling} pooling is used, expect worse results"
        )
    if unused := _unused_prompts(declared, contract):
        shown = ", ".join(f"{name}={declared.prompts[name][:40]!r}" for name in unused[:4])
        warnings.append(
            f"{contract.model} declares prompts that are not used ({shown}): expect worse results; "
            "give their names to --query-prompt and --doc-prompt"
        )
    if declared.modules:
        warnings.append(
            f"{contract.model} declares modules that are not applied ({', '.join(declared.modules)}): "
            "its vectors differ from those it was trained for"
        )
    if declared.lower_cases:
        warnings.append(f"{contract.model} declares that texts are lower-cased first, which is not done here")
    return warnings


def _unused_prompts(declared: Declared, contract: Contract) -> list[str]:
    """Return the names of declared prompts that could stand where the contract has none."""
    used = {contract.query_prompt, contract.doc_prompt, ""}
    unused = [name for name, text in declared.prompts.items() if text not in used]
    open_to: set[str] = set()
    if not contract.query_prompt:
        open_to |= _QUERY_NAMES
    if not contract.doc_prompt:
        open_to |= _DOCUMENT_NAMES
    neither = not contract.query_prompt and not contract.doc_prompt
    return [name for name in unused if neither or name in open_to]
