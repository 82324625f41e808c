"""srr_triton::neuron_mlp: as srr::neuron_mlp, for 1 to 8 rows and weights laid out by input, by kernels.

With `whole_up`, `up` is laid out by neuron, and the gates are three: channels of the gate's weight, rows of `up`,
channels of `down`; five launches. Otherwise the neuron gate is not asked, and counts nothing, and `up` is read by
channel along with the gate; four launches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from srrc.backends.triton.kernels.gated_mlp import Config as RowsConfig
from srrc.backends.triton.kernels.gated_mlp import configs as rows_configs
from srrc.backends.triton.kernels.gated_mlp import default_config as default_rows_config
from srrc.backends.triton.kernels.listed_rows import listed_rows
from srrc.backends.triton.kernels.lists import Kept
from srrc.backends.triton.kernels.select import select, select_act
from srrc.backends.triton.ops.channel_linear import block_for, factors, over_lists
from srrc.backends.triton.tune import key, lookup

ROWS_NAME = "listed_rows"


def rows_config_for(
    rows: int, inputs: int, neurons: int, dtype: torch.dtype, device: torch.device
) -> RowsConfig:
    """How rows of `up` are computed: as measured on this card, or by default."""
    return lookup(*rows_choice(rows, inputs, neurons, dtype), device)


def rows_choice(
    rows: int, inputs: int, neurons: int, dtype: torch.dtype
) -> tuple[str, Sequence[RowsConfig], RowsConfig]:
    """As `channel_linear.choice`."""
    name = key(ROWS_NAME, rows=rows, inputs=inputs, neurons=neurons, dtype=dtype)
    return name, rows_configs(rows), default_rows_config(rows)


def neuron_mlp(
    x: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    activation: str,
    input_norm: Tensor,
    neuron_norm: Tensor,
    down_norm: Tensor,
    gates: Tensor,
    counters: Tensor,
    emphasis: Tensor | None = None,
    whole_up: bool = False,
) -> Tensor:
    """Raises ValueError for what the kernels do not take; `lower.py` asks before."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    (batch, inputs), neurons, outputs = rows.shape, len(up_weight), len(down_weight)
    of_gates = (None, None, None) if emphasis is None else factors(rows, emphasis).unbind()
    by_channel = (
        [up_weight] if gate_weight is None else [gate_weight] if whole_up else [gate_weight, up_weight]
    )
    biases = [up_bias] if gate_weight is None else [gate_bias] if whole_up else [gate_bias, up_bias]
    inner, last = block_for(batch, by_channel), block_for(batch, [down_weight])
    read = select(rows, input_norm, gates[0], of_gates[0], block=inner)
    both = over_lists(rows, read, by_channel, biases, gates[0], counters)
    before, *others = torch.split_with_sizes(both, [neurons] * len(by_channel), -1)
    kept: Kept
    if gate_weight is not None and whole_up:
        acted, chosen = select_act(
            before, neuron_norm, gates[1], emphasis=of_gates[1], activation=activation, block=last
        )
        hidden, kept = listed_rows(
            rows, acted, chosen, up_weight, down_norm, gates[1:], up_bias, of_gates[2], counters,
            counter=3, config=rows_config_for(batch, inputs, neurons, x.dtype, x.device),
        )  # fmt: skip
    else:
        hidden, kept = select_act(
            before,
            down_norm,
            gates[2],
            others[0] if others else None,
            of_gates[2],
            activation=activation,
            block=last,
        )
    out = over_lists(hidden, kept, [down_weight], [down_bias], gates[2], counters, counter=6)
    return out.reshape(*x.shape[:-1], outputs)


op = torch.library.triton_op("srr_triton::neuron_mlp", neuron_mlp, mutates_args={"counters"})
