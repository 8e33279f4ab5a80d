"""A store of texts with everything features read: tokens, dense columns, a sample, codes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
import torch

import store
from ingest.config import TokensConfig
from ingest.contract import SourceDocument
from ingest.models.toy import TEXT, build_tokenizer
from ingest.tokens import Tokenizing
from jobs.codebook import Codebook
from jobs.features import encode

NUMBER = count()
WIDTH, LATENTS = 16, 40


@dataclass(frozen=True)
class Documents:
    """A source made of texts."""

    texts: tuple[str, ...]
    kind = "documents"

    def inputs(self):
        return {}

    def documents(self):
        for number, text in enumerate(self.texts):
            if text:
                yield SourceDocument(name=f"d{number}", text=text)


CORPUS = tuple(
    f"{n} boats 日本 👩‍👩‍👧 on the river\r\n" + TEXT[n * 13 : n * 13 + 40 + 11 * n]
    for n in range(24)
)


@pytest.fixture(scope="session")
def tokenizers():
    return {name: build_tokenizer(name) for name in ("bert", "gpt2")}


@pytest.fixture(scope="session")
def make_tokens(tokenizers):
    """Return a function that makes a store of texts."""

    def make(texts, *, url=None, tokenizer="bert", context=24, **options):
        made = store.create(url or f"memory://features-{next(NUMBER)}", part_rows=256)
        config = TokensConfig(source=Documents(tuple(texts)), **options)
        cut = Tokenizing(
            config=config, source=config.source, tokenizer=tokenizers[tokenizer], context=context
        )
        cut.write(made.writer("tokens", recipe={"of": "tests"}), lambda *_: None)
        return made.refresh()

    return make


@pytest.fixture(scope="session")
def codebook():
    """A dictionary of random directions whose latents are on in about a fifth of all rows."""
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=generator), dim=1)
    return Codebook(w.T, torch.zeros(LATENTS), w, torch.zeros(WIDTH), 0.9, {"site": "acts:h.1"})


def put(held, name, columns, values, ids=None, **options):
    """Write a group in one go and return the store as it is then."""
    ids = held.row_ids() if ids is None else ids
    with held.writer(name, columns=columns, recipe={"of": name}, **options) as writer:
        for part in np.unique(ids // held.part_stride):
            mine = ids // held.part_stride == part
            writer.put(ids[mine], {key: value[mine] for key, value in values.items()})
    return held.refresh()


@pytest.fixture(scope="session")
def held(make_tokens, codebook, tmp_path_factory):
    """A store on disk: ``acts`` (dense and scalar), ``grad.x-1`` (dotted name), ``sample`` (masked), ``codes``."""
    made = make_tokens(CORPUS, url=tmp_path_factory.mktemp("features") / "store")
    rng = np.random.default_rng(1)
    ids = made.row_ids()
    h = rng.standard_normal((len(ids), WIDTH)).astype(np.float32)
    wide = rng.standard_normal((len(ids), 2, 8)).astype(np.float32)
    loss = rng.random(len(ids)).astype(np.float32)
    columns = {
        "h.1": f"bfloat16[{WIDTH}]",
        "wide": "float16[2,8]",
        "loss": "float32",
        "pair": "int16[2]",
    }
    pair = rng.integers(-9, 9, (len(ids), 2)).astype(np.int16)
    made = put(made, "acts", columns, {"h.1": h, "wide": wide, "loss": loss, "pair": pair})
    made = put(made, "grad.x-1", {"h.1": f"float32[{WIDTH}]"}, {"h.1": h})
    some = np.sort(rng.choice(len(ids), len(ids) // 3, replace=False))
    made = put(
        made, "sample", {"s": f"float32[{WIDTH}]"}, {"s": h[some]}, ids=ids[some], masked=True
    )
    made = put(made, "act", {"score": "float64"}, {"score": loss.astype(np.float64)})
    encode(made, "acts:h.1", codebook, "codes")
    return made.refresh()
