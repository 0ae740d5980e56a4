"""Any decoder fed by hand: several rows, left padding, a cache from the call before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.runtime.decoder import empty_cache, open_decoder
from fptq_onnx.runtime.session import open_session

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


class HandFed:
    """A model folder, and what a user writes who feeds it without this tool."""

    def __init__(self, folder: Path) -> None:
        self.io = open_decoder(folder, threads=1).io
        self.session = open_session(folder / "model.onnx", threads=1)

    def step(
        self, ids: Tokens, mask: Tokens, past: dict[str, ort.OrtValue] | None = None
    ) -> tuple[Logits, dict[str, ort.OrtValue]]:
        """Feed ids [B, S] whose mask [B, past + S] counts from the first token ever fed.

        Returns:
            Logits [B, S, vocabulary], and the cache for the next call.
        """
        length = ids.shape[1]
        places = np.clip(np.cumsum(mask, axis=1) - 1, 0, None)[:, -length:]
        feed = {self.io.input_ids.name: ids.astype(self.io.input_ids.dtype)}
        for spec, array in ((self.io.attention_mask, mask), (self.io.position_ids, places)):
            if spec is not None:
                feed[spec.name] = array.astype(spec.dtype)
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
        for tensor in self.io.cache:
            values[tensor.past] = past[tensor.past] if past else empty_cache(tensor, len(ids))
        names = [self.io.logits.name, *(tensor.present for tensor in self.io.cache)]
        logits, *presents = self.session.run_with_ort_values(names, values)
        pasts = [tensor.past for tensor in self.io.cache]
        return logits.numpy(), dict(zip(pasts, presents, strict=True))

    def whole(self, ids: Tokens) -> Logits:
        """Logits [B, S, vocabulary] of rows fed at once."""
        return self.step(ids, np.ones_like(ids))[0]

    def padded(self, rows: list[Tokens], side: str) -> list[Logits]:
        """Rows of different lengths in one batch, padded "left" or "right"; the logits of each."""
        width = max(map(len, rows))

        def pad(row: Tokens) -> Tokens:
            missing = width - len(row)
            return np.pad(row, (missing, 0) if side == "left" else (0, missing))

        ids = np.stack([pad(row) for row in rows])
        mask = np.stack([pad(np.ones_like(row)) for row in rows])
        logits = self.step(ids, mask)[0]
        starts = [width - len(row) if side == "left" else 0 for row in rows]
        return [logits[i, start : start + len(rows[i])] for i, start in enumerate(starts)]

    def by_steps(self, ids: Tokens, prefill: int) -> Logits:
        """`prefill` tokens at once, then one by one with the cache."""
        mask = np.ones_like(ids)
        logits, cache = self.step(ids[:, :prefill], mask[:, :prefill])
        found = [logits]
        for end in range(prefill + 1, ids.shape[1] + 1):
            logits, cache = self.step(ids[:, end - 1 : end], mask[:, :end], cache)
            found.append(logits)
        return np.concatenate(found, axis=1)
