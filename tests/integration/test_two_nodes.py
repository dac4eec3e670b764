"""A running Ray cluster of two nodes is joined; the CPU worker runs on the other node, and the tokens stay the same."""

from __future__ import annotations

import pytest
import ray
from ray.cluster_utils import Cluster
from services import PROMPTS, QUICKSTART

from moespac import Client
from moespac.cluster.launch import LaunchError
from moespac.cluster.ray_cluster import ClusterError
from moespac.cluster.reference import greedy_reference
from moespac.cluster.serve import Service, with_port
from moespac.configs import load_deployment

TOKENS = 96


@pytest.fixture(scope="module")
def address():
    """Two raylets on this machine: real processes, real placement."""
    cluster = Cluster()
    try:
        _add_node(cluster, "moespac-head")
        _add_node(cluster, "moespac-worker")
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def _add_node(cluster: Cluster, resource: str) -> None:
    """Now and then a raylet does not come up: not what is tested here, so once more. Ray tells by a bare Exception."""
    options = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    try:
        cluster.add_node(**options, resources={resource: 1})
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        cluster.add_node(**options, resources={resource: 1})


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def two_nodes(name: str, **scheduler):
    deployment = with_port(load_deployment(QUICKSTART.parents[1] / "two-nodes.yaml"), 0)
    return deployment.model_copy(update={"name": name, "scheduler": deployment.scheduler.model_copy(update=scheduler)})


def test_worker_on_the_other_node(address):
    """Planned expert by expert: what pays most where calls are dear."""
    deployment = two_nodes("test-two-nodes", plan_form="assignment", replan_every=2)
    with Service(deployment, address) as service:
        nodes = {endpoint.name: endpoint.node for endpoint in service.endpoints}
        assert nodes["cpu-1"] != nodes["gpu-0"] == nodes["prefetcher"] == nodes["scheduler"]
        with Client(service.server) as client:
            generation = client.generate(PROMPTS[0], max_tokens=TOKENS, ignore_eos=True, trace=True)
            list(generation)
        assert list(generation.token_ids) == greedy_reference(deployment.model.target, PROMPTS[0], TOKENS)
        assert generation.statistics.expert_calls > 0 and generation.statistics.fallback_experts == 0
        plans = [span for span in generation.spans if span.row == "planning"]
        assert plans and {plan.args["solver"] for plan in plans} == {"assignment"}
        assert generation.statistics.bytes_moved > 0, "what the plan wants is sent"


def test_a_placement_that_no_node_offers(address):
    deployment = two_nodes("test-nowhere")
    nowhere = deployment.prefetcher.model_copy(update={"placement": "moespac-moon"})
    with pytest.raises(ClusterError, match=r"moespac-moon.*moespac-worker"):
        Service(deployment.model_copy(update={"prefetcher": nowhere}), address).start()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_detached_actors_outlive_their_launcher(address, tmp_path, monkeypatch):
    from moespac.cluster import run_record
    from moespac.cluster.stopping import stop_recorded

    service = Service(two_nodes("test-detached"), address, detached=True)
    service.start()
    server = service.server
    service.leave()
    assert not ray.is_initialized()
    with Client(server) as client:
        assert list(client.generate(PROMPTS[1], max_tokens=8, ignore_eos=True))
    with monkeypatch.context() as elsewhere:
        # From another machine, which has no record of it: the cluster itself knows the name.
        elsewhere.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
        with pytest.raises(LaunchError, match="already"):
            Service(two_nodes("test-detached"), address).start()
        assert run_record.records() == []
    with Client(server) as client:
        assert list(client.generate(PROMPTS[1], max_tokens=4, ignore_eos=True)), "the first one goes on"
    (record,) = run_record.records()
    stop_recorded(record, 60)
    assert run_record.records() == []
