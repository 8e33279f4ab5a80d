"""Tasks: pairs of prompts as rows, their answers beside them, and gradients of what is answered."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import Vocabulary
from ingest.errors import IngestError, SourceError
from ingest.models import load, toy
from ingest.models.metrics import METRICS, Examples
from ingest.models.rules import RULES
from ingest.run import ingest, ingest_into
from ingest.sources import SOURCES
from ingest.tasks import ANSWERS, NAMES
from jobs.runtimes.in_process import InProcess
from store.purge import add_tombstone

SITE = "blocks.1.resid_pre"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.save("llama", tmp_path_factory.mktemp("llama"))


def induction(**settings):
    return SOURCES.get("induction")(**{"sequences": 9, "low": 4, "high": 9, **settings})


def pairs_of(source, tokens=320):
    held = Vocabulary(tokens=tokens, special=(0,), bos=0)
    return list(source.pairs(held, lambda _: np.empty(0, np.int32)))


def more_of(model, **more):
    """What another group of gradients over the same rows is asked for with."""
    usual = {"sites": (SITE,), "dtype": "float32", "gradient": "exact", "group": "g"}
    return HarvestConfig(model=str(model), **{**usual, **more})


def make(url, source, model, *, metric="logit_diff", gradient="exact", **tokens):
    """Make a store of a task's rows, and a group of gradients."""
    rows = TokensConfig(source=source, **{"part_rows": 256, **tokens})
    harvest = more_of(model, batch=3, gradient=gradient, metric=metric, group="acts")
    ingest(url, rows, harvest, runtime=InProcess())
    return store.open(url)


@pytest.mark.parametrize("corruption", ["key", "query"])
def test_a_corrupt_prompt_has_no_match_for_its_last_token(corruption):
    for pair in pairs_of(induction(sequences=40, corruption=corruption)):
        clean, corrupt = pair.clean.tolist(), pair.corrupt.tolist()
        at = clean[1:-1].index(clean[-1]) + 1  # the block's own copy of the last token
        assert clean[at + 1] == pair.answers["correct"]
        assert clean[:1] == corrupt[:1] == [0]
        (changed,) = np.flatnonzero(pair.clean != pair.corrupt)
        assert changed == (at if corruption == "key" else len(clean) - 1)
        assert corrupt[-1] not in corrupt[1:-1]
        assert pair.answers["wrong"] not in {*clean, *corrupt}
        assert corrupt[changed] not in clean


def test_pairs_are_a_function_of_seed_and_number():
    one, other = pairs_of(induction()), pairs_of(induction(sequences=20))[:9]
    for a, b in zip(one, other, strict=True):
        assert (a.name, a.clean.tolist(), a.answers) == (b.name, b.clean.tolist(), b.answers)
    moved = pairs_of(induction(seed=1))
    assert [p.clean.tolist() for p in moved] != [p.clean.tolist() for p in one]


