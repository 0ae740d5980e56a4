from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.layer_groups import loaded
from support.tiny_graphs import build, weight

from fptq_onnx.calibration import whole_feeds as module
from fptq_onnx.calibration.data import TokenWindows
from fptq_onnx.calibration.feeds import Feeds
from fptq_onnx.calibration.whole_feeds import whole_feeds
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import LoadedModel


def windows(*lengths: int) -> TokenWindows:
    """Every id is its own: 100 * window + position."""
    return TokenWindows([100 * i + np.arange(n) for i, n in enumerate(lengths)], 1)


def language_model(
    rng: np.random.Generator, folder: Path, ids: str = "B, S", cache: bool = False
) -> LoadedModel:
    past = ", float[B, 2, P, 4] past_key" if cache else ""
    present = ", float[B, 2, T, 4] present_key" if cache else ""
    grow = " z = Expand(one, to) present_key = Concat<axis = 2>(past_key, z)"
    model = build(
        f"g_ (int64[{ids}] input_ids, int64[B, T] attention_mask, int64[B, S] position_ids{past})"
        f" => (float[{ids}, 9] logits{present}) {{ e = Gather(E, input_ids) logits = MatMul(e, W)"
        f"{grow if cache else ''} }}",
        {
            "E": weight(rng, 1000, 8),
            "W": weight(rng, 8, 9),
            **({"one": weight(rng, 1), "to": np.array([1, 2, 1, 4])} if cache else {}),
        },
    )
    return loaded(folder, model)


def ids_of(feeds: list) -> list[list[list[int]]]:
    return [feed["input_ids"].numpy().tolist() for feed in feeds]


def test_windows_of_one_length_share_batches(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_TOKENS", 7)
    model = language_model(rng, tmp_path)
    feeds = whole_feeds(model, windows(3, 2, 3, 3, 9))
    # Two windows of 3 in a batch of 7 tokens at most; one of 9 is a batch of its own.
    assert ids_of(feeds) == [
        [[0, 1, 2], [200, 201, 202]], [[300, 301, 302]], [[100, 101]], [list(range(400, 409))],
    ]  # fmt: skip
    for feed in feeds:
        shape = feed["input_ids"].numpy().shape
        np.testing.assert_array_equal(feed["attention_mask"].numpy(), np.ones(shape))
        np.testing.assert_array_equal(
            feed["position_ids"].numpy(), np.broadcast_to(np.arange(shape[1]), shape)
        )


def test_a_fixed_batch_is_filled_up(rng: np.random.Generator, tmp_path: Path) -> None:
    feeds = whole_feeds(language_model(rng, tmp_path, ids="2, S"), windows(2, 2, 2))
    assert ids_of(feeds) == [[[0, 1], [100, 101]], [[200, 201], [200, 201]]]


def test_a_fixed_length_cuts_and_leaves_out(rng: np.random.Generator, tmp_path: Path) -> None:
    model = language_model(rng, tmp_path, ids="B, 3")
    assert ids_of(whole_feeds(model, windows(5, 2, 3))) == [[[0, 1, 2], [200, 201, 202]]]
    with pytest.raises(FptqError, match="exactly 3 tokens at a time"):
        whole_feeds(model, windows(2, 1))


def test_a_cache_is_fed_empty(rng: np.random.Generator, tmp_path: Path) -> None:
    feeds = whole_feeds(language_model(rng, tmp_path, cache=True), windows(4, 4, 4))
    (feed,) = feeds
    past = feed["past_key"].numpy()
    assert past.shape == (3, 2, 0, 4) and past.dtype == np.float32


def test_feeds_stay_as_they_are(rng: np.random.Generator, tmp_path: Path) -> None:
    model = language_model(rng, tmp_path)
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).T, "y": np.zeros((), np.int64)}
    (feed,) = whole_feeds(model, Feeds([arrays]))
    assert set(feed) == {"x", "y"}
    np.testing.assert_array_equal(feed["x"].numpy(), arrays["x"])
    assert feed["y"].numpy().shape == ()
