"""The machine that plans need not have what the workers have."""

import pickle

import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import ModelError
from ingest.models import toy
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess
from jobs.runtimes.ray import Ray


class Elsewhere:
    """Takes the factory as another process would, and works on nothing."""

    elsewhere = True

    def map(self, make_worker, parts):
        self.make = pickle.loads(pickle.dumps(make_worker))
        return iter(())


def _ingest(folder, runtime, device):
    toy.save("gpt2", folder / "model")
    (folder / "a.txt").write_text(toy.TEXT)
    tokens = TokensConfig(source=SOURCES.get("text")(paths=(str(folder / "a.txt"),)), context=32)
    harvest = HarvestConfig(model=str(folder / "model"), device=device, batch=4)
    return ingest(folder / "s", tokens, harvest, runtime=runtime)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the planning machine must lack the device")
def test_a_head_without_a_gpu_plans_for_workers_that_have_one(tmp_path):
    runtime = Elsewhere()
    found = _ingest(tmp_path, runtime, "cuda")
    assert runtime.make.job.device == "cuda"
    assert runtime.make.job.dtype == "bfloat16"
    assert found.left_parts == found.parts
    assert store.open(tmp_path / "s").groups["acts"].recipe["compute_dtype"] == "bfloat16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device must be missing")
def test_one_process_refuses_a_device_it_lacks(tmp_path):
    with pytest.raises(ModelError, match="missing-device"):
        _ingest(tmp_path, InProcess(), "cuda")
    assert not (tmp_path / "s").exists()


def test_a_device_nobody_has_is_refused_everywhere(tmp_path):
    with pytest.raises(ModelError, match="missing-device"):
        _ingest(tmp_path, Elsewhere(), "abacus")
    assert not (tmp_path / "s").exists()


def test_rays_workers_are_elsewhere():
    assert Ray().elsewhere