def test_both_roles_of_a_pair_lie_side_by_side_in_one_part_with_their_answers(tmp_path, model):
    source = induction(sequences=40)
    made = make(tmp_path / "s", source, model)
    assert len(made.view.parts("tokens")) > 1
    data = made.arrow("sequences").to_pydict()
    assert data["role"] == ["clean", "corrupt"] * 40
    assert data["pair_id"] == [n for n in range(40) for _ in range(2)]
    first, rows = np.array(data["first_row"]), np.array(data["rows"])
    assert (rows[::2] == rows[1::2]).all()
    assert (first[::2] // made.part_stride == first[1::2] // made.part_stride).all()
    tokens = made.read("token_id")
    answers = {name: made.read(f"{ANSWERS}:{name}") for name in NAMES}
    last = np.cumsum(rows) - 1
    for number, pair in enumerate(pairs_of(source, len(load(str(model)).tokenizer))):
        for at, role in enumerate(("clean", "corrupt")):
            end = last[2 * number + at]
            assert (
                tokens[end - len(pair.clean) + 1 : end + 1].tolist() == getattr(pair, role).tolist()
            )
            assert {name: answers[name][end] for name in NAMES} == pair.answers
    others = np.delete(answers["correct"], last)
    assert (others == -1).all()
    documents = made.arrow("documents").to_pydict()
    assert documents["split"][::2] == documents["split"][1::2]
    assert store.verify(made).ok


def test_gradients_are_those_of_the_answer(tmp_path, model):
    """Sequence by sequence, by autograd from a leaf."""
    made = make(tmp_path / "s", induction(), model)
    loaded = load(str(model), dtype="float32")
    metric = METRICS.get("logit_diff")()
    data = made.arrow("sequences").to_pydict()
    answers = {name: made.read(f"{ANSWERS}:{name}") for name in NAMES}
    stored, at = made.read(f"acts:{SITE}"), 0
    tokens = made.read("token_id")
    for rows in data["rows"]:
        mine = slice(at, at + rows)
        at += rows
        ids = torch.from_numpy(tokens[mine]).long()[None]
        leaf = []

        def begin(value, leaf=leaf):
            leaf.append(value.detach().clone().requires_grad_())
            return leaf[0]

        with loaded.adapter.listen(SITE, begin):
            logits = loaded.model(input_ids=ids, use_cache=False).logits
        told = {name: torch.tensor([int(answers[name][at - 1])]) for name in NAMES}
        examples = Examples(ids=ids, mask=torch.ones_like(ids), answers=told)
        wanted = torch.autograd.grad(metric.value(logits, examples, None).sum(), leaf[0])[0][0]
        assert np.allclose(stored[mine], wanted.numpy(), rtol=2e-4, atol=1e-6)
        assert wanted.any()


def test_a_first_order_estimate_follows_from_stored_columns(tmp_path, model):
    """⟨a(clean) − a(corrupt), g(corrupt)⟩ at a site close to the logits is nearly what patching the site does."""
    source, url = induction(sequences=6, corruption="query"), tmp_path / "s"
    site = "blocks.1.mlp.out"
    rows = TokensConfig(source=source, part_rows=256)
    settings = {"model": str(model), "sites": (site,), "dtype": "float32", "batch": 3}
    ingest(url, rows, HarvestConfig(**settings), runtime=InProcess())
    grads = HarvestConfig(**settings, gradient="exact", metric="logit_diff", group="g")
    ingest_into(url, grads, runtime=InProcess())
    made, loaded = store.open(url), load(str(model), dtype="float32")
    values, slopes = made.read(f"acts:{site}"), made.read(f"g:{site}")
    lengths = made.arrow("sequences").to_pydict()["rows"]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens, metric = made.read("token_id"), METRICS.get("logit_diff")()
    for pair in range(6):
        clean, corrupt = (slice(*bounds[2 * pair + at : 2 * pair + at + 2]) for at in (0, 1))
        small = 1e-2  # of the way, so that the first order is nearly all
        estimate = small * float(((values[clean] - values[corrupt]) * slopes[corrupt]).sum())
        ids = torch.from_numpy(tokens[corrupt]).long()[None]
        told = {
            name: torch.tensor([int(made.read(f"{ANSWERS}:{name}")[bounds[2 * pair + 2] - 1])])
            for name in NAMES
        }
        examples = Examples(ids=ids, mask=torch.ones_like(ids), answers=told)

        def measured(share, ids=ids, clean=clean, corrupt=corrupt, examples=examples):
            step = torch.from_numpy(values[clean] - values[corrupt])[None] * share
            with loaded.adapter.listen(site, lambda value: value + step), torch.no_grad():
                logits = loaded.model(input_ids=ids, use_cache=False).logits
            return float(metric.value(logits, examples, None))

        found = measured(small) - measured(0.0)
        assert estimate == pytest.approx(found, rel=0.1, abs=1e-4)


def test_a_stopped_task_goes_on_to_the_same_digest(tmp_path, model, monkeypatch):
    from ingest import tasks

    whole = make(tmp_path / "whole", induction(sequences=40), model)
    put, calls = store.TokensWriter.put, []

    def failing(self, *rest, **more):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return put(self, *rest, **more)

    monkeypatch.setattr(store.TokensWriter, "put", failing)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "s", induction(sequences=40), model)
    monkeypatch.undo()
    monkeypatch.setattr(tasks, "column", _interrupted(tasks.column, 3))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "s", induction(sequences=40), model)
    monkeypatch.undo()
    made = make(tmp_path / "s", induction(sequences=40), model)
    assert made.digest() == whole.digest()


def _interrupted(call, at):
    calls = []

    def stopped(*rest):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return call(*rest)

    return stopped


LINES = [
    {"clean": "the river carried", "corrupt": "the river carried", "correct": " the", "wrong": 7},
    {"clean": [5, 6, 7], "corrupt": [5, 9, 7], "correct": 8, "wrong": 9},
]


def lines(tmp_path, some):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in some))
    return SOURCES.get("pairs")(paths=(str(path),))


