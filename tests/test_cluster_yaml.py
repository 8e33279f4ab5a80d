"""cluster.yaml and the README's cloud variants are what Ray's own validator accepts, with the Ray the project pins."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from jobs.runtimes.ray import set_environment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLOUDS = {
    name: yaml.safe_load(text)
    for name, text in re.findall(r"<!-- cluster: (\w+) -->\n```yaml\n(.*?)```", README, flags=re.S)
}
set_environment(local=True)  # this file imports Ray, which reads its settings then


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


def _offered(cluster):
    """Return the named resources the nodes that work offer."""
    types = cluster.get("available_node_types")
    if types:
        workers = [kind for name, kind in types.items() if name != cluster["head_node_type"]]
        return set.intersection(*(set(kind["resources"]) for kind in workers)) - {"CPU", "GPU"}
    commands = " ".join(cluster["worker_start_ray_commands"])
    return set().union(*map(json.loads, re.findall(r"--resources='([^']*)'", commands)))


def _asked():
    """Return the named resources that README and cluster.yaml tell verbs to ask for."""
    text = README + (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    words = re.findall(r"actlake [^`]*?--resources ([^\s`]+)", text)
    return {one.partition("=")[0] for word in words for one in word.split(",")}


def test_what_verbs_are_told_to_ask_for_is_what_the_nodes_offer(cluster):
    asked = _asked()
    assert asked
    assert asked == _offered(cluster)
    for name, block in CLOUDS.items():
        assert asked == _offered({**cluster, **block}), name


def test_the_head_offers_no_named_resource(cluster):
    assert "--resources" not in " ".join(cluster["head_start_ray_commands"])
    for block in CLOUDS.values():
        head = block["available_node_types"][block["head_node_type"]]
        assert set(head["resources"]) <= {"CPU"}


def test_both_clouds_are_described():
    assert set(CLOUDS) == {"aws", "gcp"}


@pytest.mark.parametrize("cloud", sorted(CLOUDS))
def test_ray_accepts_the_cloud_variant_and_fills_in_nothing_of_its_own(cluster, cloud):
    whole = {**cluster, **CLOUDS[cloud]}
    prepared = _validate(whole)
    assert prepared["provider"]["type"] == cloud
    said = " ".join(
        command for key, value in prepared.items() if key.endswith("_commands") for command in value
    )
    assert "nightly" not in said
    assert "dev0" not in said
    assert "0.0.0.0" not in said
    assert "--dashboard-host=127.0.0.1" in said
    assert _pinned(prepared) == _pinned(cluster)
    assert set(CLOUDS[cloud]) - set(cluster) <= {
        "max_workers",
        "head_node_type",
        "available_node_types",
        "head_setup_commands",
    }


def test_workers_get_normal_priority(cluster):
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_worker_niceness=0" in " ".join(cluster[key])


def test_nodes_want_a_token_and_the_dashboard_stays_at_home(cluster):
    assert "RAY_AUTH_MODE=token" in " ".join(cluster["initialization_commands"])
    assert any(path.endswith("/.ray/auth_token") for path in cluster["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


def test_every_node_starts_ray_anew_and_workers_join_the_head(cluster):
    head, workers = cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]
    assert head[0] == workers[0] == "ray stop"
    assert "--head --port=6379" in head[1]
    assert "--address=$RAY_HEAD_IP:6379" in workers[1]
