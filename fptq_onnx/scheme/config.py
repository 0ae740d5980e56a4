"""Every choice a conversion makes, in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass

from fptq_onnx.errors import FptqError
from fptq_onnx.numerics.group_weights import PER_CHANNEL
from fptq_onnx.scheme import old_names
from fptq_onnx.scheme.layer_selector import selector

TARGETS = ("custom", "matmulnbits", "qdq")
WEIGHT_METHODS = ("gptq", "mse", "rtn")
EQUALIZATIONS = ("search", "lae", "smoothquant", "none")
EMBEDDING_BITS = (8, 4, 32)
KV_CACHES = ("float", "int8")
ACTIVATION_SCHEMES = ("measured", "thresholds", "static", "per_token", "weight_only")
BLOCK_SIZES = (32, 64, 128, 256, PER_CHANNEL)


@old_names.accepts_old_names(old_names.CONFIG_FIELDS)
@dataclass(frozen=True)
class Config:
    """Options of a conversion.

    The paper's own method is weight_method "rtn", equalization "lae" and activation_scheme
    "thresholds".

    v0, v1: thresholds on max|x| of a linear's input: up to v0 static, up to v1 equalized (LAE) and
        static, beyond it per-token dynamic.
    block_size: input channels per group of weights; -1 is one group per output channel.
    symmetric: zero point fixed in the middle rather than one per group.
    ignore: linears that stay in float: `role:down`, `layer:0`, `layer:0-3`, or a regular expression
        found in the node name, module path or weight name (layer_selector.py).
    int8_layers: like `ignore`; matching linears get 8-bit weights instead of 4-bit.
    fuse: put linears that share an input into one op of ours (target custom).
    graph_optimization: rewrite attention and norms that exporters decomposed, where that is faster
        (conversion/graph_optimization.py).
    quantize_routers: whether routers of experts and gates of recurrences
        (graph/linears/gates.py) are quantized as other linears are; if not,
        those that `int8_layers` matches are.
    weight_method: one of WEIGHT_METHODS: how weights are rounded.
    equalization: one of EQUALIZATIONS: which smoothing scales are folded into norms and, but for
        lae, into linears before.
    activation_scheme: one of ACTIVATION_SCHEMES: measured errors or thresholds on ranges choose the
        scheme, or all linears get the same: static, per_token, or weight_only (activations are not
        quantized).
    weight_bits: of all linears that `int8_layers` does not match: 4, or 8 (then per channel).
    target_bits: average bits per weight, scales included; bits beyond 4 are spent on the most
        sensitive linears. None: all as `int8_layers` says.
    embedding_bits: of token embeddings: 8, 4 (not for target qdq), or 32 to leave them.
    kv_cache: one of KV_CACHES: int8 keeps keys and values as codes, where the attention is a
        GroupQueryAttention.
    quantize: False stops after equalization and writes float weights, to check the folds.

    The names of before (old_names.CONFIG_FIELDS) are accepted until 0.2.
    """

    v0: float = 15.0
    v1: float = 150.0
    block_size: int = 128
    symmetric: bool = True
    ignore: tuple[str, ...] = ()
    int8_layers: tuple[str, ...] = ()
    fuse: bool = True
    graph_optimization: bool = True
    quantize_routers: bool = False
    weight_method: str = "gptq"
    equalization: str = "search"
    activation_scheme: str = "measured"
    weight_bits: int = 4
    target_bits: float | None = None
    embedding_bits: int = 8
    kv_cache: str = "float"
    quantize: bool = True

    @property
    def needs_sequential(self) -> bool:
        """Whether the conversion needs to run the model layer group by layer group.

        What rounds to nearest, with smoothing scales and schemes from ranges alone, does not.
        """
        by_tokens = self.weight_method != "rtn" or self.equalization == "search"
        return by_tokens or self.activation_scheme == "measured" or self.target_bits is not None

    @property
    def of_paper(self) -> bool:
        """Whether scales and schemes are the paper's own: LAE where thresholds on ranges say."""
        return (self.equalization, self.activation_scheme) == ("lae", "thresholds")

    def __post_init__(self) -> None:
        """Refuse options that make no sense.

        Raises:
            FptqError: v0 > v1, a negative threshold, an unknown block size or a bad expression.
        """
        activations = old_names.renamed_scheme(self.activation_scheme)
        object.__setattr__(self, "activation_scheme", activations)
        if not 0 <= self.v0 <= self.v1:
            raise FptqError(
                f"the thresholds must satisfy 0 <= v0 <= v1, got v0 = {self.v0:g} and "
                f"v1 = {self.v1:g}: raise --v1 or lower --v0"
            )
        if self.block_size not in BLOCK_SIZES:
            choices = ", ".join(map(str, BLOCK_SIZES))
            raise FptqError(f"block size {self.block_size} is not one of {choices}")
        for option, value, known in (
            ("--weight-method", self.weight_method, WEIGHT_METHODS),
            ("--equalization", self.equalization, EQUALIZATIONS),
            ("--activation-scheme", self.activation_scheme, ACTIVATION_SCHEMES),
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
        if self.target_bits is not None and not 0 < self.target_bits <= 32:
            raise FptqError(f"--target-bits must be between 4 and 32, got {self.target_bits:g}")
        options = [("--ignore", self.ignore), ("--int8-layers", self.int8_layers)]
        for option, expression in [(name, text) for name, texts in options for text in texts]:
            selector(option, expression)


PAPER = Config(
    weight_method="rtn", equalization="lae", activation_scheme="thresholds", embedding_bits=32
)
