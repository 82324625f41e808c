"""What a pathway says of itself is what the graph computes: each is recomputed from its fields alone."""

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from srrc.models_zoo import families
from srrc.pathways.attention import Attention
from srrc.pathways.base import Linear
from srrc.pathways.expert import Experts
from srrc.pathways.neuron import Mlp

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.values: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> object:
        self.values[n] = super().run_node(n)
        return self.values[n]


def _linear(linear: Linear, values: dict[fx.Node, Tensor], x: Tensor) -> Tensor:
    weight = values[linear.weight]
    weight = weight.t() if linear.transposed else weight
    bias = values[linear.bias] if linear.bias is not None else None
    if linear.rows is not None:
        weight = weight[slice(*linear.rows)]
        bias = bias[slice(*linear.rows)] if bias is not None else None
    assert weight.shape == (linear.out_features, linear.in_features)
    return F.linear(x, weight, bias)


def _mlp(site: Mlp, values: dict[fx.Node, Tensor]) -> Tensor:
    x, act = values[site.x], ACTIVATIONS[site.activation]
    up = _linear(site.up, values, x)
    hidden = act(up) if site.gate is None else act(_linear(site.gate, values, x)) * up
    return _linear(site.down, values, hidden)


def _attention(site: Attention, values: dict[fx.Node, Tensor]) -> Tensor:
    q, k, v = (values[node].double() for node in (site.q, site.k_base, site.v_base))
    k, v = (each.repeat_interleave(site.groups, dim=1) for each in (k, v))
    scale = site.scale if site.scale is not None else q.shape[-1] ** -0.5
    scores = scale * q @ k.transpose(-1, -2)
    if site.softcap is not None:
        scores = site.softcap * torch.tanh(scores / site.softcap)
    if site.is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    if site.mask is not None:
        mask = values[site.mask]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (torch.softmax(scores, -1) @ v).float()


def _experts(site: Experts, values: dict[fx.Node, Tensor]) -> Tensor:
    x, out = values[site.x], []
    ends = [0, *values[site.ends].tolist()]
    for expert in range(site.experts):
        hidden = F.linear(x[ends[expert] : ends[expert + 1]], values[site.gate_up][expert])
        gate, up = hidden.chunk(2, -1)
        out.append(F.linear(ACTIVATIONS[site.activation](gate) * up, values[site.down][expert]))
    return torch.cat(out)


@pytest.mark.parametrize("name", families.names())
def test_sites_recompute_the_values_of_the_graph(name: str, family_graph) -> None:
    graph = family_graph(name)
    recorder = _Recorder(graph.find())
    with torch.no_grad():
        recorder.run(*graph.arguments())
        values = recorder.values
        for pathway in graph.context.pathways:
            site = pathway.site
            if pathway.kind in {"neuron", "attention", "expert"}:
                compute = {"neuron": _mlp, "attention": _attention, "expert": _experts}[pathway.kind]
                torch.testing.assert_close(compute(site, values), values[pathway.output])
            elif pathway.kind in {"channel", "vocab"}:
                for linear in getattr(site, "linears", None) or (site.linear,):
                    torch.testing.assert_close(
                        _linear(linear, values, values[pathway.inputs[0]]), values[linear.node]
                    )
            else:
                parts = values[site.add]
                assert pathway.output is site.exit
                assert values[site.stream].shape == values[site.exit].shape == parts.shape


@pytest.mark.parametrize("name", families.names())
def test_a_branch_left_out_leaves_a_graph_that_runs(name: str, family_graph) -> None:
    graph = family_graph(name)
    for index in range(len((graph.find(), graph.of("residual"))[1])):
        gm = graph.find()
        pathway = graph.of("residual")[index]
        site = pathway.site
        (other,) = [term for term in site.add.args if term is not site.exit]
        site.add.replace_all_uses_with(other)
        gm.graph.erase_node(site.add)
        for node in reversed(pathway.nodes):
            gm.graph.erase_node(node)  # refuses a node that anything else still reads
        gm.graph.lint()
        gm.recompile()
        with torch.no_grad():
            outputs = gm(*graph.arguments())
        assert all(torch.isfinite(out).all() for out in outputs if isinstance(out, Tensor))


@pytest.mark.parametrize("name", families.names())
def test_every_pathway_is_whole(name: str, family_graph) -> None:
    graph = family_graph(name)
    gm = graph.find()
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    for pathway in graph.context.pathways:
        inside = set(pathway.nodes)
        assert list(pathway.nodes) == sorted(inside, key=order.__getitem__)
        assert pathway.output in inside
        assert pathway.units >= 1
        read = {a for node in inside for a in node.all_input_nodes} - inside
        named = {node for node in read if node.name in graph.context.fqns}
        transposed = {node for node in read if node.target == "t" and node.args[0].name in graph.context.fqns}
        assert set(pathway.inputs) == read - named - transposed
        assert not graph.view(gm).constants & set(pathway.inputs), "an input that is only weights"
        if pathway.kind in {"neuron", "expert", "attention", "residual"}:
            outputs = {pathway.output, *([pathway.site.add] if pathway.kind == "residual" else [])}
            for node in inside - outputs:
                assert set(node.users) <= inside, f"{node} of {pathway.place} is read outside"
    assert len({(p.kind, p.place) for p in graph.context.pathways}) == len(graph.context.pathways)
