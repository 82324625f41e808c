"""srr::vocab_head: logits that are exact for the tokens that can come next, and coarse for the others.

    vocab_head(Tensor x, Tensor weight, Tensor? bias, Tensor rotation, Tensor mean, Tensor coarse,
               Tensor? coarse_scale, Tensor coarse_bias, Tensor norm, Tensor gate, Tensor(a!) counters,
               int exact) -> Tensor

x [..., H]; weight [V, H] (by rows: single rows are read); bias [V] or None; rotation [H, H] and mean float32
[H]: y = rotation @ (x - mean), in float32; coarse [V, H] (input-major, strides (1, V), to be fast) and
coarse_bias float32 [V]; norm float32 [H]; gate float32 [2]; counters int64 [4] -> contiguous [..., V].
`coarse` and `coarse_bias` may go on after the last token, to any length below the next block: nothing of that counts.
An int8 `coarse` comes with `coarse_scale`, float32 [ceil(V / SCALE_BLOCK), H]: one scale for each block of
successive tokens and each channel; any other has none.

Channel k of y is kept unless |y_k| * norm_k <= threshold. Coarse logits: coarse_bias + the kept y_k *
coarse[:, k]. The `exact` best of them (and any that equal the last) are replaced by exact logits. Where a row
keeps every channel (the gate is open, its guard failed, or nothing was small), or a coarse logit is NaN (that
is a failed guard), all its logits are exact and nothing coarse is computed for it. Up to `MAX_ROWS`
rows go together.

Counters: (offered, executed, guard_failed) in channels of y, as everywhere, and rows that went the coarse
way: only they pay for the rotation and the `exact` rows of `weight`. Above `MAX_ROWS` rows all is computed
densely.
Source of the idea: SVD-softmax (Shim et al. 2017), whose rank is fixed; here each input chooses its channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.ops.gate import MAX_ROWS, Decision, decide, input_score, zero_unless
from srrc.ops.register import Grads, Needs, register

SCALE_BLOCK = 4096
"""Successive tokens that share the scales of an int8 copy."""


@dataclass(frozen=True)
class Choice:
    """What one call does.

    decision: over channels
    coarse:   logits [rows, V], float32 or wider
    exact:    bool [rows, V]: which tokens' logits are exact
    whole:    bool [rows]: the rows that are exact throughout
    failed:   int64 []: rows that are not trusted
    """

    decision: Decision
    coarse: Tensor
    exact: Tensor
    whole: Tensor
    failed: Tensor


def rotate(x: Tensor, rotation: Tensor, mean: Tensor) -> Tensor:
    """The channels: rotation @ (x - mean). x [..., H], any dtype -> float32 (float64 for float64 inputs)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(wide) - mean.to(wide), rotation.to(wide))


def coarse_logits(y: Tensor, coarse: Tensor, coarse_scale: Tensor | None, coarse_bias: Tensor) -> Tensor:
    """All of coarse_bias + y @ coarse^T. y [rows, H] -> [rows, V] of y's dtype."""
    if coarse_scale is None:
        return F.linear(y, coarse.to(y.dtype), coarse_bias.to(y.dtype))
    parts = [F.linear(y * scale, part.to(y.dtype)) for part, scale in _blocks(coarse, coarse_scale)]
    return torch.cat(parts, -1) + coarse_bias.to(y.dtype)


