"""What stands around a text's own tokens: a tokenizer's special tokens, and where ``--bos`` puts them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ingest.config import TokensConfig
from ingest.contract import Array
from ingest.errors import IngestError, ModelError

_FLAGS = {"generation": "generate", "special_tokens": "no-special-tokens"}
_FEW_WORDS = 256  # fewer than the bytes a tokenizer of any text needs


@dataclass(frozen=True, kw_only=True, slots=True)
class Specials:
    """Tokens that stand before and behind others."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> Specials:
        """Return those a tokenizer puts around a text, found by encoding a word with and without.

        Raises
        ------
        ModelError
            ``tokenizer-unusual``: the word's tokens do not stand unchanged between them.
        """
        word = _a_word(tokenizer)
        plain = tokenizer(word, add_special_tokens=False)["input_ids"]
        framed = tokenizer(word)["input_ids"]
        for at in range(len(framed) - len(plain) + 1) if plain else ():
            if framed[at : at + len(plain)] == plain:
                return cls(prefix=tuple(framed[:at]), suffix=tuple(framed[at + len(plain) :]))
        raise ModelError(
            "the tokenizer changes a text's own tokens when it adds special ones; its rows could not be "
            "aligned. Nothing was written. Try --no-special-tokens.",
            kind="tokenizer-unusual",
        )

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)


def _a_word(tokenizer: Any) -> str:
    """Return a text that every tokenizer says, or one that this one does where it knows a few words only."""
    if getattr(tokenizer, "unk_token", "") is None and len(tokenizer) < _FEW_WORDS:
        special = set(tokenizer.all_special_tokens)
        return next((one for one in tokenizer.get_vocab() if one not in special), "a")
    return "a"


def special_ids(tokenizer: Any) -> Array:
    """Return the ids that are special wherever they stand, ``int64[N]``: all but that of unknown words."""
    names = ("bos_token_id", "eos_token_id", "sep_token_id", "pad_token_id", "cls_token_id")
    named = {getattr(tokenizer, name, None) for name in (*names, "mask_token_id")} - {None}
    unknown = {getattr(tokenizer, "unk_token_id", None)} - named
    return np.array(sorted(set(tokenizer.all_special_ids) - unknown), np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """What is put around documents, once, and around sequences, each."""

    document: Specials = Specials()
    sequence: Specials = Specials()

    @classmethod
    def of(cls, tokenizer: Any, config: TokensConfig) -> Framing:
        """Return the framing that ``bos``, ``packing`` and ``special_tokens`` come to.

        ========== ============================================= ================================================
        bos        documents apart (packing ``none``)            several in a sequence (packing ``fill``)
        ========== ============================================= ================================================
        auto       the tokenizer's own around every sequence     its own around every document; where it puts none,
                                                                 its end-of-text token before every document
        sequence   begin-of-text begins every sequence           the same, and every document
        document   begin-of-text begins every document           the same
        none       nothing                                       nothing
        ========== ============================================= ================================================

        Raises
        ------
        ModelError
            ``tokenizer-unusual``; ``no-bos``: the tokenizer has no such token.
        """
        packed = config.packing != "none"
        if not config.special_tokens or config.bos == "none":
            return cls()
        if config.bos != "auto":
            begin = Specials(prefix=(begin_of(tokenizer),))
            whole = config.bos == "document" or packed
            return cls(
                document=begin if whole else Specials(),
                sequence=begin if config.bos == "sequence" else Specials(),
            )
        own = Specials.of(tokenizer)
        if not packed:
            return cls(sequence=own)
        return cls(document=own if len(own) else Specials(prefix=(begin_of(tokenizer),)))


def begin_of(tokenizer: Any) -> int:
    """Return the token that begins a text: ``bos``, else ``cls``, else ``eos``.

    Raises
    ------
    ModelError
        ``no-bos``.
    """
    for name in ("bos_token_id", "cls_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    raise ModelError(
        "a token that begins a text was asked for, and the model's tokenizer has none: no bos, cls or eos token. Nothing was "
        "written. Use --bos none, or name one in its tokenizer_config.json.",
        kind="no-bos",
    )


def check_unframed(config: TokensConfig, what: str, *names: str) -> None:
    """Raise ``setting-unused`` where some settings were given to a source whose documents they do not touch."""
    for flag in ("packing", "bos", *names):
        value = getattr(config, flag)
        if value != next(one.default for one in fields(config) if one.name == flag):
            raise IngestError(
                f"--{_FLAGS.get(flag, f'{flag} {value}')} was said of the source {config.source.kind!r}, {what}. Nothing was "
                "written. Leave it out.",
                kind="setting-unused",
            )
