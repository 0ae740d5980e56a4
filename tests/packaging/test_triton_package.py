"""A package for Triton: its repository, and config.pbtxt by Triton's own schema.

The schema and the server need the extra kserve: make test-package.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import command, refused

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.greedy import generate
from fptq_onnx.model_io.tensor_spec import TensorSpec, session_inputs, session_outputs
from fptq_onnx.packaging.triton_config import triton_config
from fptq_onnx.runtime.decoder import Decoder, empty_cache, open_decoder

pytestmark = pytest.mark.process

NEEDS = "needs KServe and tritonclient: make test-package"
PROMPT = [1, 432, 445, 261, 406]
NEW = 12


@pytest.fixture(scope="module")
def package(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("triton") / "package"
    done = command(
        "package", both / "custom", "--for", "triton", "-o", place, "--served-at", "/srv/models"
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def name(package: Path) -> str:
    return "story"


def test_the_repository(package: Path, name: str) -> None:
    models = package / "models"
    assert {path.name for path in models.iterdir()} == {name, f"{name}-portable"}
    assert {path.name for path in (models / name / "1").iterdir()} == {
        "model.onnx", "model.onnx.data", "shared.onnx.data", "libfptq_ort_ops.so",
    }  # fmt: skip
    portable = models / f"{name}-portable"
    assert {path.name for path in (portable / "1").iterdir()} == {
        "model.onnx", "portable.onnx.data", "shared.onnx.data",
    }  # fmt: skip
    one, other = (models / folder / "1" / "shared.onnx.data" for folder in (name, portable.name))
    assert os.path.samefile(one, other)
    checked = command("package", "--check", package)
    assert checked.returncode == 0, checked.stderr
    assert "tokenizer.json" in {path.name for path in package.iterdir()}


def test_both_models_compute_what_convert_wrote(package: Path, name: str, both: Path) -> None:
    for folder, target in ((name, "custom"), (f"{name}-portable", "matmulnbits")):
        decoder = open_decoder(package / "models" / folder / "1", threads=1)
        tokens = list(generate(decoder, PROMPT, NEW))
        assert tokens == list(generate(open_decoder(both / target, threads=1), PROMPT, NEW))


def test_triton_reads_the_configuration(package: Path, name: str) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=NEEDS)
    from google.protobuf import text_format

    for folder in (name, f"{name}-portable"):
        text = (package / "models" / folder / "config.pbtxt").read_text()
        config = text_format.Parse(text, schema.ModelConfig())
        assert (config.name, config.backend, config.max_batch_size) == (folder, "onnxruntime", 8)
        assert [group.kind for group in config.instance_group] == [
            schema.ModelInstanceGroup.KIND_CPU
        ]
        assert config.HasField("dynamic_batching")
        assert config.dynamic_batching.max_queue_delay_microseconds == 100
        libraries = list(config.model_operations.op_library_filename)
        if folder == name:
            assert libraries == [f"/srv/models/{name}/1/libfptq_ort_ops.so"]
        else:
            assert libraries == []
        session = open_decoder(package / "models" / folder / "1", threads=1).session
        types = {"int64": schema.TYPE_INT64, "float32": schema.TYPE_FP32}
        for tensors, specs in (
            (config.input, session_inputs(session)),
            (config.output, session_outputs(session)),
        ):
            assert [tensor.name for tensor in tensors] == [spec.name for spec in specs]
            for tensor, spec in zip(tensors, specs, strict=True):
                assert tensor.data_type == types[spec.dtype]
                axes = [axis if isinstance(axis, int) else -1 for axis in spec.shape[1:]]
                assert list(tensor.dims) == axes


def test_strange_names_are_quoted() -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=NEEDS)
    from google.protobuf import text_format

    odd = 'a "b" \\ c'
    spec = TensorSpec(odd, "float16", ("batch", None, 3))
    text = triton_config(odd, [spec], [spec], library=f"/x/{odd}", comment="odd")
    config = text_format.Parse(text, schema.ModelConfig())
    assert config.name == config.input[0].name == odd
    assert list(config.model_operations.op_library_filename) == [f"/x/{odd}"]
    assert config.input[0].data_type == schema.TYPE_FP16
    assert list(config.input[0].dims) == [-1, 3]


@pytest.mark.parametrize(
    "shapes", [[("batch", 3), (1, 3)], [("batch", 3), ("n", 3)], [("batch", 3), ()], [(2,), (2,)]]
)
def test_without_a_batch_axis_requests_stay_apart(shapes: list[tuple[Any, ...]]) -> None:
    specs = [TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)]
    text = triton_config("m", specs[:1], specs[1:], library=None, comment="x")
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    first = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in shapes[0])
    assert f"dims: [ {first} ]" in text


@pytest.mark.parametrize("spec", [TensorSpec("x", "float32", None), TensorSpec("x", "", ("a",))])
def test_what_triton_must_be_told(spec: TensorSpec) -> None:
    with pytest.raises(FptqError, match="Triton must be told type and shape of x"):
        triton_config("m", [spec], [spec], library=None, comment="x")


def test_a_path_that_is_not_absolute(both: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(
        "package", both, "--for", "triton", "-o", out, "--served-at", "models",
        saying="--served-at must be an absolute path",
    )  # fmt: skip
    assert not out.exists()


# --- served over the V2 protocol


def need_kserve() -> None:
    """Looked for, not imported: one process cannot hold KServe's messages and Triton's."""
    if (
        importlib.util.find_spec("kserve") is None
        or importlib.util.find_spec("tritonclient") is None
    ):
        pytest.skip(NEEDS)


@pytest.fixture(scope="module")
def address(package: Path) -> Iterator[str]:
    need_kserve()
    process = subprocess.Popen(
        [sys.executable, "-m", "fptq_onnx.packaging.serve_repository", package / "models",
         "--http-port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "serving story, story-portable at http://127.0.0.1:" in line, line
        yield line.split("http://")[1].strip()
    finally:
        process.terminate()
        process.wait(timeout=60)


def client_of(address: str) -> Any:
    from tritonclient.http import InferenceServerClient

    client = InferenceServerClient(address, network_timeout=60.0)
    for _ in range(100):
        try:
            if client.is_server_ready():
                return client
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("the server did not get ready")


def step(client: Any, model: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from tritonclient.http import InferInput
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for key, array in feeds.items():
        tensor = InferInput(key, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    result = client.infer(model, inputs)
    return {o["name"]: result.as_numpy(o["name"]) for o in result.get_response()["outputs"]}


def served_tokens(client: Any, model: str, decoder: Decoder) -> list[int]:
    """Greedy tokens, the KV cache carried from answer to request."""
    cache = {tensor.past: empty_cache(tensor, 1).numpy() for tensor in decoder.io.cache}
    ids, total, tokens = PROMPT, 0, []
    for _ in range(NEW):
        total += len(ids)
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
        }
        answer = step(client, model, {**feeds, **cache})
        cache = {tensor.past: answer[tensor.present] for tensor in decoder.io.cache}
        ids = [int(answer["logits"][0, -1].argmax())]
        tokens += ids
    return tokens


@pytest.mark.parametrize(("end", "target"), [("", "custom"), ("-portable", "matmulnbits")])
def test_served_over_v2_it_writes_our_tokens(
    address: str, both: Path, end: str, target: str
) -> None:
    client, decoder = client_of(address), open_decoder(both / target, threads=1)
    expected = list(generate(decoder, PROMPT, NEW))
    assert served_tokens(client, f"story{end}", decoder) == expected


def test_the_server_tells_of_its_models(address: str) -> None:
    client = client_of(address)
    assert client.is_model_ready("story")
    about = client.get_model_metadata("story")
    assert {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]} in about["inputs"]
    assert about["outputs"][0]["datatype"] == "FP32"


def test_a_request_that_does_not_suit_the_model(address: str) -> None:
    from tritonclient.utils import InferenceServerException

    client = client_of(address)
    with pytest.raises(InferenceServerException, match="input_ids"):
        step(client, "story", {"wrong": np.zeros((1, 1), np.int64)})
    assert client.is_server_ready()


def refusal(address: str, tensor: dict[str, object], data: bytes = b"") -> str:
    """Of a request with one input, and its data behind it."""
    client_of(address)
    about = {"name": "input_ids", "shape": [1, 5], "datatype": "INT64", **tensor}
    head = json.dumps({"inputs": [about]}).encode()
    headers = {"Content-Type": "application/octet-stream" if data else "application/json"}
    if data:
        headers["Inference-Header-Content-Length"] = str(len(head))
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("POST", "/v2/models/story/infer", head + data, headers)
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    connection.close()
    assert answer.status == 400, error
    return str(error)


def test_data_and_shapes_that_do_not_agree(address: str) -> None:
    for tensor in ({"shape": [1, 7]}, {"shape": [2, 5]}, {"data": ["a"] * 5}):
        said = refusal(address, {"data": PROMPT, **tensor})
        assert f"input_ids are not INT64 of shape {tensor.get('shape', [1, 5])}" in said
    for other in ({"shape": [5]}, {"datatype": "FP32"}, {"name": "other"}):
        assert "input_ids" in refusal(address, {"data": PROMPT, **other})
    binary = {"parameters": {"binary_data_size": 24}}
    assert "tensors cannot be read" in refusal(address, binary, bytes(24))


@pytest.mark.parametrize(
    ("spoil", "saying"),
    [
        (
            lambda m: (m / "story" / "config.pbtxt").write_text("name: story: what"),
            "is not Triton's",
        ),
        (lambda m: (m / "story" / "1" / "libfptq_ort_ops.so").unlink(), "no library"),
        (lambda m: [path.unlink() for path in m.glob("*/config.pbtxt")], "no model repository at"),
    ],
)
def test_the_server_refuses_a_broken_repository(
    package: Path, tmp_path: Path, spoil: Any, saying: str
) -> None:
    need_kserve()
    models = tmp_path / "models"
    shutil.copytree(package / "models", models)
    spoil(models)
    done = subprocess.run(
        [sys.executable, "-m", "fptq_onnx.packaging.serve_repository", models, "--http-port", "0"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert saying in done.stderr
    assert "Traceback" not in done.stderr
