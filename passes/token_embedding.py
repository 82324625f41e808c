"""Where a graph looks its tokens up: the input that holds their ids, and the table of embeddings."""

from collections.abc import Container

import torch
from torch import fx

_AS_THEY_ARE = {"view", "reshape", "flatten", "contiguous", "long", "int", "to"}
"""Methods that leave ids what they are."""


def token_embedding(gm: fx.GraphModule, weights: Container[str]) -> tuple[fx.Node, fx.Node] | None:
    """The placeholders (ids, table) of the graph's first embedding of an integer input; None where there is none.

    weights: names of the placeholders that hold weights
    A table of positions is looked up by ids that are computed or a buffer, so it is none of these.
    """
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.target is not torch.nn.functional.embedding:
            continue
        ids, table = _source(node.args[0]), node.args[1]
        if not (isinstance(ids, fx.Node) and isinstance(table, fx.Node)):
            continue
        if ids.op == table.op == "placeholder" and table.name in weights and ids.name not in weights:
            return ids, table
    return None


def _source(ids: object) -> object:
    """The node whose values the ids are, however they were reshaped."""
    while isinstance(ids, fx.Node) and ids.op == "call_method" and ids.target in _AS_THEY_ARE:
        ids = ids.args[0]
    return ids
