"""Offloading: the same gradients bit for bit, each storage once, forwarding, failures said, nothing left."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import ingest.offload
from ingest.errors import IngestError
from ingest.models import toy
from ingest.offload import Offload


def network():
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.GELU())])


def gradients(net, x):
    return [x.grad.clone(), *(p.grad.clone() for p in net.parameters())]


def run(net, x, folder=None, **settings):
    net.zero_grad()
    x.grad = None
    if folder is None:
        net(x).square().sum().backward()
        return gradients(net, x), None
    with Offload(folder, least_bytes=1, **settings).saving(net) as report:
        net(x).square().sum().backward()
    return gradients(net, x), report


@pytest.fixture
def x():
    return torch.randn(128, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("pending_bytes", [1, 40_000, 1 << 30])
def test_gradients_are_those_of_the_plain_step(tmp_path, x, pending_bytes):
    net = network()
    wanted, _ = run(net, x)
    got, report = run(net, x, tmp_path, pending_bytes=pending_bytes)
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))
    assert report.written_bytes + report.forwarded_bytes > 0
    assert report.kept_bytes > 0  # weights
    if pending_bytes == 1:
        assert (
            report.written_bytes >= 10 * 128 * 64 * 4
        )  # all but the last were written before they were asked for
        assert report.read_bytes > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
def test_whole_models_train_the_same(tmp_path, family):
    ids = torch.randint(5, 200, (2, 33), generator=torch.Generator().manual_seed(1))
    grads = []
    for folder in (None, tmp_path):
        model = toy.build(family, layers=2).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if folder is None:
            model(input_ids=ids, labels=ids).loss.backward()
        else:
            with Offload(folder, least_bytes=256, pending_bytes=1).saving(model) as report:
                model(input_ids=ids, labels=ids).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, wanted in grads[0].items():
        assert (wanted is None) == (grads[1][name] is None)
        assert wanted is None or torch.equal(wanted, grads[1][name]), name
    assert report.deduplicated_bytes > 0  # q, k and v are made of one tensor


def test_views_of_one_storage_are_kept_once(tmp_path):
    base = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(64, requires_grad=True)
    with Offload(tmp_path, least_bytes=1, pending_bytes=1).saving() as report:
        loss = sum((part * weight).sum() for part in (base[:100], base[100:], base.T.T))
        loss.backward()
    assert torch.allclose(weight.grad, 2 * base.sum(0), atol=1e-4)
    assert report.written_bytes <= base.nbytes
    assert report.deduplicated_bytes == base[100:].nbytes + base.nbytes


def test_memory_that_is_used_again_is_another_tensor(tmp_path):
    """A storage that was freed and whose place another one took must not be taken for it."""
    weight = torch.ones(1000, requires_grad=True)
    with Offload(tmp_path, least_bytes=1, pending_bytes=1).saving() as report:
        losses = []
        for number in range(20):
            values = torch.full((1000,), float(number))
            losses.append((values * weight).sum())
            del values
        sum(losses).backward()
    assert torch.equal(weight.grad, torch.full((1000,), float(sum(range(20)))))
    assert report.written_bytes > 0


def test_what_is_asked_for_before_it_is_written_is_forwarded(tmp_path, x, monkeypatch):
    """No write ends before the backward has: every tensor comes from memory."""
    net, gate = network(), threading.Event()
    wanted, _ = run(net, x)
    own = ingest.offload._Step._write_bytes
    monkeypatch.setattr(
        ingest.offload._Step, "_write_bytes", lambda self, *a: gate.wait(30) and own(self, *a)
    )
    net.zero_grad()
    x.grad = None
    with Offload(tmp_path, least_bytes=1, writers=1).saving(net) as report:
        net(x).square().sum().backward()
        assert report.read_bytes == report.written_bytes == 0
        gate.set()
    assert all(torch.equal(*pair) for pair in zip(gradients(net, x), wanted, strict=True))
    assert report.forwarded_bytes >= 11 * 128 * 64 * 4
    assert report.written_bytes <= 128 * 64 * 4  # the one that was at it
    assert not list(tmp_path.iterdir())


def test_a_step_that_saves_faster_than_the_disk_takes_waits_and_says_so(tmp_path, x, monkeypatch):
    own = ingest.offload._Step._write_bytes

    def slow(self, slot, held):
        threading.Event().wait(0.02)
        own(self, slot, held)

    monkeypatch.setattr(ingest.offload._Step, "_write_bytes", slow)
    _, report = run(network(), x, tmp_path, pending_bytes=1, writers=1)
    assert report.waited_to_save_seconds > 0.1
    assert report.exposed_seconds >= report.waited_to_save_seconds


def test_a_disk_that_is_full_is_said_and_nothing_is_left(tmp_path, x, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("store.posix.PosixStream.write", full)
    with pytest.raises(IngestError, match=r"offload-failed.*No space left"):
        run(network(), x, tmp_path, pending_bytes=1)
    assert not list(tmp_path.rglob("slot*"))


def test_bytes_that_come_back_changed_are_refused(tmp_path, x, monkeypatch):
    own = ingest.offload._Step._read

    def damaged(self, slot):
        for path in tmp_path.rglob("slot-*"):
            data = bytearray(path.read_bytes())
            data[0] ^= 1
            path.write_bytes(data)
        return own(self, slot)

    monkeypatch.setattr(ingest.offload._Step, "_read", damaged)
    with pytest.raises(IngestError, match=r"offload-failed.*came back changed"):
        run(network(), x, tmp_path, pending_bytes=1)
    assert not list(tmp_path.iterdir())


def test_a_tensor_changed_in_place_is_refused_as_without(tmp_path, monkeypatch):
    """One whose bytes were written before the change comes back as it was saved, and gradients are right."""
    changed = threading.Event()
    write = ingest.offload._Step._write_bytes

    def waiting(self, slot, held):
        changed.wait(10)
        write(self, slot, held)

    monkeypatch.setattr(ingest.offload._Step, "_write_bytes", waiting)

    def step():
        x = torch.ones(2000, requires_grad=True)
        y = x.exp()
        y.add_(1)
        changed.set()
        y.sum().backward()

    with pytest.raises(RuntimeError, match="inplace"):
        step()
    with (
        pytest.raises(IngestError, match=r"offload-failed.*changed in place"),
        Offload(tmp_path, least_bytes=1).saving(),
    ):
        step()


def test_a_backward_behind_its_context_is_refused(tmp_path, x):
    net = network()
    with Offload(tmp_path, least_bytes=1, pending_bytes=1).saving(net):
        loss = net(x).sum()
    with pytest.raises(IngestError, match=r"offload-failed.*inside"):
        loss.backward()
    assert not list(tmp_path.iterdir())


def test_small_tensors_and_parameters_stay(tmp_path, x):
    with Offload(tmp_path, least_bytes=1 << 20).saving(network()) as report:
        network()(x).sum().backward()
    assert report.saved_bytes == report.written_bytes == 0
