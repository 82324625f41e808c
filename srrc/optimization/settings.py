"""What a user may ask of `srrc.optimize`."""

from collections.abc import Mapping
from dataclasses import dataclass

from srrc.backends.onnx.export import OPSET
from srrc.backends.onnx.quantise import BITS
from srrc.errors import OptionError
from srrc.options import LEVELS, check_fraction, parse_options

OPSETS = (OPSET,)
"""Opsets that can be written: the one in which attention and norms are single operators."""

PRECISIONS = ("float32", "float16", "bfloat16", *BITS)


@dataclass(frozen=True)
class Settings:
    """How to optimize.

    budget:     share of the dense latency that may be spent, in (0, 1]; None is exact
    max_drift:  largest mean KL(dense, gated), nats a token: planned for, and measured; None tolerates any
    levels:     which kinds of pathway may be gated
    coarse:     bits of the weights that stand in for a branch's own where a profile is made here: 4, 8, or None to
                leave branches and blocks of neurons out instead
    precision:  of the weights, one of PRECISIONS; int8 and int4 by ONNX Runtime's own quantiser
    opset:      of the files
    threads:    of ONNX Runtime where it is timed
    prompts, new_tokens: greedy tokens that are compared with eager's
    heldout_tokens: tokens that drift and perplexity are measured on
    prefill, past: lengths at which latency is measured: of a first call, and of the cache when decoding
    rounds:     how often each call is timed
    frontier:   measure the file at every budget that it serves, and plot it
    variants:   budgets that get a small file of their own, over the same weights; 1.0 is the model without gates
    overwrite:  whether an output folder that exists may be replaced
    """

    budget: float | None = None
    max_drift: float | None = None
    levels: frozenset[str] = LEVELS
    coarse: int | None = 8
    precision: str = "float32"
    opset: int = OPSET
    threads: int = 1
    prompts: int = 4
    new_tokens: int = 32
    heldout_tokens: int = 2048
    prefill: int = 128
    past: int = 256
    rounds: int = 10
    frontier: bool = False
    variants: tuple[float, ...] = ()
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises OptionError for what cannot be."""
        for budget in (self.budget, *self.variants):
            check_fraction(budget)
        options: Mapping[str, object] = {"max_drift": self.max_drift, "profile": "unread"}
        parse_options(options)
        if self.opset not in OPSETS:
            known = ", ".join(map(str, OPSETS))
            raise OptionError(f"opset {self.opset} is not supported; known: {known}")
        if self.precision not in PRECISIONS:
            raise OptionError(f"no precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.coarse not in {None, 4, 8}:
            raise OptionError(
                f"coarse={self.coarse!r} is no width that there are kernels for; give 4 or 8 bits"
            )
        for name in ("threads", "prompts", "new_tokens", "heldout_tokens", "prefill", "rounds"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise OptionError(f"{name}={value!r} is not a whole number of at least 1")
        if type(self.past) is not int or self.past < 0:
            raise OptionError(f"past={self.past!r} is not a whole number of at least 0")

    @property
    def blocks(self) -> int | None:
        """Into how many blocks the neurons of MLPs are split where a profile is made here. None beside coarse weights,
        which save more and drift less.
        """
        return 8 if self.coarse is None and "neuron" in self.levels else None

    @property
    def exact(self) -> bool:
        """Whether nothing may change: then there are no gates."""
        return self.max_drift is None and self.budget in {None, 1.0}
