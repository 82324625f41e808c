"""What the written graphs look like, where that is what makes them fast."""

from typing import Any

import onnx
import pytest


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def kinds(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def test_both_kinds_of_tokens_share_one_attention_under_one_if(export: Any) -> None:
    (file,) = export("llama", "coarse")
    graph = onnx.load(file.path, load_external_data=False).graph
    attending = [
        branches
        for branches in map(subgraphs, graph.node)
        if any("Attention" in kinds(branch) for branch in branches)
    ]
    assert len(attending) == 2, "one a layer"
    for branches in attending:
        assert [kinds(branch).count("Attention") for branch in branches] == [1, 1]
        assert not any("If" in kinds(branch) for branch in branches), "weights in an inner If are not packed"
        assert {kinds(branch).count("MatMulNBits") for branch in branches} == {0, 2}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("how", ["out", "coarse"])
def test_no_shape_is_computed_that_could_be_a_constant(name: str, how: str, export: Any) -> None:
    (file,) = export(name, how)
    graph = onnx.load(file.path, load_external_data=False).graph
    known = {each.name for each in graph.initializer}
    for inside in [graph, *(branch for node in graph.node for branch in subgraphs(node))]:
        constants = known | {node.output[0] for node in inside.node if node.op_type == "Constant"}
        shapes = [node.input[1] for node in inside.node if node.op_type == "Reshape"]
        assert not [shape for shape in shapes if shape not in constants]
