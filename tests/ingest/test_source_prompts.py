"""Tasks in English: what each asks, its answer, and what its corrupt prompt takes away, whatever the tokenizer."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ingest.config import TokensConfig
from ingest.errors import SourceError
from ingest.models import toy
from ingest.sources import SOURCES
from ingest.sources.capital_of import CAPITALS
from ingest.sources.ioi import NAMES
from ingest.sources.prompts import Draw
from ingest.tasks import Pairing
from store.schema import subseed

KINDS = ("ioi", "greater_than", "gendered_pronoun", "capital_of", "colored_objects", "docstring")
HE_OR_SHE = {" he", " she"}


def source(kind, **settings):
    return SOURCES.get(kind)(**{"sequences": 40, **settings})


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def drawn(one, count):
    draw = Draw(subseed(7, "tests", 0))
    return [one.drawn(draw) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(kind):
    """A tokenizer that knows the task's words."""
    said = [f"{p.clean}{p.correct} {p.corrupt}{p.wrong}" for p in drawn(source(kind), 600)]
    if (
        kind == "greater_than"
    ):  # its digits by twos, as GPT-2 has them; whole years would be one token
        words = [re.sub(r" \d+", "", one) for one in said]
        twos = [f" {10 + n % 90}x{n % 100:02d}" for n in range(9000)]
        said = [*words, "".join(twos)]
    return toy.build_tokenizer("llama", "\n".join(said), vocab=1500, positions=128)


@pytest.fixture
def told(kind, tokenizer):
    """(clean, corrupt, correct, wrong) of some pairs, as text, and the pairs."""
    config = TokensConfig(source=source(kind))
    pairs = list(Pairing(config=config, tokenizer=tokenizer, context=128).pairs())
    assert len(pairs) == 40
    return [
        (
            tokenizer.decode(pair.clean[1:]),
            tokenizer.decode(pair.corrupt[1:]),
            *(tokenizer.decode([pair.answers[name]]) for name in ("correct", "wrong")),
        )
        for pair in pairs
    ], pairs


def check_ioi(clean, corrupt, correct, wrong):
    found = [name for name in re.findall(r"\w+", clean) if name in NAMES]
    assert found.count(correct.strip()) == 1
    assert found.count(wrong.strip()) == 2
    assert len({name for name in re.findall(r"\w+", corrupt) if name in NAMES}) == 3


def check_greater_than(clean, corrupt, correct, wrong):
    century, year, again = re.search(r"year (\d\d)(\d\d) to the year (\d\d)$", clean).groups()
    assert century == again
    assert int(wrong) < int(year) < int(correct)
    assert f"{century}01 to" in corrupt


def check_gendered_pronoun(clean, corrupt, correct, wrong):
    assert {correct, wrong} == HE_OR_SHE
    assert clean != corrupt
    assert re.search(r"(is|was)n't$", clean)


def check_capital_of(clean, corrupt, correct, wrong):
    (one,), (other,) = ([c for c in CAPITALS if c in text] for text in (clean, corrupt))
    assert (CAPITALS[one], CAPITALS[other]) == (correct.strip(), wrong.strip())


def check_colored_objects(clean, corrupt, correct, wrong):
    for text, color in ((clean, correct), (corrupt, wrong)):
        thing = re.search(r"color of the (\w+) is$", text)[1]
        assert f"a{color} {thing}" in text
    assert clean.split(".")[0] == corrupt.split(".")[0]


def check_docstring(clean, corrupt, correct, wrong):
    arguments = re.search(r"\((.*?)\)", clean)[1].split(", ")
    listed = re.findall(r":param (\w+):", clean)
    at = arguments.index(listed[-1])
    assert arguments[at + 1] == correct.strip()
    assert wrong.strip() in arguments[1:]
    assert not set(re.findall(r":param (\w+):", corrupt)) & set(arguments)


CHECKS = {name[6:]: check for name, check in dict(globals()).items() if name.startswith("check_")}


def test_every_pair_asks_what_it_says(kind, told):
    for texts in told[0]:
        CHECKS[kind](*texts)


def test_roles_are_equally_long_and_answers_are_tokens_behind_the_prompt(told, tokenizer):
    for (clean, _, correct, wrong), pair in zip(*told, strict=True):
        assert pair.clean.shape == pair.corrupt.shape
        assert (pair.clean != pair.corrupt).any()
        for name, text in (("correct", correct), ("wrong", wrong)):
            ids = tokenizer(clean + text, add_special_tokens=False)["input_ids"]
            assert ids == [*pair.clean[1:].tolist(), pair.answers[name]]
        assert pair.answers["correct"] != pair.answers["wrong"]


def test_pairs_are_a_function_of_seed_and_number(kind, tokenizer, told):
    def made(**settings):
        config = TokensConfig(source=source(kind, **settings))
        return list(Pairing(config=config, tokenizer=tokenizer, context=128).pairs())

    again, longer, moved = made(), made(sequences=50)[:40], made(seed=1)
    for one, other, more in zip(told[1], again, longer, strict=True):
        assert one.name == other.name == more.name
        assert np.array_equal(one.clean, other.clean)
        assert np.array_equal(one.corrupt, more.corrupt)
    assert any(
        a.clean.shape != b.clean.shape or (a.clean != b.clean).any()
        for a, b in zip(again, moved, strict=True)
    )
    assert len({tuple(pair.clean.tolist()) for pair in again}) > 10


def test_a_tokenizer_that_cannot_write_the_answers_is_refused(kind):
    bytes_alone = toy.build_tokenizer("llama", "x", vocab=257, positions=128)
    pairing = Pairing(config=TokensConfig(source=source(kind)), tokenizer=bytes_alone, context=128)
    with pytest.raises(SourceError, match=r"tokenizer-unfit.*larger vocabulary"):
        pairing.check()


def test_no_pairs_are_refused(kind):
    with pytest.raises(SourceError, match="bad-source"):
        source(kind, sequences=0)
