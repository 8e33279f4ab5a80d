"""cluster.yaml is what Ray's own validator accepts, and asks for the Ray that the project pins."""

from __future__ import annotations

import copy
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def _validate(config):
    # Names the autoscaler keeps to itself, so a new Ray may move them: then this test says so.
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_file(cluster):
    prepared = _validate(cluster)
    assert prepared["provider"]["type"] == "local"
    assert prepared["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("science",), {"latents": 4096}),
        (("rsync_exclude",), "**/.git"),
        (("provider", "worker_ips"), "10.0.0.2"),
    ],
    ids=["unknown key", "text for a list", "text for addresses"],
)
def test_ray_refuses_what_is_no_cluster(cluster, path, value):
    import jsonschema

    place = cluster
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        _validate(cluster)


def _pinned(cluster):
    commands = " ".join(cluster["setup_commands"])
    [pinned] = re.findall(r"'(ray\[[^']*)'", commands)
    return Requirement(pinned)


def _allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [allowed] = [
        requirement
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == "ray"
    ]
    return allowed


def test_the_nodes_get_the_ray_the_project_allows(cluster):
    pinned, allowed = _pinned(cluster), _allowed()
    [exact] = pinned.specifier
    assert exact.operator == "=="
    assert allowed.specifier.contains(exact.version)
    assert pinned.extras == allowed.extras


def test_the_installed_ray_is_of_the_same_release(cluster):
    [exact] = _pinned(cluster).specifier
    installed, pinned = Version(metadata.version("ray")), Version(exact.version)
    assert (installed.major, installed.minor) == (pinned.major, pinned.minor)


def test_the_nodes_offer_no_named_resource_while_no_task_asks_for_one(cluster):
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert not [command for command in commands if "--resources" in command]
    assert "available_node_types" not in cluster  # the local provider takes none


def test_every_node_starts_ray_anew_and_workers_join_the_head(cluster):
    head, workers = cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]
    assert head[0] == workers[0] == "ray stop"
    assert "--head --port=6379" in head[1]
    assert "--address=$RAY_HEAD_IP:6379" in workers[1]
