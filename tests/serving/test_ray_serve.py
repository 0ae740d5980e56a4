"""examples/ray_serve.py on a local cluster of two nodes; `make test-ray` installs Ray."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.command_line import MODEL, command

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

import openai
import ray
from ray import serve
from ray.cluster_utils import Cluster
from support.http_serving import JSON, NAME, Server, completion, until

pytestmark = pytest.mark.process

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"
KEY = "secret"
PROMPTS = ["Once upon a time", "The little dog ran to the park and", "Tim", "Mom said"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules["ray_serve"] = example
    spec.loader.exec_module(example)
    ray.cloudpickle.register_pickle_by_value(example)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # A replica takes a CPU, and a node has one: two replicas are on two nodes.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FPTQ_API_KEY", KEY)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address)
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(example.build({"model": str(MODEL), "replicas": "2", "running": "2"}))
            yield Server(port)
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0) as found:
        yield found


def test_two_nodes_have_a_replica_each(server: Server) -> None:
    status = serve.status().applications["default"].deployments["fptq-onnx"]
    assert status.replica_states == {"RUNNING": 2}
    from ray.util.state import list_actors

    actors = list_actors(filters=[("state", "=", "ALIVE")])
    nodes = {actor.node_id for actor in actors if "ServeReplica" in actor.class_name}
    assert len(nodes) == 2


def test_the_text_is_what_run_writes(client: openai.OpenAI) -> None:
    written = {}
    for prompt in PROMPTS:
        done = command("run", MODEL, prompt, "--max-tokens", 30, "--threads", 1)
        written[prompt] = done.stdout[len(prompt) : -1]

    def ask(number: int) -> str:
        prompt, stream = PROMPTS[number % 4], number % 2 == 0
        common = {"model": NAME, "prompt": prompt, "max_tokens": 30, "temperature": 0}
        got = client.completions.create(**common, stream=stream)  # type: ignore[call-overload]
        parts = got if stream else [got]
        return "".join(part.choices[0].text for part in parts)

    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(ask, range(24)))
    assert texts == [written[PROMPTS[number % 4]] for number in range(24)]


def test_key_and_errors(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="dog " * 300)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    wrong = server.ask("GET", "/v1/models", Authorization="Bearer wrong")
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")


def test_who_leaves_frees_the_row(server: Server) -> None:
    for _ in range(8):
        connection, response = server.send(
            "POST", "/v1/completions",
            completion(max_tokens=240, ignore_eos=True, stream=True),
            Authorization=f"Bearer {KEY}", **JSON,
        )  # fmt: skip
        assert response.read(6) == b"data: "
        response.close()
        connection.close()
    # /metrics is one replica's, whichever is asked.
    until(lambda: all(server.metric("fptq_requests_running") == 0 for _ in range(8)))
    # Ray's proxy may cancel the request itself, before it tells of the client.
    ends = [f'fptq_generations_total{{end="{end}"}}' for end in ("client_left", "cancelled")]
    assert any(server.metric(end) > 0 for _ in range(20) for end in ends)
