"""The deployments and the cluster file that users copy: they load, and they explain every line."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from moespac.configs import load_deployment

CONFIGS = Path(str(files("moespac.configs")))
DEPLOYMENTS = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("quickstart/*.yaml")])
CLUSTER = CONFIGS / "ray" / "local.yaml"


def test_those_that_the_documentation_names_are_there():
    names = {str(p.relative_to(CONFIGS)) for p in DEPLOYMENTS}
    assert names == {"quickstart/deployment.yaml", "one-gpu.yaml", "cpu-and-disk.yaml", "two-nodes.yaml"}


@pytest.mark.parametrize("file", DEPLOYMENTS, ids=lambda p: p.name)
def test_it_loads(file):
    deployment = load_deployment(file)
    assert deployment.draft_kinds == ("model", "ngram", "self") and deployment.draft_model is not None


@pytest.mark.parametrize("file", DEPLOYMENTS, ids=lambda p: p.name)
def test_every_value_is_explained(file):
    silent, explained = [], set()
    for line in file.read_text().splitlines():
        key, _, rest = line.strip().removeprefix("- ").partition(":")
        if not key or key.startswith("#") or not rest.split("#")[0].strip():
            continue
        if "#" in rest:
            explained.add(key)
        elif key not in explained:  # a second device repeats keys of the first
            silent.append(line)
    assert silent == []


def test_the_quickstart_names_the_bundled_models_and_fits_a_quarter_of_their_experts():
    file = CONFIGS / "quickstart" / "deployment.yaml"
    deployment = load_deployment(file)
    assert deployment.model.target == file.parent / "target"
    assert deployment.model.draft == file.parent / "draft"
    expert_bytes, experts = 3 * 256 * 64 * 2, 8 * 32
    assert deployment.gpu.expert_memory == expert_bytes * experts // 4
    assert deployment.prefetcher.host_memory >= expert_bytes * experts


def test_ray_accepts_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(CLUSTER.read_text())))


def test_the_cluster_file_offers_what_two_nodes_asks_for():
    cluster = yaml.safe_load(CLUSTER.read_text())
    deployment = load_deployment(CONFIGS / "two-nodes.yaml")
    actors = [*deployment.devices, deployment.prefetcher, deployment.scheduler]
    offered = " ".join(cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"])
    wanted = {actor.placement for actor in actors}
    assert wanted == {"moespac-head", "moespac-worker"}
    assert all(f'"{name}"' in offered for name in wanted)
    assert all("RAY_AUTH_MODE=token" in line for line in (cluster["head_start_ray_commands"][1],
                                                          cluster["worker_start_ray_commands"][1]))  # fmt: skip


def test_ray_refuses_a_cluster_file_with_a_misspelt_key():
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load(CLUSTER.read_text())
    cluster["setup_comands"] = cluster.pop("setup_commands")
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config(cluster))
