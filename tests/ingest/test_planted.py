"""Planted models: their weights, their names, their tokenizers, and the circuits that form in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import ModelError, SourceError
from ingest.models import load
from ingest.models.facts import ModelFacts
from ingest.models.planted import PLANTED, planted_folder
from ingest.models.planted.backcopy import BackcopyModel, loss_behind_triggers
from ingest.models.planted.compiled_induction import CompiledInduction
from ingest.models.planted.trained_induction import TrainedInduction, losses_by_copy
from ingest.models.planted.training import trained
from ingest.run import ingest, ingest_into
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

F1 = "planted:compiled_induction"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of the test's own: planted models are kept below it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_compiled_weights_are_those_of_the_plain_form(oracle):
    f1 = oracle("compiled_induction")
    model = CompiledInduction().build()
    rng = np.random.default_rng(0)
    for ids in (*f1.repeated(rng, 12, 3), *f1.pair_c1(rng)[:2]):
        with torch.inference_mode():
            got = model(input_ids=torch.from_numpy(ids)[None]).logits[0]
        wanted = f1.forward(f1.weights(), ids).logits
        # the heads of noise write to junk, which the unembedding does not read
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-3)


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_it_is_loaded_by_name_once_a_machine(home, how):
    one = load(F1, dtype="float32", attn_implementation=how)
    (folder,) = (home / ".cache" / "actlake" / "planted").iterdir()
    assert one.folder == folder
    written = (folder / "model.safetensors").stat().st_mtime_ns
    again = load(F1, dtype="float32")
    assert again.files == one.files
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    ids = one.tokenizer("t3 t5 t7")["input_ids"]
    assert ids == [16, 3, 5, 7]
    assert one.tokenizer.decode(ids[1:]) == "t3 t5 t7"
    facts, _ = ModelFacts.of_folder(folder)
    assert facts == ModelFacts.of(one.adapter)


def test_other_settings_are_another_folder(tmp_path):
    one, other = (planted_folder(f"{F1}:seed={seed}", tmp_path) for seed in (0, 1))
    assert one != other
    assert planted_folder(F1, tmp_path) == one
    truths = [json.loads((folder / "truth.json").read_text()) for folder in (one, other)]
    assert [truth["model"]["seed"] for truth in truths] == [0, 1]
    assert truths[0]["heads"]["decoy"] == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([one.name, other.name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("planted:nothing", "unknown-name.*compiled_induction"),
        ("planted:", "unknown-name.*compiled_induction"),
        (f"{F1}:sed=1", "bad-model.*seed"),
        (f"{F1}:seed=one", "bad-model.*whole numbers"),
        (f"{F1}:seed", "bad-model.*seed"),
        (f"{F1}:seed=-1", "bad-model.*from 0 on"),
        (f"{F1}:seed=99999999999999999999", "bad-model.*below"),
        (f"{F1}:seed=1,seed=2", "bad-model.*once"),
    ],
)
def test_names_that_are_none_are_refused(tmp_path, name, said):
    with pytest.raises(ModelError, match=said):
        planted_folder(name, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_stored_columns_have_the_closed_forms(home, tmp_path):
    """Attribution from a store alone: 20/17 too large at the corrupt point, and nothing at the clean one."""
    source = SOURCES.get("induction")(sequences=6, low=8, high=8)
    tokens = TokensConfig(source=source, context=33)
    harvest = HarvestConfig(model=F1, sites=("blocks.*.attn.z",), dtype="float32")
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess())
    grad = HarvestConfig(
        model=F1, sites=("blocks.*.attn.z",), dtype="float32", gradient="exact", metric="logit_diff",
        group="grad.exact.logit_diff",
    )  # fmt: skip
    ingest_into(tmp_path / "s", grad, runtime=InProcess())
    made = store.open(tmp_path / "s")
    truth = json.loads(made.asset(made.view.commit("acts", 0).provenance["truth"])["truth.json"])
    sequences = made.arrow("sequences").to_pydict()
    first, rows = (np.array(sequences[name]) for name in ("first_row", "rows"))
    z = [made.read(f"acts:blocks.{layer}.attn.z", slice(None)) for layer in range(2)]
    g = [made.read(f"grad.exact.logit_diff:blocks.{layer}.attn.z", slice(None)) for layer in (0, 1)]
    roles = np.array(sequences["role"])
    clean, corrupt = np.flatnonzero(roles == "clean"), np.flatnonzero(roles == "corrupt")
    layer, head = truth["heads"]["induction"]
    for one, other in zip(clean, corrupt, strict=True):
        ours = slice(first[one], first[one] + rows[one])
        theirs = slice(first[other], first[other] + rows[other])
        n = rows[one]  # keys that even attention is spread over
        change = z[layer][ours][-1] - z[layer][theirs][-1]
        effect = (change * g[layer][theirs][-1]).sum(-1)
        assert effect[truth["heads"]["decoy"][1]] == 0
        assert abs(effect[truth["heads"]["echo"][1]]) < 1e-5
        whole = truth["gain"] * (
            1 - 1 / n
        )  # what attending to the match gives the answer over even attention
        assert effect[head] == pytest.approx(whole, rel=0.02)
        previous = z[0][ours] - z[0][theirs]
        for rows_of, point in ((theirs, "corrupt"), (ours, "clean")):
            found = (previous * g[0][rows_of]).sum((0, -1))[0]
            if point == "corrupt":
                assert found / whole == pytest.approx(20 / n, rel=0.02)
            else:
                assert abs(found) < 1e-3 * whole


def test_a_run_of_fewer_steps_is_the_beginning_of_a_longer_one():
    """Checkpoints of one training: the fixture F8."""
    three, five = (TrainedInduction(steps=steps).build() for steps in (3, 5))
    seen = {}

    def draw(step, count):
        if step == 3:
            seen.update({name: value.clone() for name, value in again.state_dict().items()})
        return TrainedInduction(steps=5).draw(step, count)

    from ingest.models.planted.network import PlainForCausalLM

    again = PlainForCausalLM(three.config)
    trained(again, draw, steps=5, batch=64, rate=1e-3)
    for name, value in three.state_dict().items():
        assert torch.equal(seen[name], value), name
        assert torch.equal(again.state_dict()[name], five.state_dict()[name]), name


def test_training_neither_uses_nor_moves_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = TrainedInduction(steps=1).build().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = TrainedInduction(steps=1).build().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_repeats_are_drawn_as_said():
    ids = TrainedInduction().draw(0, 200).numpy()
    periods = set()
    for row in ids:
        text = row[row >= 0]
        assert text[0] == 32
        period = (len(text) - 1) // 2
        assert np.array_equal(text[1 : 1 + period], text[1 + period :])
        assert len(set(text[1 : 1 + period])) == period
        periods.add(period)
    assert periods == set(range(8, 25))


@pytest.mark.slow
def test_induction_forms_in_the_trained_model():
    """Within 3 seeds at most, as the specification allows a fixture that does not form."""
    early = TrainedInduction(steps=40)
    first, second = losses_by_copy(early.build(), early)
    assert second > 3
    for seed in range(3):
        config = TrainedInduction(steps=400, seed=seed)
        first, second = losses_by_copy(config.build(), config)
        if second < 1:
            break
    assert first > 3
    assert second < 1


@pytest.mark.slow
def test_copying_forms_behind_triggers():
    config = BackcopyModel(steps=250)
    assert loss_behind_triggers(config.build(), config) < 0.3


def test_texts_of_the_backcopy_process_follow_it(home):
    source = SOURCES.get("backcopy")(sequences=300)
    vocabulary = type("V", (), {"tokens": 33, "special": (32,), "bos": 32})()
    process = source.process
    triggers = set(process.trigger_symbols.tolist())
    follows = np.zeros((32, 32))
    names = set()
    for document in source.token_documents(vocabulary):
        ids = document.token_ids
        names.add(document.name)
        assert ids[0] == 32
        assert ids[1] not in triggers
        assert len(ids) == 64
        for before, now, after in zip(ids[1:], ids[2:], ids[3:], strict=False):
            if now in triggers:
                assert after == before
            else:
                follows[now, after] += 1
    assert len(names) == 300
    counts = follows.sum(1)
    often = counts > 300
    assert often.sum() > 5
    error = np.abs(follows[often] / counts[often, None] - process.table[often]).max()
    assert error < 0.12
    np.testing.assert_allclose(process.shares @ process.table, process.shares, atol=1e-9)


def test_a_tokenizer_that_cannot_say_the_symbols_is_refused():
    source = SOURCES.get("backcopy")()
    for tokens, bos, kind in ((33, None, "no-bos"), (20, 19, "vocabulary-too-small")):
        vocabulary = type("V", (), {"tokens": tokens, "special": (tokens - 1,), "bos": bos})()
        with pytest.raises(SourceError, match=kind):
            next(iter(source.token_documents(vocabulary)))
    with pytest.raises(SourceError, match="bad-source"):
        SOURCES.get("backcopy")(triggers=32)


def test_what_a_source_is_drawn_from_lies_beside_its_rows(home, tmp_path):
    folder = planted_folder("planted:backcopy:steps=1")
    source = SOURCES.get("backcopy")(sequences=4)
    harvest = HarvestConfig(model=str(folder), sites=("blocks.0.attn.z",), dtype="float32")
    ingest(tmp_path / "s", TokensConfig(source=source, context=64), harvest, runtime=InProcess())
    made = store.open(tmp_path / "s")
    truths = [made.view.commit(group, 0).provenance["truth"] for group in ("tokens", "acts")]
    of_source, of_model = (json.loads(made.asset(truth)["truth.json"]) for truth in truths)
    assert of_model["process"] == of_source
    assert len(of_source["triggers"]) == 3


def test_each_planted_model_says_what_it_is():
    for name in PLANTED.names():
        config = PLANTED.get(name)()
        assert config.__doc__
        assert config.version >= 1
        assert json.dumps(config.truth())


def test_how_many_threads_there_are_changes_no_weight():
    states = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            states.append(BackcopyModel(steps=4).build().state_dict())
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "lost", ["config.json", "model.safetensors", "tokenizer.json", "truth.json"]
)
def test_a_folder_that_is_damaged_is_made_again(tmp_path, lost):
    place = planted_folder(F1, tmp_path)
    (place / lost).unlink()
    assert planted_folder(F1, tmp_path) == place
    assert (place / lost).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_another_process_may_be_faster(tmp_path, monkeypatch):
    import ingest.models.planted.contract as module

    own = module._write

    def slow(model, settings, folder):
        own(model, settings, folder)
        monkeypatch.setattr(module, "_write", own)
        planted_folder(F1, tmp_path)  # meanwhile

    monkeypatch.setattr(module, "_write", slow)
    place = planted_folder(F1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_a_place_that_takes_nothing_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"planted-cache.*Nothing was loaded"):
        planted_folder(F1, tmp_path / "file")


def test_texts_it_has_no_words_for_are_refused(home, tmp_path):
    (tmp_path / "text.txt").write_text("The miller counted the sacks.")
    source = SOURCES.get("text")(paths=(str(tmp_path / "text.txt"),))
    harvest = HarvestConfig(model=F1, sites=("embed",), dtype="float32")
    with pytest.raises(SourceError, match=r"text-unspeakable.*'The miller"):
        ingest(tmp_path / "s", TokensConfig(source=source), harvest, runtime=InProcess())
    assert not (tmp_path / "s").exists()


def test_texts_of_its_words_are_rows(home, tmp_path):
    (tmp_path / "text.txt").write_text("t1 t2 t3 t1 t2")
    source = SOURCES.get("text")(paths=(str(tmp_path / "text.txt"),))
    harvest = HarvestConfig(model=F1, sites=("embed",), dtype="float32")
    ingest(tmp_path / "s", TokensConfig(source=source), harvest, runtime=InProcess())
    ids = store.open(tmp_path / "s").arrow("tokens").column("token_id").to_pylist()
    assert ids == [16, 1, 2, 3, 1, 2]
