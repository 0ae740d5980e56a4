"""Serve a model repository of `package --for triton` by KServe's server, over the V2 protocol.

    pip install '.[kserve]'          (in a checkout of fptq-onnx)
    python -m fptq_onnx.packaging.serve_repository one-triton/models

For machines without Triton: models, tensors and the library are what config.pbtxt says. Requests
are run one by one, not put together.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from fptq_onnx.errors import FptqError
from fptq_onnx.install_advice import install_advice
from fptq_onnx.packaging.triton_config import CONFIG_FILE
from fptq_onnx.session import first_line

_MISSING = f"needs KServe and Triton's client: {install_advice('kserve')}"


def load_repository(folder: Path) -> list[Any]:
    """A kserve.Model for each model of a repository.

    Raises:
        FptqError: no repository, a model that ONNX Runtime refuses, or the extra is missing.
    """
    configs = sorted(folder.glob(f"*/{CONFIG_FILE}"))
    if not configs:
        raise FptqError(f"no model repository at {folder}: no */{CONFIG_FILE}")
    return [_load(path) for path in configs]


def serve(models: Sequence[Any], *, host: str, port: int) -> None:
    """Answer requests until interrupted.

    Prints the address once it listens.

    Args:
        models: of `load_repository`.
        host: address to listen at.
        port: 0 for any that is free.

    Raises:
        FptqError: the address cannot be used.
    """
    import kserve
    from kserve.protocol.rest.server import RESTServer

    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise FptqError(f"cannot listen at {host}:{port}: {error.strerror}") from error
    registry = kserve.ModelServer(enable_grpc=False, http_port=port)
    for model in models:
        registry.register_model(model)
    _refuse_what_cannot_be_read(registry.dataplane)
    # Not its own start(): that listens on every interface.
    server = RESTServer(
        "kserve.model_server:app", registry.dataplane, registry.model_repository_extension, port
    )
    print(
        f"serving {', '.join(m.name for m in models)} at http://{host}:{_port(listening)}",
        flush=True,
    )
    server.run(sockets=[listening])


def _refuse_what_cannot_be_read(dataplane: Any) -> None:
    """Let a request whose data and shape do not agree be the client's mistake, 400 and not 500."""
    from kserve.errors import InvalidInput

    decode = dataplane.decode

    def checked(*arguments: Any, **named: Any) -> Any:
        try:
            return decode(*arguments, **named)
        except InvalidInput:
            raise
        except Exception as error:  # KeyError, ValueError, ...: whatever the bytes led to
            raise InvalidInput(
                f"the request's tensors cannot be read ({first_line(error)}): send data, shape "
                "and datatype that agree"
            ) from error

    dataplane.decode = checked


def _schema() -> Any:
    """tritonclient.grpc.model_config_pb2, by itself.

    Its package has the V2 protocol's messages as well, as KServe has, and one process cannot hold
    two descriptions of the same messages.
    """
    client = importlib.util.find_spec("tritonclient")
    places = client.submodule_search_locations if client is not None else None
    file = Path(next(iter(places or ()), "")) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise FptqError(_MISSING)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _port(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


def _load(config_file: Path) -> Any:
    """A model as its config.pbtxt says."""
    from google.protobuf import text_format

    empty = _schema().ModelConfig()
    try:
        config = text_format.Parse(config_file.read_text(encoding="utf-8"), empty)
    except text_format.ParseError as error:
        raise FptqError(f"{config_file} is not Triton's: {error}") from error
    versions = [path for path in config_file.parent.iterdir() if path.name.isdigit()]
    if not versions:
        raise FptqError(f"{config_file.parent} holds no version of the model")
    version = max(versions, key=lambda path: int(path.name))
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception, too
    for name in config.model_operations.op_library_filename:
        # As the server sees it; seen from here, the library lies beside the model.
        path = Path(name) if Path(name).is_file() else version / Path(name).name
        if not path.is_file():
            raise FptqError(f"no library {name}, and none of its name in {version}")
        options.register_custom_ops_library(str(path))
    file = version / (config.default_model_filename or "model.onnx")
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types and bare RuntimeError
        raise FptqError(f"ONNX Runtime cannot run {file}: {first_line(error)}") from error
    return _model(config, session, version.name)


def _model(config: Any, session: ort.InferenceSession, version: str) -> Any:
    try:
        import kserve
        from kserve.errors import InvalidInput
        from kserve.utils.numpy_codec import from_np_dtype
    except ImportError as error:
        raise FptqError(_MISSING) from error

    class RepositoryModel(kserve.Model):  # type: ignore[misc]  # an extra, not looked at
        """One model of the repository."""

        def get_input_types(self) -> list[dict[str, Any]]:
            return _tensors(config.input, config.max_batch_size)

        def get_output_types(self) -> list[dict[str, Any]]:
            return _tensors(config.output, config.max_batch_size)

        async def predict(self, payload: Any, headers: Any = None, **_: Any) -> Any:
            feeds = {tensor.name: _array(tensor) for tensor in payload.inputs}
            known = [tensor.name for tensor in config.output]
            names = [output.name for output in payload.request_outputs or ()] or known
            try:
                arrays = await asyncio.to_thread(session.run, names, feeds)
            except Exception as error:  # what was sent does not suit the model
                raise InvalidInput(first_line(error)) from error
            outputs = [
                kserve.InferOutput(name, list(array.shape), from_np_dtype(array.dtype), array)
                for name, array in zip(names, arrays, strict=True)
            ]
            return kserve.InferResponse(
                payload.id, self.name, outputs, model_version=version,
                use_binary_outputs=payload.use_binary_outputs,
                requested_outputs=payload.request_outputs,
            )  # fmt: skip

    def _array(tensor: Any) -> Any:
        try:
            return tensor.as_numpy()
        except Exception as error:  # NumPy's, of data that do not suit the shape or the type
            raise InvalidInput(
                f"the data of {tensor.name} are not {tensor.datatype} of shape "
                f"{list(tensor.shape)}: {first_line(error)}"
            ) from error

    model = RepositoryModel(config.name)
    model.ready = True
    return model


def _tensors(specs: Any, max_batch: int) -> list[dict[str, Any]]:
    """Metadata of the V2 protocol: where there is a batch axis, it is part of the shape."""
    batch = [-1] if max_batch else []
    return [
        {
            "name": spec.name,
            "datatype": _V2_NAMES.get(spec.data_type, ""),
            "shape": [*batch, *spec.dims],
        }
        for spec in specs
    ]


# model_config.proto's DataType, by number, and the V2 protocol's names.
_V2_NAMES = dict(
    enumerate(
        ["BOOL", *(f"UINT{n}" for n in (8, 16, 32, 64)), *(f"INT{n}" for n in (8, 16, 32, 64)),
         "FP16", "FP32", "FP64", "BYTES", "BF16"],
        start=1,
    )
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0, or 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="serve_repository", description=__doc__.split("\n")[0])
    parser.add_argument("repository", type=Path, help="the folder models/ of a Triton package")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--http-port", type=int, default=8000, help="0 for any free one (8000)")
    options = parser.parse_args(arguments)
    sys.argv = sys.argv[:1]  # kserve reads options of its own when it is imported
    try:
        serve(load_repository(options.repository), host=options.host, port=options.http_port)
    except FptqError as error:
        print(f"serve_repository: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
