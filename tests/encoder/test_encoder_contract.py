"""What an index records about its encoder, what contradicts it, and what is warned of."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from indexer.config import EncoderOptions, Pooling
from indexer.encoder.contract import (
    CANARY_TEXTS,
    Contract,
    check_options,
    check_same_dim,
    check_same_model,
    lint,
    resolve_options,
)
from indexer.encoder.declared import Declared, read_declared
from indexer.errors import ContractError, EncoderError, IndexFormatError, UsageError

CONTRACT = Contract(
    model="org/name",
    revision="c" * 40,
    weights_sha256="a" * 64,
    tokenizer_sha256="b" * 64,
    architecture="bert",
    pooling=Pooling.CLS,
    max_length_tokens=256,
    query_prompt="query: ",
    doc_prompt="",
    chunk_tokens=128,
    chunk_overlap=16,
    dim=384,
)


def test_a_contract_survives_json() -> None:
    assert Contract.from_json(json.loads(json.dumps(CONTRACT.to_json()))) == CONTRACT


@pytest.mark.parametrize("change", [{"pooling": "max"}, {"dim": ...}])
def test_a_contract_that_cannot_be_read_says_so(change: dict[str, object]) -> None:
    record = {**CONTRACT.to_json(), **change}
    with pytest.raises(IndexFormatError):
        Contract.from_json({key: value for key, value in record.items() if value is not ...})


def test_fields_of_a_later_version_are_left_alone() -> None:
    assert Contract.from_json({**CONTRACT.to_json(), "matryoshka": 64}) == CONTRACT


@pytest.mark.parametrize(
    ("option", "value", "stored"),
    [
        ("pooling", Pooling.MEAN, "cls"),
        ("max_length", 512, "256"),
        ("query_prompt", "", "query: "),
        ("doc_prompt", "passage: ", ""),
        ("chunk_tokens", 64, "128"),
    ],
)
def test_an_option_that_contradicts_is_refused_with_both_values(option: str, value: object, stored: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_options(CONTRACT, EncoderOptions(**{option: value}))
    assert caught.value.field == option.replace("_", "-")
    assert str(caught.value.stored) == stored
    assert caught.value.given == value


def test_options_that_agree_or_are_not_given_pass() -> None:
    check_options(CONTRACT, EncoderOptions())
    check_options(CONTRACT, EncoderOptions(model="/elsewhere", device="cuda", batch_tokens=99))
    check_options(
        CONTRACT,
        EncoderOptions(pooling=Pooling.CLS, max_length=256, query_prompt="query: ", chunk_tokens=128, chunk_overlap=16),
    )
    check_options(CONTRACT, EncoderOptions(pooling=Pooling.AUTO))


def test_another_model_is_refused_with_both_hashes_and_the_way_out() -> None:
    with pytest.raises(ContractError) as caught:
        check_same_model(CONTRACT, model="/m", weights_sha256="d" * 64, tokenizer_sha256="b" * 64)
    for part in ("a" * 12, "d" * 12, "--model org/name --revision " + "c" * 40):
        assert part in str(caught.value)
    with pytest.raises(ContractError, match="tokenizer"):
        check_same_model(CONTRACT, model="/m", weights_sha256="a" * 64, tokenizer_sha256="d" * 64)
    check_same_model(CONTRACT, model="/m", weights_sha256="a" * 64, tokenizer_sha256="b" * 64)
    with pytest.raises(ContractError, match=r"384.*768|768.*384"):
        check_same_dim(CONTRACT, 768)


def test_auto_and_prompt_names_are_replaced_by_what_the_model_declares() -> None:
    declared = Declared(pooling=Pooling.LAST, prompts={"query": "Q: ", "document": ""})
    options = resolve_options(
        EncoderOptions(pooling=Pooling.AUTO, query_prompt="query", doc_prompt="document"), declared
    )
    assert (options.pooling, options.query_prompt, options.doc_prompt) == (Pooling.LAST, "Q: ", "")
    assert resolve_options(EncoderOptions(query_prompt="other"), declared).query_prompt == "other"
    with pytest.raises(UsageError, match="'max_tokens'"):
        resolve_options(EncoderOptions(pooling=Pooling.AUTO), Declared(pooling_name="max_tokens"))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (Declared(pooling=Pooling.MEAN, pooling_name="mean_tokens"), ["mean", "cls", "--pooling auto"]),
        (Declared(pooling_name="max_tokens"), ["max_tokens", "not available"]),
        (Declared(prompts={"passage": "passage: "}), ["passage=", "--doc-prompt"]),
        (Declared(modules=("Dense",)), ["Dense", "not applied"]),
        (Declared(lower_cases=True), ["lower-cased"]),
    ],
)
def test_each_departure_from_what_the_model_declares_is_one_line(declared: Declared, words: list[str]) -> None:
    (line,) = lint(declared, CONTRACT)
    assert "\n" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "declared",
    [
        Declared(),
        Declared(pooling=Pooling.CLS, pooling_name="cls_token"),
        Declared(prompts={"query": "query: ", "document": ""}),
        Declared(prompts={"query": "query: ", "classification": "classify: "}),
    ],
)
def test_a_model_used_as_it_declares_is_not_warned_of(declared: Declared) -> None:
    assert lint(declared, CONTRACT) == []


def test_any_prompt_counts_as_unused_where_none_is_used() -> None:
    bare = replace(CONTRACT, query_prompt="")
    assert "classification=" in lint(Declared(prompts={"classification": "classify: "}), bare)[0]


def test_declarations_are_read_from_the_files_of_sentence_transformers(tmp_path) -> None:
    assert read_declared(tmp_path) == Declared()
    module = "sentence_transformers.models"
    files = {
        "modules.json": [
            {"path": "", "type": f"{module}.Transformer"},
            {"path": "1_P", "type": f"{module}.Pooling"},
            {"path": "2_Dense", "type": f"{module}.Dense"},
            {"path": "3_Normalize", "type": f"{module}.Normalize"},
        ],
        "1_P/config.json": {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True, "include_prompt": True},
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": True},
        "tokenizer_config.json": {"model_max_length": 512},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    assert read_declared(tmp_path) == Declared(
        pooling=Pooling.LAST,
        pooling_name="lasttoken",
        prompts={"query": "q: "},
        modules=("Dense",),
        max_length_tokens=128,
        lower_cases=True,
    )
    (tmp_path / "sentence_bert_config.json").write_text("{")
    with pytest.raises(EncoderError, match="sentence_bert_config"):
        read_declared(tmp_path)


def test_the_canaries_are_eight_and_cover_what_breaks() -> None:
    assert len(set(CANARY_TEXTS)) == 8
    assert max(len(text.split()) for text in CANARY_TEXTS) > 256
    assert any(not any(character.isalnum() for character in text) for text in CANARY_TEXTS)
    assert any("今" in text for text in CANARY_TEXTS)
    assert any("🚀" in text for text in CANARY_TEXTS)