def _blocks(coarse: Tensor, coarse_scale: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    parts = torch.split(coarse, SCALE_BLOCK)
    return zip(parts, coarse_scale.unbind(), strict=True)


def choose(
    y: Tensor,
    coarse: Tensor,
    coarse_scale: Tensor | None,
    coarse_bias: Tensor,
    norm: Tensor,
    gate: Tensor,
    exact: int,
) -> Choice:
    """What is kept and which tokens deserve exact logits. y [rows, H], rotated."""
    decision = decide(input_score(y, norm), gate)
    logits = coarse_logits(zero_unless(decision.keep, y), coarse, coarse_scale, coarse_bias)
    everything = decision.keep.all(-1)
    odd = logits.isnan().any(-1) & ~everything
    whole = everything | odd
    if len(y) <= MAX_ROWS:
        whole = whole.any().expand_as(whole)
    last = logits.topk(min(max(exact, 1), logits.shape[-1])).values[:, -1:]
    tokens = (logits >= last) if exact > 0 else torch.zeros_like(logits, dtype=torch.bool)
    return Choice(decision, logits, tokens | whole[:, None], whole, decision.failed + odd.sum())


def _count(counters: Tensor, x: Tensor, choice: Choice | None, gate: Tensor) -> None:
    rows, channels = x.shape
    offered = torch.tensor(rows * channels, device=counters.device)
    executed, coarse_rows = offered, torch.zeros_like(offered)
    if choice is None:
        failed = rows * (gate[1] > 1).to(torch.int64)
    else:
        failed = choice.failed
        if rows <= MAX_ROWS and not bool(choice.whole.any()):
            executed, coarse_rows = choice.decision.keep.sum(), torch.full_like(offered, rows)
    counters += torch.stack((offered, executed, failed, coarse_rows))


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rotation: Tensor,
    mean: Tensor,
    coarse: Tensor,
    coarse_scale: Tensor | None,
    coarse_bias: Tensor,
    norm: Tensor,
    gate: Tensor,
    counters: Tensor,
    exact: int,
) -> Tensor:
    """The truth: both sets of logits, and a choice by token."""
    dense = F.linear(x, weight, bias).contiguous()
    rows = x.reshape(-1, x.shape[-1])
    if bool(gate[0] < 0) or len(rows) == 0:
        _count(counters, rows, None, gate)
        return dense
    y = rotate(rows, rotation, mean)
    coarse, coarse_bias = coarse[: len(weight)], coarse_bias[: len(weight)]
    choice = choose(y, coarse, coarse_scale, coarse_bias, norm, gate, exact)
    _count(counters, rows, choice, gate)
    return torch.where(choice.exact, dense.view(choice.coarse.shape), choice.coarse.to(x.dtype)).view(
        dense.shape
    )


def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rotation: Tensor,
    mean: Tensor,
    coarse: Tensor,
    coarse_scale: Tensor | None,
    coarse_bias: Tensor,
    norm: Tensor,
    gate: Tensor,
    counters: Tensor,
    exact: int,
) -> Tensor:
    """Output shape only."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def backward(
    grad: Tensor,
    needs: Needs,
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rotation: Tensor,
    mean: Tensor,
    coarse: Tensor,
    coarse_scale: Tensor | None,
    coarse_bias: Tensor,
    norm: Tensor,
    gate: Tensor,
    counters: None,
    exact: int,
) -> Grads:
    """Gradients of whatever is differentiable, with the kept channels and the chosen tokens held constant."""
    given = {"x": x, "weight": weight, "bias": bias, "rotation": rotation, "mean": mean, "coarse": coarse}
    given |= {"coarse_scale": coarse_scale, "coarse_bias": coarse_bias}
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in given.items()
        if isinstance(value, Tensor) and needs[name]
    }
    a = {**given, **leaves}
    tokens = weight.shape[0]
    with torch.enable_grad():
        logits = F.linear(a["x"], a["weight"], a["bias"])  # type: ignore[arg-type]
        if bool(gate[0] >= 0):
            with torch.no_grad():
                y = rotate(x.reshape(-1, x.shape[-1]), rotation, mean)
                choice = choose(y, coarse[:tokens], coarse_scale, coarse_bias[:tokens], norm, gate, exact)
            y = rotate(a["x"].reshape(-1, x.shape[-1]), a["rotation"], a["mean"])  # type: ignore[union-attr,arg-type]
            rough = coarse_logits(
                zero_unless(choice.decision.keep, y),
                a["coarse"][:tokens],  # type: ignore[index]
                a["coarse_scale"],
                a["coarse_bias"][:tokens],  # type: ignore[index]
            ).to(x.dtype)
            logits = torch.where(choice.exact, logits.reshape(rough.shape), rough).reshape(logits.shape)
        found = torch.autograd.grad(logits, list(leaves.values()), grad, allow_unused=True)
    return dict(zip(leaves, found, strict=True))


op = register(
    "vocab_head(Tensor x, Tensor weight, Tensor? bias, Tensor rotation, Tensor mean, Tensor coarse,"
    " Tensor? coarse_scale, Tensor coarse_bias, Tensor norm, Tensor gate,"
    " Tensor(a!) counters, int exact) -> Tensor",
    reference,
    fake,
    backward,
)
