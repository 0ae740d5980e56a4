"""Every choice a conversion makes, in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass

from fptq_onnx.errors import FptqError
from fptq_onnx.linear_selector import selector
from fptq_onnx.numerics.group_weights import PER_CHANNEL

TARGETS = ("custom", "matmulnbits", "qdq")
WEIGHTS = ("gptq", "mse", "rtn")
EQUALIZATIONS = ("search", "lae", "smoothquant", "none")
EMBEDDING_BITS = (8, 4, 32)
KV_CACHES = ("float", "int8")
POLICIES = ("measured", "thresholds", "static", "per_token", "float")
BLOCK_SIZES = (32, 64, 128, 256, PER_CHANNEL)


@dataclass(frozen=True)
class Config:
    """Options of a conversion.

    The paper's own method is weights "rtn", equalization "lae" and policy "thresholds".

    v0, v1: thresholds on max|x| of a linear's input: up to v0 static, up to v1 equalized (LAE) and
        static, beyond it per-token dynamic.
    block_size: input channels per group of weights; -1 is one group per output channel.
    symmetric: zero point fixed in the middle rather than one per group.
    w8: like `ignore`; matching linears get 8-bit weights instead of 4-bit.
    fuse: put linears that share an input into one op of ours (target custom).
    clean_up: respell attention and norms that exporters decomposed, where that is faster
        (clean_up.py).
    ignore: linears that stay in float: `role:down`, `layer:0`, `layer:0-3`, or a regular expression
        found in the node name, module path or weight name (linear_selector.py).
    quantize_routers: whether routers of experts and gates of recurrences (graph/gates.py) are
        quantized as other linears are; if not, those that `w8` matches are.
    weights: one of WEIGHTS: how weights are rounded.
    equalization: one of EQUALIZATIONS: which divisors are folded into norms and, but for lae, into
        linears before.
    policy: one of POLICIES: measured errors or thresholds on ranges choose the scheme, or all
        linears get the same: static, per_token, or float (activations are not quantized).
    weight_bits: of all linears that --w8 does not match: 4, or 8 (then per channel).
    bits_budget: average bits per weight; what 4 bits leave of it makes the linears that need it
        most 8 bits wide. None: all as `w8` says.
    embedding_bits: of token embeddings: 8, 4 (not for target qdq), or 32 to leave them.
    kv_cache: one of KV_CACHES: int8 keeps keys and values as codes, where the attention is a
        GroupQueryAttention.
    quantize: False stops after equalization and writes float weights, to check the folds.
    """

    v0: float = 15.0
    v1: float = 150.0
    block_size: int = 128
    symmetric: bool = True
    ignore: tuple[str, ...] = ()
    w8: tuple[str, ...] = ()
    fuse: bool = True
    clean_up: bool = True
    quantize_routers: bool = False
    weights: str = "gptq"
    equalization: str = "search"
    policy: str = "measured"
    weight_bits: int = 4
    bits_budget: float | None = None
    embedding_bits: int = 8
    kv_cache: str = "float"
    quantize: bool = True

    @property
    def walks(self) -> bool:
        """Whether the conversion needs to run the model stage by stage.

        What rounds to nearest, with divisors and schemes from ranges alone, does not.
        """
        by_tokens = self.weights != "rtn" or self.equalization == "search"
        return by_tokens or self.policy == "measured" or self.bits_budget is not None

    @property
    def of_paper(self) -> bool:
        """Whether divisors and schemes are the paper's own: LAE where thresholds on ranges say."""
        return (self.equalization, self.policy) == ("lae", "thresholds")

    def __post_init__(self) -> None:
        """Refuse options that make no sense.

        Raises:
            FptqError: v0 > v1, a negative threshold, an unknown block size or a bad expression.
        """
        if not 0 <= self.v0 <= self.v1:
            raise FptqError(
                f"the thresholds must satisfy 0 <= v0 <= v1, got v0 = {self.v0:g} and "
                f"v1 = {self.v1:g}: raise --v1 or lower --v0"
            )
        if self.block_size not in BLOCK_SIZES:
            choices = ", ".join(map(str, BLOCK_SIZES))
            raise FptqError(f"block size {self.block_size} is not one of {choices}")
        for option, value, known in (
            ("--weights", self.weights, WEIGHTS),
            ("--equalization", self.equalization, EQUALIZATIONS),
            ("--policy", self.policy, POLICIES),
            ("--kv-cache", self.kv_cache, KV_CACHES),
        ):
            if value not in known:
                raise FptqError(f"{option} {value!r} is not one of {', '.join(known)}")
        if self.weight_bits not in (4, 8):
            raise FptqError(f"weights have 4 or 8 bits, not {self.weight_bits}")
        if self.embedding_bits not in EMBEDDING_BITS:
            raise FptqError(
                f"--embedding-bits must be 8, 4, or 32 to leave them, got {self.embedding_bits}"
            )
        if self.kv_cache == "int8" and not self.quantize:
            raise FptqError("--equalize-only keeps all floats: leave --kv-cache int8 out")
        if self.bits_budget is not None and not 0 < self.bits_budget <= 32:
            raise FptqError(f"--bits-budget must be between 4 and 32, got {self.bits_budget:g}")
        options = [("--ignore", self.ignore), ("--w8", self.w8)]
        for option, expression in [(name, text) for name, texts in options for text in texts]:
            selector(option, expression)


PAPER = Config(weights="rtn", equalization="lae", policy="thresholds", embedding_bits=32)
