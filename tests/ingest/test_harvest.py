"""Stored activations equal what transformers computes on equal batches, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import ModelError, SiteError
from ingest.models import attend, load, toy
from ingest.run import ingest, ingest_into, ingest_vectors
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess
from jobs.sequences import sequence_blocks

FAMILIES = ("bert", "gpt2")
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "box",
    "quietly",
    "beyond",
    "the",
    "hill",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for number in range(12):
        text = " ".join(rng.choice(WORDS, int(rng.integers(5, 200))))
        (folder / f"d{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    toy.save(request.param, folder, text=" ".join(WORDS))
    return folder


def _ingest(url, corpus, model, *, dtype, sites=("blocks.1.resid_post",), batch=3, **more):
    tokens = TokensConfig(
        source=SOURCES.get("text")(paths=(str(corpus),)), context=48, part_rows=512, **more
    )
    harvest = HarvestConfig(model=str(model), sites=sites, dtype=dtype, batch=batch)
    return ingest(url, tokens, harvest, runtime=InProcess())


def _recomputed(opened: store.Store, folder: Path, dtype: str, layer: int) -> np.ndarray:
    """Run the model by itself over batches made here, from the tables, by the format's rule."""
    config = transformers.AutoConfig.from_pretrained(folder)
    net = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = opened.arrow("tokens")["token_id"].to_numpy()
    rows, at = [], 0
    for part in opened.view.parts("tokens"):
        commit = opened.view.commit("tokens", part)
        lengths = opened.view.table(commit, "sequences.parquet")["rows"].to_pylist()
        for first in range(0, len(lengths), 3):
            mine = lengths[first : first + 3]
            width = min(-(-max(mine) // 32) * 32, config.max_position_embeddings)
            batch = torch.zeros((3, width), dtype=torch.long)
            mask = torch.zeros((3, width), dtype=torch.long)
            mask[len(mine) :, 0] = 1
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            batch[:] = tokenizer.pad_token_id or 0
            for slot, count in enumerate(mine):
                batch[slot, :count] = torch.tensor(ids[at : at + count])
                mask[slot, :count] = 1
                at += count
            with torch.inference_mode():
                out = net(input_ids=batch, attention_mask=mask, output_hidden_states=True)
            state = out.hidden_states[layer + 1]
            rows += [state[slot, :count] for slot, count in enumerate(mine)]
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_rows_equal_the_models_own_bit_for_bit(tmp_path, corpus, model, dtype):
    _ingest(tmp_path / "s", corpus, model, dtype=dtype, sites=("blocks.0.resid_post",))
    opened = store.open(tmp_path / "s")
    truth = _recomputed(opened, model, dtype, 0)
    if dtype == "bfloat16":
        stored = opened.read("acts:blocks.0.resid_post", raw=True)
        assert np.array_equal(stored, truth.view(torch.uint16).numpy())
    else:
        assert np.array_equal(opened.read("acts:blocks.0.resid_post"), truth.numpy())
    assert len(truth) == opened.coverage["acts"].rows > 512


def test_a_padding_sequence_never_becomes_a_row(tmp_path, corpus, model):
    _ingest(tmp_path / "s", corpus, model, dtype="float32", batch=32)
    opened = store.open(tmp_path / "s")
    assert opened.coverage["acts"].rows == opened.coverage["tokens"].rows
    assert np.isfinite(opened.read("acts:blocks.1.resid_post")).all()


def test_sites_of_one_harvest_commit_together(tmp_path, corpus, model):
    sites = ("blocks.0.attn.q", "blocks.0.mlp.post", "blocks.1.resid_pre")
    _ingest(tmp_path / "s", corpus, model, dtype="float32", sites=sites)
    opened = store.open(tmp_path / "s")
    assert set(opened.groups["acts"].columns) == set(sites)
    commits = [opened.view.commit("acts", part) for part in opened.view.parts("acts")]
    assert all(sum(site in path for path in c.objects) == 2 for c in commits for site in sites)
    assert opened.column("acts:blocks.0.attn.q").shape == (4, 8)


def test_a_second_harvest_joins_the_same_rows(tmp_path, corpus, model):
    url = tmp_path / "s"
    _ingest(url, corpus, model, dtype="float32", sites=("blocks.0.resid_post",))
    before = store.open(url).digest(["tokens", "acts"])
    more = HarvestConfig(
        model=str(model), sites=("blocks.1.resid_pre",), dtype="float32", batch=3, group="more"
    )
    ingest_into(url, more, runtime=InProcess())
    opened = store.open(url)
    assert opened.digest(["tokens", "acts"]) == before
    assert np.array_equal(opened.row_ids(group="acts"), opened.row_ids(group="more"))
    # what leaves block 0 is what enters block 1
    assert np.array_equal(
        opened.read("acts:blocks.0.resid_post"), opened.read("more:blocks.1.resid_pre")
    )
    assert opened.coverage["more"].sealed


def test_another_tokenizer_is_refused(tmp_path, corpus, model):
    url = tmp_path / "s"
    _ingest(url, corpus, model, dtype="float32")
    other = tmp_path / "other"
    toy.save("gpt2", other, text="an altogether different text with other pieces " * 3, seed=1)
    before = sorted(p.name for p in url.rglob("*"))
    with pytest.raises(ModelError, match="tokenizer-mismatch"):
        ingest_into(url, HarvestConfig(model=str(other), group="more"), runtime=InProcess())
    assert sorted(p.name for p in url.rglob("*")) == before


class _Stopping:
    """Stops after some parts, as a killed run does between two commits."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def map(self, make_worker, parts):
        worker = make_worker()
        for number, part in enumerate(parts):
            if number == self.parts:
                raise KeyboardInterrupt
            yield part, worker.run(part)
        worker.close()


def test_a_stopped_harvest_goes_on_to_the_same_digest(tmp_path, corpus, model):
    _ingest(tmp_path / "whole", corpus, model, dtype="bfloat16")
    want = store.open(tmp_path / "whole").digest()
    tokens = TokensConfig(
        source=SOURCES.get("text")(paths=(str(corpus),)), context=48, part_rows=512
    )
    harvest = HarvestConfig(
        model=str(model), sites=("blocks.1.resid_post",), dtype="bfloat16", batch=3
    )
    parts = len(store.open(tmp_path / "whole").view.parts("tokens"))
    assert parts >= 3
    for stop in range(parts):
        url = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            ingest(url, tokens, harvest, runtime=_Stopping(stop))
        assert not store.open(url).coverage["acts"].sealed if stop else True
        summary = ingest(url, tokens, harvest, runtime=InProcess())
        again = store.open(url)
        assert again.digest() == want
        assert summary.new_rows == summary.rows - sum(
            again.view.commit("tokens", p).rows for p in range(stop)
        )


class _Watching:
    """A plan and its observer in one: keeps what it sees, and what was committed when."""

    sites = ("blocks.1.resid_post", "blocks.0.mlp.post")

    def __init__(self, done=()) -> None:
        self.blocks, self.events, self._done = [], [], set(done)

    def requires(self, model, stored):
        assert model.layers == 2
        assert tuple(stored) == ("blocks.1.resid_post",)
        return self.sites

    def observer(self, harvest):
        self.harvest = harvest
        return self

    def done(self, part):
        return part in self._done

    def begin(self, part):
        self.events.append(("begin", part))

    def observe(self, block):
        self.blocks.append(block)

    def end(self, part):
        committed = part in store.open(self.harvest.url).view.parts("acts")
        self.events.append(("end", part, committed))

    def close(self):
        self.events.append(("close",))


def _watched(url, corpus, model, watching, dtype="bfloat16"):
    tokens = TokensConfig(
        source=SOURCES.get("text")(paths=(str(corpus),)), context=48, part_rows=512
    )
    harvest = HarvestConfig(model=str(model), sites=("blocks.1.resid_post",), dtype=dtype, batch=3)
    ingest(url, tokens, harvest, runtime=InProcess(), observers=[watching])
    return store.open(url)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_observers_see_every_row_once_as_it_is_stored(tmp_path, corpus, model, dtype):
    watching = _Watching()
    opened = _watched(tmp_path / "s", corpus, model, watching, dtype)
    assert set(opened.groups["acts"].columns) == {"blocks.1.resid_post"}
    ids = np.concatenate([block.row_ids for block in watching.blocks])
    assert np.array_equal(ids, opened.row_ids())
    offline = sequence_blocks(opened, ["blocks.1.resid_post"])
    for live, stored in zip(watching.blocks, offline, strict=True):
        assert (live.part, live.bounds.tolist()) == (stored.part, stored.bounds.tolist())
        assert live.tokens.keys() == stored.tokens.keys()
        for name, values in live.tokens.items():
            assert np.array_equal(values, stored.tokens[name])
        seen = live.sites["blocks.1.resid_post"]
        assert seen.dtype == getattr(torch, dtype)
        assert torch.equal(seen, stored.sites["blocks.1.resid_post"])
        assert live.sites["blocks.0.mlp.post"].shape[0] == len(live.row_ids)


def test_an_observer_ends_each_part_before_the_harvest_commits_it(tmp_path, corpus, model):
    watching = _Watching()
    parts = list(_watched(tmp_path / "s", corpus, model, watching).view.parts("acts"))
    wanted = [event for part in parts for event in (("begin", part), ("end", part, False))]
    assert watching.events == [*wanted, ("close",)]


def test_an_observer_is_spared_what_it_has_done(tmp_path, corpus, model):
    watching = _Watching(done=[0, 2])
    _watched(tmp_path / "s", corpus, model, watching)
    assert {block.part for block in watching.blocks}.isdisjoint({0, 2})
    again = _Watching()
    _watched(tmp_path / "s", corpus, model, again)  # all parts are committed: nothing runs
    assert again.blocks == again.events == []


def test_an_observer_of_a_site_the_model_lacks_is_refused_before_a_store_is_made(
    tmp_path, corpus, model
):
    watching = _Watching()
    watching.sites = ("blocks.7.resid_post",)
    with pytest.raises(SiteError, match="Nothing was started"):
        _watched(tmp_path / "s", corpus, model, watching)
    assert not (tmp_path / "s").exists()


def test_an_observer_changes_no_stored_bit(tmp_path, corpus, model):
    watched = _watched(tmp_path / "s", corpus, model, _Watching())
    _ingest(tmp_path / "t", corpus, model, dtype="bfloat16")
    assert watched.digest() == store.open(tmp_path / "t").digest()


def test_changed_model_files_are_refused_as_another_recipe(tmp_path, corpus, model):
    _ingest(tmp_path / "s", corpus, model, dtype="float32")
    other = tmp_path / "other"
    family = transformers.AutoConfig.from_pretrained(model).model_type
    toy.save(family, other, seed=5, text=" ".join(WORDS))
    with pytest.raises(store.ConflictError, match="group-recipe"):
        _ingest(tmp_path / "s", corpus, other, dtype="float32")


def test_recipes_hold_no_paths_threads_or_versions(tmp_path, corpus, model):
    _ingest(tmp_path / "s", corpus, model, dtype="float32")
    opened = store.open(tmp_path / "s")
    text = str([dict(group.recipe) for group in opened.groups.values()])
    assert str(tmp_path) not in text
    assert str(model) not in text
    assert str(corpus) not in text
    assert torch.__version__ not in text
    provenance = opened.view.commit("acts", 0).provenance
    assert provenance["torch"] == torch.__version__
    assert provenance["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_attention_recomputed_from_stored_q_k_v_equals_stored_z(
    tmp_path, corpus, model, dtype, bound
):
    layer = "blocks.1.attn."
    _ingest(tmp_path / "s", corpus, model, dtype=dtype, sites=(f"{layer}{{q,k,v,z}}",))
    opened = store.open(tmp_path / "s")
    spec = load(model, dtype=dtype).adapter.attention(1)
    sequences = opened.arrow("sequences")["seq_id"].to_numpy()
    q, k, v, z = (opened.sequences(f"acts:{layer}{name}", sequences) for name in "qkvz")
    wrong = total = 0.0
    for row in zip(q, k, v, z, strict=True):
        tensors = [torch.from_numpy(x)[None] for x in row]
        again, _ = attend(*tensors[:3], spec)
        wrong += float((again - tensors[3]).square().sum())
        total += float(tensors[3].square().sum())
    assert (wrong / total) ** 0.5 <= bound


class _Dying:
    """Dies inside a part, between its two commits."""

    def map(self, make_worker, parts):
        worker = make_worker()
        yield parts[0], worker.run(parts[0])
        worker._writer.put = worker._truth.put = _die_second(worker)
        worker.run(parts[1])


def _die_second(worker):
    puts = {id(worker._writer): worker._writer.put, id(worker._truth): worker._truth.put}
    calls = []

    def put(rows, values):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return puts[id(worker._truth if "codes" in values else worker._writer)](rows, values)

    return put


def test_a_vector_source_killed_between_its_groups_ends_with_both(tmp_path):
    source = SOURCES.get("synthetic")(width=16, features=32, active=2.0)
    tokens = TokensConfig(source=source, rows=3000, part_rows=1024)
    ingest_vectors(tmp_path / "whole", tokens, "acts", runtime=InProcess())
    with pytest.raises(KeyboardInterrupt):
        ingest_vectors(tmp_path / "s", tokens, "acts", runtime=_Dying())
    ingest_vectors(tmp_path / "s", tokens, "acts", runtime=InProcess())
    again = store.open(tmp_path / "s")
    assert all(c.sealed and c.complete for c in again.coverage.values())
    assert again.digest() == store.open(tmp_path / "whole").digest()
