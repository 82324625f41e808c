"""The vocabulary head's gate: how it comes into a graph, what it computes there, and what it counts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from srrc.ops.coarse_copy import coarse_copy
from srrc.passes.context import Context
from srrc.passes.find_pathways import FindPathways
from srrc.passes.gating import vocab
from srrc.passes.gating.source import GateSource
from srrc.passes.insert_gates import InsertGates
from srrc.passes.normalise import Normalise
from srrc.passes.pack_weights import gated_linears
from srrc.runtime.gates import set_records

WIDTH, TOKENS = 32, 480
GATE = "vocab:head.weight"


class Model(nn.Module):
    def __init__(self, *, bias: bool = False, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=bias)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embedding(ids)))


def gated(model, capture, ids, vectors=None, covers=None, levels=("vocab", "channel")):
    """The gated graph of one call, what the passes found, and what the graph gives for `ids`."""
    (graph,) = capture(model, ids)
    fake_mode = next(n.meta["example_value"] for n in graph.gm.graph.nodes if n.op == "placeholder").fake_mode
    inputs = [n for n in graph.gm.graph.nodes if n.op == "placeholder"]
    weights = dict(zip((n.name for n in inputs), graph.inputs, strict=True))
    source = GateSource(covers or (lambda gate: True), weights, vectors or {})
    context = Context(fqns=graph.context.fqns)
    gm = graph.copy()
    for each in (Normalise(), FindPathways(), InsertGates(source, frozenset(levels), fake_mode)):
        gm = each(gm, context)
    gm.graph.lint()
    gm.recompile()
    return gm, context, source, lambda: gm(*graph.arguments())[0]


def place(context):
    (gate,) = [gate for gate in context.gates if gate.id.startswith("vocab:")]
    return gate


@pytest.mark.parametrize("bias", [False, True])
def test_an_open_gate_gives_the_linear_and_counts_nothing_saved(capture, bias):
    model, ids = Model(bias=bias), torch.arange(4)[None]
    _, context, _, run = gated(model, capture, ids)
    gate = place(context)
    torch.testing.assert_close(run(), model(ids))
    assert gate.counters.tolist() == [4 * WIDTH, 4 * WIDTH, 0, 0]
    assert gate.saved == (0.0, 0.0)


def test_a_closed_gate_is_exact_for_the_best_tokens_and_near_for_the_others(capture):
    model, ids = Model(bias=True), torch.arange(4)[None]
    _, context, _, run = gated(model, capture, ids)
    gate = place(context)
    set_records([gate], {"decode": {gate.id: (8.0, 0.0)}})
    out, dense = run()[0].detach(), model(ids)[0].detach()
    assert not torch.allclose(out, dense, atol=1e-5)
    assert (out - dense).pow(2).mean() < 0.3 * dense.var()
    for row in range(4):
        same = torch.isclose(out[row], dense[row], atol=1e-5)
        assert TOKENS // 24 <= int(same.sum()) < TOKENS
        assert bool(same[dense[row].argmax()])


def test_costs_are_those_of_the_channels_kept_and_of_being_there(capture):
    model, ids = Model(), torch.tensor([[7]])
    _, context, _, run = gated(model, capture, ids)
    gate = place(context)
    set_records([gate], {"decode": {gate.id: (2.0, 0.0)}})
    run()
    offered, kept, failed, at_work = gate.counters.tolist()
    assert (offered, failed, at_work) == (WIDTH, 0, 1)
    assert 0 < kept < WIDTH
    exact = TOKENS // 24
    flops, size = gate.saved
    assert 2 * WIDTH * TOKENS - flops == 2 * kept * TOKENS + 2 * WIDTH * (WIDTH + exact) + WIDTH
    tables = 2 * WIDTH * WIDTH + 4 * (WIDTH + WIDTH + TOKENS + WIDTH)
    assert 4 * WIDTH * TOKENS - size == kept * TOKENS + tables + 4 * exact * WIDTH


def test_the_basis_of_the_profile_is_used(capture):
    torch.manual_seed(1)
    model, ids = Model(), torch.arange(3)[None]
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    (graph,) = capture(model, ids)
    graph.find()
    (pathway,) = graph.of("vocab")
    names = {
        "rotation": rotation,
        "inverse": rotation.t(),
        "mean": torch.ones(WIDTH),
        "exact": torch.tensor(3),
    }
    vectors = {f"vocab:{pathway.place}/{name}": vector for name, vector in names.items()}
    gm, context, _, run = gated(model, capture, ids, vectors)
    gate = place(context)
    (node,) = [n for n in gm.graph.nodes if str(n.target) == "srr.vocab_head.default"]
    assert node.args[-1] == 3
    assert torch.equal(getattr(gm, node.args[3].target), rotation.bfloat16())
    set_records([gate], {"decode": {gate.id: (8.0, 0.0)}})
    errors = (run() - model(ids)).abs()
    assert gate.counters[3] == 3
    assert 0.01 < errors.max() < 2.0


@pytest.mark.parametrize(("device", "tokens"), [("cpu", 470), ("meta", 480)])
def test_a_card_reads_rows_of_a_copy_in_whole_pieces(device, tokens):
    """A row of a vocabulary that is no multiple of 16 would be read byte by byte; "meta" stands for a card."""
    weight = nn.Parameter(torch.randn(470, WIDTH, device=device))
    linear = SimpleNamespace(weight=SimpleNamespace(name="w"), bias=None, rows=None, transposed=False)
    source = GateSource(lambda gate: True, {"w": weight}, {})
    eye, mean = torch.eye(WIDTH, device=device), torch.zeros(WIDTH, device=device)
    copy = vocab._copy(linear, source, eye, mean)
    assert (copy.coarse.shape, copy.coarse.stride()) == ((tokens, WIDTH), (1, tokens))
    assert copy.bias.shape == (tokens,)
    assert copy.scale.shape == (1, WIDTH)
    assert vocab._copy(linear, source, eye, mean).coarse is copy.coarse


@pytest.mark.parametrize("tokens", [5, 4096, 4097])
def test_what_pads_a_copy_is_zero(tokens):
    weight, bias, eye = torch.randn(tokens, 8), torch.randn(tokens), torch.eye(8)
    plain, padded = (coarse_copy(weight, bias, eye, torch.ones(8), multiple=each) for each in (1, 16))
    assert len(padded.coarse) == len(padded.bias) == -(-tokens // 16) * 16
    assert torch.equal(padded.coarse[:tokens], plain.coarse)
    assert torch.equal(padded.bias[:tokens], plain.bias)
    assert torch.equal(padded.scale, plain.scale)
    assert torch.equal(padded.norm, plain.norm)
    assert not padded.coarse[tokens:].any()
    assert not padded.bias[tokens:].any()


def test_the_copy_is_a_quarter_and_near():
    torch.manual_seed(1)
    weight, mean, bias = torch.randn(9000, WIDTH), torch.randn(WIDTH), torch.randn(9000)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q * torch.linspace(0.1, 5, WIDTH)[:, None]
    copy = coarse_copy(weight, bias, torch.linalg.inv(rotation), mean)
    assert copy.coarse.dtype == torch.int8
    assert copy.coarse.stride() == (1, 9000)
    x = torch.randn(5, WIDTH)
    wide = copy.coarse.float() * copy.scale.repeat_interleave(4096, 0)[:9000]
    logits = F.linear(F.linear(x - mean, rotation), wide, copy.bias)
    assert (logits - F.linear(x, weight, bias)).abs().max() < 0.03 * logits.std() * WIDTH**0.5
    torch.testing.assert_close(
        copy.norm, torch.linalg.vector_norm(weight @ torch.linalg.inv(rotation), dim=0)
    )


def test_graphs_share_a_copy_until_the_weight_changes(capture):
    model, inverse = Model(), torch.eye(WIDTH)
    vectors = {f"vocab:embedding.weight/{name}": inverse for name in ("rotation", "inverse")}
    vectors["vocab:embedding.weight/mean"] = torch.zeros(WIDTH)
    vectors |= {name.replace("embedding", "head"): vector for name, vector in vectors.items()}

    def coarse(ids):
        gm, *_ = gated(model, capture, ids, vectors)
        (node,) = [n for n in gm.graph.nodes if str(n.target) == "srr.vocab_head.default"]
        return getattr(gm, node.args[5].target)

    first, second = coarse(torch.arange(3)[None]), coarse(torch.arange(4)[None])
    assert first is second
    with torch.no_grad():
        model.embedding.weight.mul_(2)
    assert coarse(torch.arange(3)[None]) is not first


def test_the_head_has_one_gate_and_its_weight_stays_by_rows(capture):
    model = Model(tied=False)
    _, context, source, _ = gated(model, capture, torch.arange(3)[None])
    assert sorted(gate.id.split(":")[0] for gate in context.gates) == ["channel", "vocab"]
    assert [r.reason.name for r in context.refusals if "head" in r.place and r.kind == "channel"] == [
        "OVERLAPS"
    ]
    assert not any("head" in linear.fqn for linear in gated_linears(context.pathways, source))


def test_without_the_level_the_channel_gate_takes_the_head(capture):
    _, context, _, _ = gated(Model(tied=False), capture, torch.arange(3)[None], levels=("channel",))
    assert {gate.id.split(":")[0] for gate in context.gates} == {"channel"}
    assert len(context.gates) == 2
