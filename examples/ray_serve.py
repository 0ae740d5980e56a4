"""`fptq-onnx serve` on a Ray cluster: a replica of the model on each of several nodes.

    serve run examples.ray_serve:build model=/models/my-model-w4a8 replicas=4 threads=8

The model's folder must be at the same place on every node. An API key is taken from the variable
FPTQ_API_KEY where this runs. Needs `pip install '.[serve,ray]'` in a checkout of
fptq-onnx, on every node.
"""

from __future__ import annotations

import os

from ray import serve
from starlette.applications import Starlette

from fptq_onnx.serving.open_service import open_app
from fptq_onnx.serving.settings import ServerSettings


def build(arguments: dict[str, str]) -> serve.Application:
    """The application that `serve run` starts.

    Args:
        arguments: model, a folder; replicas (1); threads of each (1); running and waiting, requests
            of each (16 and 64); name, what clients call the model (its folder's name).
    """
    model = os.path.abspath(arguments["model"])
    threads = int(arguments.get("threads", "1"))
    settings = ServerSettings(
        max_running=int(arguments.get("running", "16")),
        max_waiting=int(arguments.get("waiting", "64")),
        api_key=os.environ.get("FPTQ_API_KEY"),
    )

    def app() -> Starlette:  # called in each replica
        return open_app(model, settings=settings, name=arguments.get("name"), threads=threads)

    deployment = serve.deployment(
        serve.ingress(app)(),
        name="fptq-onnx",
        num_replicas=int(arguments.get("replicas", "1")),
        # Our own queue says 429 when it is full, and batches what runs: Ray must not hold it back.
        max_ongoing_requests=2 * (settings.max_running + settings.max_waiting),
        ray_actor_options={"num_cpus": threads},
        graceful_shutdown_timeout_s=settings.drain,
    )
    return deployment.bind()
