"""Tiny models with random weights, on disk, for tests: real architectures, real tokenizers, no download."""

from __future__ import annotations

import json
from pathlib import Path

_TEXT = (
    "the a an of to and in is was for on that with as it at by from are this be or which have not but had they you his "
    "her one we all their there been if more when will would who so no out up into than them can only other new some "
    "could time these two may then do first any my now such like our over man me even most made after also did many "
    "before must through back years where much your way well down should because each just those people how too little "
    "state good very make world still own see men work long get here between both life being under never day same "
    "another know while last might us great old year off come since against go came right used take three card works "
    "abroad bank money travel wing flow pressure heat boundary layer speed shock lift drag cat sat mat dog ran storm"
)
WORDS = _TEXT.split()
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?-+()[]{}'\"/%=_#*&@"

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_POSITIONS = {"max_position_embeddings": 64}
# What each family needs besides the sizes; ids of the special tokens follow the padding id.
FAMILIES: dict[str, dict[str, object]] = {
    "bert": {**_SIZES, **_POSITIONS, "pad_token_id": 0},
    "roberta": {
        **_SIZES,
        "max_position_embeddings": 66,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "xlm-roberta": {**_SIZES, "max_position_embeddings": 66, "pad_token_id": 1, "type_vocab_size": 1},
    "mpnet": {**_SIZES, "max_position_embeddings": 66, "pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, **_POSITIONS, "pad_token_id": 0},
    "electra": {**_SIZES, **_POSITIONS, "embedding_size": 16, "pad_token_id": 0},
    "albert": {**_SIZES, **_POSITIONS, "embedding_size": 16, "pad_token_id": 0},
    "deberta-v2": {
        **_SIZES,
        **_POSITIONS,
        "pad_token_id": 0,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 16,
        "share_att_key": True,
    },
    "modernbert": {
        **_SIZES,
        **_POSITIONS,
        "num_hidden_layers": 4,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
    },
}


def build_model(
    directory: Path,
    family: str = "bert",
    *,
    seed: int = 0,
    lowercase: bool = True,
    special_first: bool = True,
    declares: dict[str, object] | None = None,
    **changes: object,
) -> Path:
    """Write a tiny model and return its directory.

    `special_first` False leaves [CLS] and [SEP] out; `declares` maps file names to JSON that the model's files declare;
    `changes` go into its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    directory.mkdir(parents=True, exist_ok=True)
    settings = {**FAMILIES[family], **changes}
    vocabulary = _write_tokenizer(directory, int(str(settings["pad_token_id"])), lowercase, special_first)
    config = AutoConfig.for_model(family, vocab_size=len(vocabulary), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).eval()
        for name, parameter in model.named_parameters():
            # Random weights as they are would give much the same vector for every text.
            scale = 0.1 if name.endswith("bias") else 0.3
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.data.copy_(torch.randn_like(parameter) * scale)
    model.save_pretrained(directory)
    for name, content in (declares or {}).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def stored_as(dtype: str, directory: Path) -> Path:
    """Write the weights of a model anew in another number format of torch and return its directory."""
    import torch
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    weights = {name: value.to(getattr(torch, dtype)) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    return directory


def declared_pooling(mode: str, **more: object) -> dict[str, object]:
    """Return the `declares` of a sentence-transformers model with this pooling and further files."""
    kind = "sentence_transformers.models"
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 32, f"pooling_mode_{mode}": True},
        **more,
    }


def _write_tokenizer(directory: Path, pad_id: int, lowercase: bool, special_first: bool) -> dict[str, int]:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    special.insert(pad_id, "[PAD]")
    pieces = [*special, *WORDS, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    if special_first:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
    # As many published ones do, the file asks for truncation and padding of its own.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=pad_id, pad_token="[PAD]")
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 64,
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return vocabulary
