"""Copies a graph, so that passes never edit what Dynamo captured."""

from torch import fx


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A graph that passes may edit, so that the original stays what Dynamo captured."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, val_map={}))
    return copy
