"""Costs: equal to torch's own counter, symbolic where shapes are, and evaluable."""

import pytest
import sympy
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from srrc.models_zoo import families
from srrc.passes.annotate_cost import META, AnnotateCost, captured_sizes
from srrc.pathways.base import ZERO_COST, Cost

ADDITIVE = ("channel", "attention", "expert")
"""Kinds that share no work: their costs add up to the graph's."""


def _attention_flops(q, k, v, *args, out_shape=None, **kwargs) -> int:
    """What torch counts for the same call on a GPU, where its registry has a formula."""
    return sdpa_flop_count(q, (*q[:2], *k[2:]), (*q[:2], *v[2:]))


def _counted(model, inputs) -> int:
    ours = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ours) as counter:
        model(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt-neox", "falcon", "bert", "t5", "gemma2"])
def test_pathways_add_up_to_what_torch_counts(name: str, family_graph) -> None:
    tiny, graph = families.tiny(name), family_graph(name, dynamic=True)
    gm = graph.find()
    total = sum((p.cost for p in graph.context.pathways if p.kind in ADDITIVE), start=ZERO_COST)
    assert len(total.symbols) >= 2
    captured = captured_sizes(gm.graph)
    for batch, length in ((2, 8), (3, 17), (1, 1)):
        sizes = {symbol: {0: 0, 2: batch, 8: length}[captured[str(symbol)]] for symbol in total.symbols}
        assert total.at(sizes)[0] == _counted(tiny.model, tiny.inputs(batch, length))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_bytes_are_weights_and_activations_once(name: str, capture) -> None:
    """At one row the weights are nearly all of it; of four experts two run."""
    tiny = families.tiny(name)
    (graph,) = capture(tiny.model, **tiny.inputs(1, 1))
    graph.find()
    moved = sum(p.cost.at({})[1] for p in graph.context.pathways if p.kind in ADDITIVE)
    matrices = {n: p for n, p in tiny.model.named_parameters() if p.dim() >= 2 and "wpe" not in n}
    share = {n: 0.5 if "experts" in n else 1.0 for n in matrices}
    weights = sum(share[n] * p.numel() * 4 for n, p in matrices.items())
    if name == "mixtral":  # the head is not tied there, and the embedding is only looked up
        weights -= matrices["model.embed_tokens.weight"].numel() * 4
    assert weights < moved < 1.12 * weights


def test_costs_are_annotated_and_evaluated(family_graph) -> None:
    graph = family_graph("llama", dynamic=True)
    gm = graph.find()
    AnnotateCost()(gm, graph.context)
    costs = graph.context.costs
    assert costs.keys() == {(p.kind, p.place) for p in graph.context.pathways}
    # 2 B S (2 K N + N K): gate, up and down of 64 x 128
    assert costs["neuron", "model.layers.0.mlp.gate_proj.weight"][0] == 2 * 2 * 8 * 3 * 64 * 128
    annotated = [node for node in gm.graph.nodes if META in node.meta]
    assert {p.output for p in graph.of("channel")} <= set(annotated)
    captured = captured_sizes(gm.graph)
    (symbol,) = [s for s in graph.of("vocab")[0].cost.symbols if captured[str(s)] == 8]
    graph.context.sizes = {symbol: 100}
    AnnotateCost()(gm, graph.context)
    assert graph.context.costs["vocab", "model.embed_tokens.weight"][0] == 2 * 2 * 100 * 64 * 256


def test_experts_are_read_no_more_often_than_there_are_rows(family_graph) -> None:
    graph = family_graph("mixtral", dynamic=True)
    graph.find()
    cost = graph.of("expert")[0].cost
    one = dict.fromkeys(cost.symbols, 1)
    many = dict.fromkeys(cost.symbols, 8)
    weights = 4 * (2 * 128 * 64 + 128 * 64)  # bytes of one expert
    assert 2 * weights < cost.at(one)[1] < 2.2 * weights  # two rows, two experts
    assert 4 * weights < cost.at(many)[1]
    assert cost.at(one)[0] == 2 * 2 * 3 * 64 * 128


def test_a_missing_size_is_named() -> None:
    batch = sympy.Symbol("batch")
    cost = Cost(2 * batch, sympy.Integer(3))
    assert cost.at({batch: 4}) == (8.0, 3.0)
    assert cost.at({"batch": 5}) == (10.0, 3.0)
    with pytest.raises(KeyError, match="batch"):
        cost.at({})
