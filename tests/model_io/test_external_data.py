"""External data behind links and backslashes: what ONNX Runtime opens is opened, no more."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from support.model_layouts import hub_cache
from support.saved_models import DATA_NAME, linear_model, redirect, saved

from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.model_proto import needs_help
from fptq_onnx.runtime.session import open_session, open_session_in_memory, session_options

X = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)


def expected(tmp_path: Path) -> np.ndarray:
    """What the model gives with all weights in one plain file."""
    file = saved(tmp_path / "plain", linear_model(), external=None)
    return ort.InferenceSession(str(file)).run(None, {"x": X})[0]


def check(path: Path, tmp_path: Path) -> None:
    """It runs from its file and from memory, its weights are read, and it is converted."""
    want = expected(tmp_path)
    for session in (
        open_session(path, options=session_options(threads=1)),
        open_session_in_memory(load_model(path).model, load_model(path).data_folder, threads=1),
    ):
        np.testing.assert_array_equal(session.run(None, {"x": X})[0], want)
    samples = [{"x": X} for _ in range(2)]
    result = convert(path, tmp_path / "out", samples=samples, verify_samples=1, threads=1)
    assert result.reports["custom"].linears == 2


def linked(folder: Path, model_to: Path, data_to: Path) -> Path:
    """A folder with links to where the model and its data are moved."""
    file = saved(folder)
    for place, target in ((file, model_to), (folder / DATA_NAME, data_to)):
        if target != place:
            target.parent.mkdir(parents=True, exist_ok=True)
            place.rename(target)
            place.symlink_to(target)
    return file


def test_both_links_lead_to_one_folder(tmp_path: Path) -> None:
    check(linked(tmp_path / "m", tmp_path / "s" / "aa", tmp_path / "s" / "bb"), tmp_path)


def test_links_inside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    check(linked(folder, folder / "model.onnx", folder / "store" / "key" / "bb"), tmp_path)


def test_a_hub_cache_whose_model_file_is_no_link(tmp_path: Path) -> None:
    top = hub_cache(tmp_path, saved(tmp_path / "plain2").parent)
    snapshot = next((top / "snapshots").iterdir())
    file = snapshot / "model.onnx"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    # weights.bin is a link into blobs; ONNX Runtime's own rule would refuse it here.
    check(file, tmp_path)


def test_a_session_that_refuses_links_is_handed_the_files(tmp_path: Path) -> None:
    """ONNX Runtime 1.24.1 refuses every link out of the folder, others those of a graph in memory.

    Either way what it is handed names the files themselves.
    """
    file = linked(tmp_path / "m", tmp_path / "s" / "aa", tmp_path / "s" / "bb")
    loaded = load_model(file)
    assert loaded.data_base == tmp_path / "s"
    tensor = loaded.model.graph.initializers["W1"].const_value
    assert (tensor.location, tensor.base_dir) == ("bb", tmp_path / "s")
    assert needs_help(onnx.load(file, load_external_data=False), file)
    options = session_options(threads=1)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(file.parent)
    )
    with pytest.raises(Exception, match=r"escapes|allowed|cannot get file size"):
        ort.InferenceSession(file.read_bytes(), options)


@pytest.mark.parametrize(
    ("location", "at"),
    [
        (r".\weights.bin", "weights.bin"),
        (r"sub\weights.bin", "sub/weights.bin"),
        (r"sub\deep/weights.bin", "sub/deep/weights.bin"),
        (r"onnx\weights.bin", "weights.bin"),  # said from the folder above
        ("a\\b.bin", "a\\b.bin"),  # a name that has one, as Linux allows
    ],
)
def test_backslashes(tmp_path: Path, location: str, at: str) -> None:
    file = saved(tmp_path / "m")
    for name in ("W1", "W2"):
        redirect(file, name, location=location)
    (file.parent / at).parent.mkdir(parents=True, exist_ok=True)
    (file.parent / DATA_NAME).rename(file.parent / at)
    assert load_model(file).data_files == (file.parent / at,)
    check(file, tmp_path)


@pytest.mark.parametrize("name", ["mit Leer zeichen", "äöü 模型 \N{GRINNING FACE}", "100% [a]*'$x"])
def test_names_of_folders_and_files(tmp_path: Path, name: str) -> None:
    file = saved(tmp_path / name)
    for weight in ("W1", "W2"):
        redirect(file, weight, location=f"{name}.bin")
    (file.parent / DATA_NAME).rename(file.parent / f"{name}.bin")
    renamed = file.rename(file.parent / f"{name}.onnx")
    assert load_model(file.parent).file == renamed
    check(renamed, tmp_path)


def test_a_file_of_several_names(tmp_path: Path) -> None:
    """Hard links, as deduplicating tools make them; onnx_ir alone refuses these."""
    file = saved(tmp_path / "m")
    os.link(file.parent / DATA_NAME, tmp_path / "twin")
    check(file, tmp_path)


SECRET = "refused: the weight 'W1' points to external data outside the model's folder"


@pytest.mark.parametrize(
    "location",
    ["../secret", "sub/../../secret", "/etc/passwd", r"..\secret", r"C:\secret", r"\\host\secret",
     r"\secret", "..", r"sub\..\..\secret", ""],
)  # fmt: skip
def test_locations_outside_are_refused(tmp_path: Path, location: str) -> None:
    file = saved(tmp_path / "m", external=1024)
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    redirect(file, "W1", location=location)
    with pytest.raises(FptqError) as caught:
        load_model(file)
    assert str(caught.value).startswith(SECRET)
    with pytest.raises(FptqError):
        open_session(file)


def test_links_to_strange_places_are_refused(tmp_path: Path) -> None:
    """Such as an unpacked archive can hold; also where its folder looks like a hub cache."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 20))
    plain = saved(tmp_path / "m", external=1024)
    top = hub_cache(tmp_path, saved(tmp_path / "n", external=1024).parent)
    in_cache = next((top / "snapshots").iterdir()) / "model.onnx"
    chained = hub_cache(tmp_path / "c", saved(tmp_path / "n", external=1024).parent)
    in_chain = next((chained / "snapshots").iterdir()) / "model.onnx"
    blob = (in_chain.parent / DATA_NAME).resolve()
    blob.unlink()
    blob.symlink_to(secret)  # a blob that is a link itself
    for file in (plain, in_cache):
        (file.parent / DATA_NAME).unlink()
        (file.parent / DATA_NAME).symlink_to(secret)
    for file in (plain, in_cache, in_chain):
        with pytest.raises(FptqError, match=r"a symbolic link\): copy the files themselves, cp -r"):
            load_model(file)
        with pytest.raises(FptqError):
            open_session(file)


def test_a_folder_that_is_a_link_to_strange_places_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / DATA_NAME).write_bytes(bytes(1 << 20))
    file = saved(tmp_path / "m", external=1024)
    (file.parent / "sub").symlink_to(tmp_path / "other")
    redirect(file, "W1", location=f"sub/{DATA_NAME}")
    with pytest.raises(FptqError, match=r"^refused: the weight 'W1'"):
        load_model(file)