def test_pairs_come_from_a_file_as_texts_and_as_ids(tmp_path, model):
    made = make(tmp_path / "s", lines(tmp_path, LINES), model)
    loaded = load(str(model))
    spelled = loaded.tokenizer("the river carried", add_special_tokens=False)["input_ids"]
    data = made.arrow("sequences").to_pydict()
    assert data["rows"] == [len(spelled) + 1] * 2 + [3, 3]
    tokens = made.read("token_id").tolist()
    assert tokens[: len(spelled) + 1] == [loaded.tokenizer.bos_token_id, *spelled]
    assert tokens[-6:] == [5, 6, 7, 5, 9, 7]
    (the,) = loaded.tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert made.read("answers:correct")[len(spelled)] == the
    assert made.read("answers:wrong")[-1] == 9


BAD = {
    "lengths": ({"clean": [5, 6]}, "prompts of 2 and 3 tokens"),
    "empty": ({"clean": []}, "neither a text nor"),
    "numbers": ({"clean": [1.5]}, "neither a text nor"),
    "answer": ({"correct": "several words here"}, "metrics compare single ones"),
    "answer-none": ({"wrong": ""}, "is no single token"),
    "answers-equal": ({"correct": 9}, "one token, 9, for correct and wrong"),
    "beyond-all": ({"clean": [10**25, 6, 7]}, "neither a text nor"),
    "far": ({"correct": 10**6}, "where the tokenizer has"),
    "negative": ({"clean": [5, -6, 7]}, "ids from -6"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_a_line_that_is_no_pair_is_refused_before_a_store_is_made(tmp_path, model, change, said):
    source = lines(tmp_path, [{**LINES[1], **change}])
    with pytest.raises(SourceError, match=said):
        make(tmp_path / "s", source, model)
    assert not (tmp_path / "s").exists()


SETTINGS = {
    "none": ({"sequences": 0}, "bad-source"),
    "one-token": ({"low": 1}, "bad-source"),
    "upside-down": ({"low": 9, "high": 4}, "bad-source"),
    "corruption": ({"corruption": "both"}, "bad-source"),
    "vocabulary": ({"high": 5000}, "vocabulary-too-small"),
}


@pytest.mark.parametrize(("settings", "kind"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_make_no_pair_are_refused(settings, kind):
    with pytest.raises(SourceError, match="Nothing was written") as caught:
        pairs_of(induction(**settings))
    assert caught.value.kind == kind


def test_limits_are_those_of_whole_pairs(tmp_path, model):
    with pytest.raises(SourceError, match="where a sequence has 5 at most"):
        make(
            tmp_path / "a",
            lines(tmp_path, [{"clean": [5] * 6, "corrupt": [6] * 6, "correct": 1, "wrong": 2}]),
            model,
            context=5,
        )
    with pytest.raises(SourceError, match="corpus-empty"):
        make(tmp_path / "b", lines(tmp_path, LINES[1:]), model, rows=5)
    made = make(tmp_path / "c", lines(tmp_path, LINES[1:] * 3), model, rows=13)
    assert len(made.row_ids()) == 12


def test_answers_are_asked_for_only_where_there_are_any(tmp_path, model):
    plain = SOURCES.get("repeats")(sequences=4, low=3, high=6)
    with pytest.raises(IngestError, match=r"metric-needs.*these rows have none"):
        make(tmp_path / "s", plain, model)
    assert not (tmp_path / "s").exists()
    made = make(tmp_path / "t", plain, model, metric="nll")
    wanted = more_of(model, metric="logit_diff")
    with pytest.raises(IngestError, match="these rows have none"):
        ingest_into(made.url, wanted, runtime=InProcess())
    with pytest.raises(IngestError, match="compares with another run"):
        make(tmp_path / "u", induction(), model, metric="kl_to_clean")


def test_points_between_the_prompts_of_a_pair_are_taken_of_them(tmp_path, model):
    """By hand, pair by pair, at batches that cut pairs apart."""
    made = make(tmp_path / "s", induction(), model, gradient="ig")
    loaded = load(str(model), dtype="float32")
    metric, rule = METRICS.get("logit_diff")(), RULES["ig"]
    lengths = made.arrow("sequences").to_pydict()["rows"]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens, stored = torch.from_numpy(made.read("token_id")).long(), made.read(f"acts:{SITE}")
    answers = {name: made.read(f"{ANSWERS}:{name}") for name in NAMES}
    for at in range(len(lengths)):
        ids, other = (tokens[bounds[n] : bounds[n + 1]][None] for n in (at, at ^ 1))
        told = {name: torch.tensor([int(answers[name][bounds[at + 1] - 1])]) for name in NAMES}
        examples = Examples(ids=ids, mask=torch.ones_like(ids), answers=told)
        found, _ = loaded.adapter.gradients(
            ids,
            torch.ones_like(ids),
            [SITE],
            lambda logits, examples=examples: metric.value(logits, examples, None),
            rule,
            other,
        )
        wanted = found[SITE][0].numpy()
        assert np.allclose(stored[bounds[at] : bounds[at + 1]], wanted, rtol=1e-3, atol=1e-5)


def test_rules_that_take_points_between_need_pairs_that_are_whole(tmp_path, model):
    plain = SOURCES.get("repeats")(sequences=4, low=3, high=6)
    with pytest.raises(IngestError, match=r"rule-needs.*rows of a task"):
        make(tmp_path / "s", plain, model, metric="nll", gradient="ig")
    made = make(tmp_path / "t", induction(), model)
    add_tombstone(made, [3], "one half")
    wanted = HarvestConfig(
        model=str(model),
        sites=(SITE,),
        dtype="float32",
        gradient="ig",
        metric="logit_diff",
        group="g",
    )
    with pytest.raises(SourceError, match=r"bad-pair.*without the other of their pair"):
        ingest_into(made.url, wanted, runtime=InProcess())
    add_tombstone(made.refresh(), [2], "the other half")
    ingest_into(made.url, wanted, runtime=InProcess())
    left = store.open(made.url)
    whole = make(tmp_path / "u", induction(), model, gradient="ig")
    assert 0 < len(left.row_ids()) < len(whole.row_ids())
    assert np.array_equal(left.read(f"g:{SITE}"), whole.gather(f"acts:{SITE}", left.row_ids()))


def test_answers_are_completed_after_a_removal(tmp_path, model, monkeypatch):
    from ingest import run

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_answers", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "s", induction(), model)
    monkeypatch.undo()
    wanted = more_of(model, metric="logit_diff")
    with pytest.raises(IngestError, match="where its ingest was not finished, run that again"):
        ingest_into(tmp_path / "s", wanted, runtime=InProcess())
    add_tombstone(store.open(tmp_path / "s"), [2, 3], "asked to")
    made, whole = make(tmp_path / "s", induction(), model), make(tmp_path / "t", induction(), model)
    ids = made.row_ids()
    assert 0 < len(ids) < len(whole.row_ids())
    for name in ("answers:correct", "answers:wrong"):
        assert np.array_equal(made.read(name), whole.gather(name, ids))


def test_a_prompt_of_one_token_has_an_answer_behind_it(tmp_path, model):
    one = {"clean": [5], "corrupt": [6], "correct": 8, "wrong": 9}
    made = make(tmp_path / "s", lines(tmp_path, [one]), model)
    assert np.abs(made.read(f"acts:{SITE}")).sum(1).all()


def test_a_task_as_long_as_the_model_takes_is_made_and_a_longer_one_refused_at_once(
    tmp_path, model
):
    long = SOURCES.get("needle")(sequences=2, length=60)
    made = make(tmp_path / "s", long, model)
    assert made.arrow("sequences").to_pydict()["rows"] == [60] * 4
    with pytest.raises(IngestError, match=r"context-too-long.*64 positions"):
        make(tmp_path / "t", induction(high=60), model)
    with pytest.raises(IngestError, match="context-too-short"):
        make(tmp_path / "u", long, model, context=40)
    assert not (tmp_path / "t").exists()


def test_the_name_of_the_answers_is_taken(tmp_path, model):
    rows = TokensConfig(source=induction(), part_rows=256)
    harvest = HarvestConfig(model=str(model), sites=(SITE,), dtype="float32", group=ANSWERS)
    with pytest.raises(IngestError, match="name-taken"):
        ingest(tmp_path / "s", rows, harvest, runtime=InProcess())
    assert not (tmp_path / "s").exists()
    with pytest.raises(IngestError, match="setting-unused"):
        make(tmp_path / "t", induction(), model, special_tokens=False)


def test_a_group_that_happens_to_be_called_so_is_none(tmp_path, model):
    plain = SOURCES.get("repeats")(sequences=4, low=3, high=6)
    made = make(tmp_path / "s", plain, model, metric="nll")
    with made.writer(ANSWERS, columns={"y": "int32"}, recipe={}) as writer:
        writer.put(made.row_ids(), {"y": np.zeros(len(made.row_ids()), np.int32)})
    wanted = more_of(model)
    ingest_into(made.url, wanted, runtime=InProcess())
    assert np.array_equal(store.open(made.url).read(f"g:{SITE}"), made.read(f"acts:{SITE}"))
