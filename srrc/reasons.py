"""Typed reasons: why a pathway was not gated, or a region fell back to the dense path."""

import enum
from dataclasses import dataclass


class Reason(enum.StrEnum):
    """One value a cause; the value is what `explain()` and `stats()` print."""

    # A pathway that was found but has no gate.
    NO_BUDGET = "no budget was asked for"
    NO_PROFILE = "no profile covers it"
    LEVEL_OFF = "its level is switched off in the options"
    UNKNOWN_ROWS = "how many rows it has is known only when it runs"
    NO_SAVING = "its gate costs more than it can save"
    MANY_ROWS = "with many rows every channel matters to some of them"
    MEASURED_SLOWER = "its gate measured slower than dense on this machine"
    FUEL_SPENT = "SRRC_FUEL stopped before it"
    NOT_GATED_YET = "this kind is recorded, not gated"
    WAITS_FOR_THE_HOST = "leaving it out would make the card wait for the host"
    OVERLAPS = "another pathway already covers these nodes"
    # A structure that was looked at and turned down.
    NOT_A_PARAMETER = "the weight is computed, not a parameter"
    SHARED_STORAGE = "the weight shares its storage with other tensors"
    NO_MEMORY = "there is no memory for another layout of the weight"
    UNSUPPORTED_DTYPE = "no kernel takes this dtype"
    UNSUPPORTED_SHAPE = "no kernel takes this shape"
    UNKNOWN_ACTIVATION = "the activation is not one a kernel has"
    USED_ELSEWHERE = "an intermediate value is also used elsewhere"
    NO_STREAM = "the sum has no term that goes on unchanged"
    INTERPRETER_STATE = "it changes the interpreter's state on the way"
    WRITTEN_BETWEEN = "something it reads is overwritten before it ends"
    UNKNOWN_STRUCTURE = "it looks like one, but is put together in a way that is not known"
    # A region or a whole graph that runs dense.
    AUTOGRAD = "gradients are on: the dense graph runs"
    NO_COMPILER = "no C++ compiler works here"
    STALE_PROFILE = "the weights changed since the profile was made"
    UNCERTAIN = "the context lies outside what was calibrated"
    COMPILE_FAILED = "the region did not compile"
    OTHER_DEVICE = "the graph is not on one CPU or one CUDA device"
    NO_TRITON = "Triton is not there"
    OLD_CARD = "the card is older than the kernels need"
    NO_KERNEL = "no kernel takes it"


@dataclass(frozen=True)
class Refusal:
    """A pathway or region that runs dense: where (`place`), of what `kind`, why, and one detail to mend it by."""

    place: str
    kind: str
    reason: Reason
    detail: str = ""
