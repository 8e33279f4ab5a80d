"""Rows a model wrote: what it says is what it says, step by step, and any death leaves the same store."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import IngestError
from ingest.generating import Generating, steps
from ingest.generation import Generation
from ingest.models import load, toy
from ingest.planning import plan
from ingest.run import ingest
from ingest.sources import SOURCES
from ingest.tokens import Tokenizing
from jobs.runtimes.in_process import InProcess
from store.compact import compact
from store.purge import add_tombstone, purge
from store.tokens import FLAG_GENERATED

NUMBER = count()
CONTEXT, NEW = 24, 9


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request, tmp_path_factory):
    return load(toy.save(request.param, tmp_path_factory.mktemp("m"), seed=3), dtype="float32")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(9):
        (folder / f"{number}.txt").write_text(toy.TEXT[17 * number :][: 20 + 13 * number])
    return str(folder)


def texts(corpus):
    return SOURCES.get("text")(paths=(corpus,))


def generating(loaded, corpus, **options):
    generation = Generation(tokens=NEW, batch=4, **options)
    config = TokensConfig(source=texts(corpus), generation=generation)
    prompts = Tokenizing(
        config=config,
        source=config.source,
        tokenizer=loaded.tokenizer,
        context=CONTEXT - NEW,
        open_ended=True,
    )
    return Generating(prompts=prompts, loaded=loaded, generation=generation)


def logits_of(loaded, ids):
    with torch.inference_mode():
        return loaded.model(input_ids=torch.tensor(ids)[None]).logits[0].double()


def test_the_most_likely_token_follows_each_time(loaded, corpus):
    made = generating(loaded, corpus)
    prompts = [one for one, _ in made.prompts.sequences(None)]
    found = [one for one, _ in made.sequences(None)]
    assert len(found) == len(prompts) > 8
    end = loaded.tokenizer.eos_token_id
    for prompt, sequence in zip(prompts, found, strict=True):
        ids = sequence.token_ids.tolist()
        told = len(prompt)
        assert ids[:told] == prompt.token_ids.tolist()
        said = ids[told:]
        assert 1 <= len(said) <= NEW
        assert len(said) == NEW or said[-1] == end
        assert end not in said[:-1]
        logits = logits_of(loaded, ids)
        for at in range(told, len(ids)):
            before = logits[at - 1]
            # The likeliest, but for a tie within what float32 leaves of a logit.
            assert (
                before.max() - before[ids[at]]
                <= torch.finfo(torch.float32).eps * 64 * before.abs().max()
            )
        assert ((sequence.flags & FLAG_GENERATED) != 0).tolist() == [
            at >= told for at in range(len(ids))
        ]
        assert (sequence.char_start[told:] == -1).all()
        sequence.check()


def test_a_checkpoints_own_settings_change_nothing(loaded, corpus):
    wanted = [one.token_ids.tolist() for one, _ in generating(loaded, corpus).sequences(None)]
    own = loaded.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size = 5.0, 1
    try:
        got = [one.token_ids.tolist() for one, _ in generating(loaded, corpus).sequences(None)]
    finally:
        own.repetition_penalty, own.no_repeat_ngram_size = None, None
    assert got == wanted
    assert loaded.model.generation_config is own


def test_draws_follow_from_the_seed_and_leave_the_global_generator_alone(loaded, corpus):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, again, other = (
        [
            s.token_ids.tolist()
            for s, _ in generating(loaded, corpus, temperature=1.0, seed=seed).sequences(None)
        ]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draws_come_from_the_models_own_distribution(loaded, tmp_path):
    for number in range(400):
        (tmp_path / f"{number:03}.txt").write_text("the mill")
    made = generating(loaded, str(tmp_path), temperature=1.0)
    made.generation = Generation(tokens=1, temperature=1.0, batch=100)
    drawn = [s.token_ids.tolist() for s, _ in made.sequences(None)]
    prompt = drawn[0][:-1]
    chances = logits_of(loaded, prompt)[-1].softmax(-1)
    likely = int(chances.argmax())
    share = np.mean([one[-1] == likely for one in drawn])
    chance = float(chances[likely])
    assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / 400) + 1e-9


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_writer_that_dies_anywhere_leaves_the_same_rows(loaded, corpus, temperature):
    class DiedError(Exception):
        pass

    def write(into, at=None):
        calls = count(1)

        def progress(*_):
            if next(calls) == at:
                raise DiedError

        made = generating(loaded, corpus, temperature=temperature)
        made.write(into.writer("tokens", recipe={"of": "tests"}), progress)
        return into.refresh()

    def new():
        return store.create(f"memory://generating-{next(NUMBER)}", part_rows=256)

    undisturbed = write(new())
    for at in (2, 5, 9):
        into = new()
        with pytest.raises(DiedError):
            write(into, at)
        assert write(into).digest() == undisturbed.digest()


def test_going_on_from_any_sequence_gives_the_rest(loaded, corpus):
    whole = list(generating(loaded, corpus, temperature=0.7).sequences(None))
    for at in range(len(whole)):
        rest = list(generating(loaded, corpus, temperature=0.7).sequences(whole[at][1]))
        assert [p for _, p in rest] == [p for _, p in whole[at + 1 :]]
        for (one, _), (two, _) in zip(rest, whole[at + 1 :], strict=True):
            assert one.token_ids.tolist() == two.token_ids.tolist()


def test_a_store_holds_steps_and_what_each_token_was_given(tmp_path, loaded, corpus):
    tokens = TokensConfig(
        source=texts(corpus),
        context=CONTEXT,
        part_rows=256,
        generation=Generation(tokens=NEW, batch=4),
    )
    sites = ("blocks.0.resid_post", "logprob", "loss")
    harvest = HarvestConfig(model=loaded.name, sites=sites, dtype="float32", batch=4)
    planned = plan(tokens, harvest)
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess())
    held = store.open(tmp_path / "s")
    rows = {name: np.array(v) for name, v in held.arrow("tokens").to_pydict().items()}
    step = np.array(held.arrow("generated").column("step").to_pylist())
    logprob = np.array(held.arrow("acts").column("logprob").to_pylist(), float)
    loss = np.array(held.arrow("acts").column("loss").to_pylist(), float)
    np.testing.assert_array_equal(logprob, -loss)
    made = (rows["flags"] & FLAG_GENERATED) != 0
    assert ((step >= 0) == made).all()
    for first in np.unique(rows["seq_id"]):
        mine = rows["seq_id"] == first
        ids = rows["token_id"][mine].tolist()
        said = step[mine][step[mine] >= 0]
        assert said.tolist() == list(range(len(said)))
        logs = logits_of(loaded, ids).log_softmax(-1)
        for at, one in enumerate(np.flatnonzero(mine)):
            if step[one] >= 0:
                assert logprob[one] == pytest.approx(float(logs[at - 1, ids[at]]), abs=1e-4)
    assert held.coverage["acts"].rows == len(step) <= planned.rows
    assert store.verify(held).ok
    before = held.digest()
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess())
    assert store.open(tmp_path / "s").digest() == before
    recipe = held.groups["tokens"].recipe["generated"]
    assert recipe["tokens"] == NEW
    assert recipe["model"]["family"] == loaded.adapter.family


def test_steps_are_counted_in_each_sequence():
    flags = np.array([0, 8, 8, 0, 0, 8, 0, 8])
    seq = np.array([5, 5, 5, 8, 8, 8, 20, 20])
    assert steps(flags, seq).tolist() == [-1, 0, 1, -1, -1, 0, -1, 0]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"tokens": 0}, "bad-number"),
        ({"tokens": 4, "temperature": -1.0}, "bad-number"),
        ({"tokens": 4, "temperature": float("nan")}, "bad-number"),
    ],
)
def test_settings_that_mean_nothing(options, kind):
    with pytest.raises(IngestError, match=kind):
        Generation(**options)


def test_what_cannot_go_on_is_refused(tmp_path, corpus):
    url = tmp_path / "s"
    for model, more, kind in (
        ("bert", {}, "not-causal"),
        ("llama", {"context": 8}, "context-too-short"),
        ("llama", {"packing": "fill"}, "setting-unused"),
        ("llama", {"source": SOURCES.get("induction")()}, "setting-unused.*--generate"),
    ):
        folder = toy.save(model, tmp_path / model)
        tokens = TokensConfig(
            **{"source": texts(corpus), "generation": Generation(tokens=8), **more}
        )
        with pytest.raises(IngestError, match=kind):
            ingest(url, tokens, HarvestConfig(model=str(folder)), runtime=InProcess())
    assert not url.exists()


def test_dialogues_that_go_on_have_roles_and_steps(tmp_path, loaded):
    import json
    import shutil

    model = Path(shutil.copytree(loaded.folder, tmp_path / "m"))
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    lines = [{"messages": [{"role": "user", "content": f"the mill {n}"}]} for n in range(5)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = SOURCES.get("chats")(paths=(str(tmp_path / "c.jsonl"),))
    tokens = TokensConfig(source=source, context=40, generation=Generation(tokens=4))
    harvest = HarvestConfig(model=str(model), sites=("embed",), dtype="float32")
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess())
    held = store.open(tmp_path / "s")
    assert {"roles", "generated"} <= set(held.groups)
    assert max(held.arrow("generated").column("step").to_pylist()) == 3


def test_documents_that_are_not_cut_get_room_for_what_follows(tmp_path, loaded):
    source = SOURCES.get("repeats")(low=8, high=8, sequences=4)
    tokens = TokensConfig(source=source, generation=Generation(tokens=5))
    harvest = HarvestConfig(model=loaded.name, sites=("embed",), dtype="float32")
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess())
    rows = store.open(tmp_path / "s").arrow("sequences").column("rows").to_pylist()
    assert len(rows) == 4
    assert all(source.longest < one <= source.longest + 5 for one in rows)
    short = TokensConfig(source=source, generation=Generation(tokens=5), context=source.longest + 4)
    with pytest.raises(IngestError, match="context-too-short"):
        ingest(tmp_path / "t", short, harvest, runtime=InProcess())


def test_rows_count_what_was_generated(loaded, corpus):
    made = generating(loaded, corpus)
    made.prompts.config = replace(made.prompts.config, rows=70)
    assert 40 < sum(len(one) for one, _ in made.sequences(None)) <= 70


def test_stores_with_gaps_in_their_columns_are_purged_and_compacted(tmp_path, loaded, corpus):
    tokens = TokensConfig(source=texts(corpus), context=CONTEXT, part_rows=256)
    harvest = HarvestConfig(model=loaded.name, sites=("loss",), dtype="float32")
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess())
    held = store.open(tmp_path / "s")
    compact(held)
    held = store.open(tmp_path / "s")
    assert store.verify(held).ok
    add_tombstone(held, [3], "asked to")
    purge(store.open(tmp_path / "s"), "asked to")
    left = store.open(tmp_path / "s")
    assert store.verify(left).ok
    assert 3 not in left.arrow("documents").column("doc_id").to_pylist()
