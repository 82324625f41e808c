"""Lets attention read grouped keys and values as they are, where the model repeats them for each query head first."""

from dataclasses import dataclass

from torch import fx

from srrc.passes.context import Context
from srrc.pathways import attention
from srrc.pathways.attention import Attention
from srrc.pathways.base import Pathway
from srrc.pathways.graph_view import GraphView
from srrc.pathways.patterns import is_call


@dataclass(frozen=True)
class ShareHeads:
    """Gives each `scaled_dot_product_attention` over repeated heads the heads before their repetition."""

    name: str = "share_heads"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Edit `gm` in place; what is not read any more goes."""
        view = GraphView(gm.graph, context.fqns)  # gates have put copies of some calls into the graph
        for site in [each.site for each in attention.find(view) if isinstance(each, Pathway)]:
            if not isinstance(site, Attention) or site.groups == 1 or not is_call(site.node, "sdpa"):
                continue
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = dict(zip(names, site.node.args, strict=False)) | dict(site.node.kwargs)
            repeated = (site.k, site.v)
            given |= {"key": site.k_base, "value": site.v_base, "enable_gqa": True}
            site.node.args, site.node.kwargs = (), given
            for value in repeated:
                _drop(gm.graph, value)
        return gm


def _drop(graph: fx.Graph, value: fx.Node) -> None:
    """Erase `value` and what leads to it alone, as far as views go: that is how heads are repeated."""
    while not value.users and value.op != "placeholder":
        (source,) = value.all_input_nodes[:1]
        graph.erase_node(value)
        value = source
