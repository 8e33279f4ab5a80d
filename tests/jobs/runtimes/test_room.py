"""How many workers fit: whole on one node each."""

import pytest

from jobs.runtimes.room import Ask, room

TWO = [{"CPU": 8.0, "memory": 1e9}, {"CPU": 3.0, "GPU": 2.0, "gpu_node": 1.0}]


@pytest.mark.parametrize(
    ("ask", "workers"),
    [
        (Ask(cpus=1), 11),
        (Ask(cpus=2), 5),
        (Ask(cpus=6), 1),
        (Ask(cpus=9), 0),
        (Ask(cpus=1, gpus=1), 2),
        (Ask(cpus=1, gpus=0.5), 3),
        (Ask(cpus=1, gpus=3), 0),
        (Ask(cpus=1, named={"gpu_node": 1}), 1),
        (Ask(cpus=1, named={"gpu_node": 0.1}), 3),
        (Ask(cpus=1, named={"tpu": 1}), 0),
    ],
    ids=str,
)
def test_workers_fit_whole_on_one_node(ask, workers):
    assert room(ask, TWO) == workers


def test_an_ask_reads_well():
    assert str(Ask(cpus=2, gpus=1, named={"gpu_node": 0.5})) == "CPU 2, GPU 1, gpu_node 0.5"
