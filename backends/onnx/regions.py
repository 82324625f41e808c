"""Parts of an ONNX graph that lead to one value alone, and copies of them for the branches of an `If`."""

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

Copies = dict[ir.Value, ir.Value]
"""Value -> what stands for it in a copy."""


def leading_to(reader: ir.Node, ends: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes of `reader`'s graph whose values reach nothing but `reader`, and that through `ends`; in graph order.

    What also leads elsewhere (keys and values that are handed out, a norm that a gate reads) is not among them.
    """
    graph = reader.graph
    assert graph is not None
    wanted = set(ends)
    inside: set[ir.Node] = set()
    found: list[ir.Node] = []
    before = False
    for node in reversed(graph):
        if node is reader:
            before = True
        elif before and _only_into(node, inside, reader, wanted):
            inside.add(node)
            found.append(node)
    return found[::-1]


def _only_into(node: ir.Node, inside: set[ir.Node], reader: ir.Node, ends: set[ir.Value]) -> bool:
    read = False
    for value in node.outputs:
        if value.is_graph_output():
            return False
        for user in value.consumers():
            if user not in inside and not (user is reader and value in ends):
                return False
            read = True
    return read


def copy_nodes(nodes: Sequence[ir.Node], copies: Copies) -> list[ir.Node]:
    """Copies of `nodes`, which read what `copies` says instead of the originals; adds their outputs to it."""
    made = []
    for node in nodes:
        new = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copies.get(value, value) for value in node.inputs],
            [_copy_attribute(attribute, copies) for attribute in node.attributes.values()],
            num_outputs=len(node.outputs),
            version=node.version,
        )
        for old, fresh in zip(node.outputs, new.outputs, strict=True):
            fresh.type, fresh.shape, fresh.name = old.type, old.shape, old.name
            copies[old] = fresh
        made.append(new)
    return made


def _copy_attribute(attribute: ir.Attr, copies: Mapping[ir.Value, ir.Value]) -> ir.Attr:
    if attribute.type != ir.AttributeType.GRAPH:
        return attribute
    inner = dict(copies)
    graph = attribute.as_graph()
    nodes = copy_nodes(list(graph), inner)
    outputs = [inner.get(value, value) for value in graph.outputs]
    return ir.AttrGraph(attribute.name, ir.Graph([], outputs, nodes=nodes, name=graph.name))


def branch(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], name: str) -> ir.Graph:
    """A subgraph for an `If`; a value of the surrounding graph that it gives as it is goes through an `Identity`."""
    own = {value for node in nodes for value in node.outputs}
    made, given = [*nodes], []
    for value in outputs:
        if value in own:
            given.append(value)
        else:
            node = ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            made.append(node)
            given.append(node.outputs[0])
    return ir.Graph([], given, nodes=made, name=name)
