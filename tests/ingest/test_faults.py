"""What may go wrong while a model writes: each leaves a store that is right, and that a rerun completes to the same digest."""

from __future__ import annotations

import errno
import os

import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.models import load, toy
from ingest.models.hooks import HookedModel
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

SITES = ("blocks.0.resid_post", "blocks.1.mlp.post")
PART_ROWS = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.save("llama", tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(20):
        (folder / f"{number:02}.txt").write_text(f"{number} {toy.TEXT[11 * number :]}")
    return folder


def run(url, model, corpus, **options):
    tokens = TokensConfig(
        source=SOURCES.get("text")(paths=(str(corpus),)), context=48, part_rows=PART_ROWS
    )
    harvest = HarvestConfig(model=str(model), sites=SITES, dtype="float32", batch=3, **options)
    ingest(url, tokens, harvest, runtime=InProcess())
    return store.open(url)


@pytest.fixture(scope="module")
def digest(tmp_path_factory, model, corpus):
    return run(tmp_path_factory.mktemp("whole") / "s", model, corpus).digest()


def raising(error, at):
    """Return a forward that raises at its ``at``-th call, and is the model's own at all others."""
    calls = [0]
    own = HookedModel.capture

    def capture(self, *arguments, **options):
        calls[0] += 1
        if calls[0] == at:
            raise error
        return own(self, *arguments, **options)

    return capture


def out_of_memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


FORWARD = {
    "a document the model cannot take": lambda: RuntimeError("index out of range in self"),
    "out of memory": out_of_memory,
    "out of memory on the host": lambda: MemoryError(),
    "interrupt": lambda: KeyboardInterrupt(),
}


@pytest.mark.parametrize("at", [1, 2, 30])
@pytest.mark.parametrize("fault", FORWARD)
def test_a_forward_that_fails(tmp_path, model, corpus, digest, monkeypatch, fault, at):
    error = FORWARD[fault]()
    with monkeypatch.context() as patch:
        patch.setattr(HookedModel, "capture", raising(error, at))
        with pytest.raises(type(error)):
            run(tmp_path / "s", model, corpus)
    left = store.open(tmp_path / "s")
    assert store.verify(left).ok
    assert store.verify(left).orphans == []
    assert len(left.view.parts("acts")) < at
    assert run(tmp_path / "s", model, corpus).digest() == digest


@pytest.mark.parametrize("at", [0, 1, 7, 20])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, "disk-full"), (errno.EIO, "unavailable")]
)
def test_a_disk_that_fails_while_the_model_goes_on(
    tmp_path, model, corpus, digest, monkeypatch, at, number, kind
):
    real, calls = os.write, [0]

    def write(fd, data):
        if len(data) > 4096:  # a batch of rows
            calls[0] += 1
            if calls[0] > at:
                raise OSError(number, os.strerror(number))
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr("store.posix.os.write", write)
        with pytest.raises(store.StoreError) as caught:
            run(tmp_path / "s", model, corpus)
    assert caught.value.kind == kind
    assert store.verify(store.open(tmp_path / "s")).ok
    assert run(tmp_path / "s", model, corpus).digest() == digest


def test_values_that_are_no_numbers_are_named_and_may_be_allowed(tmp_path, model, corpus):
    broken = load(model, dtype="float32")
    own = HookedModel.capture
    poisoned = 5  # the batch whose third row is spoiled

    def spoiled():
        calls = [0]

        def capture(self, *arguments, **options):
            calls[0] += 1
            got = own(self, *arguments, **options)
            if calls[0] == poisoned:
                value = got[SITES[1]].clone()
                value[0, 2, 7] = torch.inf
                got[SITES[1]] = value
            return got

        return capture

    assert broken.adapter.family == "llama"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HookedModel, "capture", spoiled())
        with pytest.raises(
            store.StoreError, match=r"nonfinite: column 'blocks\.1\.mlp\.post'.*row"
        ) as caught:
            run(tmp_path / "s", model, corpus)
    row = caught.value.where["row"]
    left = store.open(tmp_path / "s")
    assert store.verify(left).ok
    assert row in left.arrow("tokens").column("row").to_pylist()
    assert row // left.part_stride not in left.view.parts("acts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HookedModel, "capture", spoiled())
        allowed = run(tmp_path / "t", model, corpus, allow_nonfinite=True)
    value = allowed.gather(SITES[1], [row])[0]
    assert value[7] == float("inf")
