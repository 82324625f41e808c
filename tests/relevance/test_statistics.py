import torch
from torch import fx

from srrc.relevance.replay import Replay
from srrc.relevance.statistics import look


def test_values_are_seen_and_nothing_is_run_after_the_last() -> None:
    ran: list[str] = []

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = x + 1
            b = a * 2
            return b - 3

    gm = fx.symbolic_trace(Model())
    replay = Replay(gm, ())
    run = replay._interpreter.run_node
    replay._interpreter.run_node = lambda node: ran.append(node.name) or run(node)  # type: ignore[method-assign,func-returns-value]
    nodes = {node.name: node for node in gm.graph.nodes}
    seen: dict[str, list[float]] = {"add": [], "x": []}
    looks = {
        nodes["add"]: [lambda value: seen["add"].append(float(value))],
        nodes["x"]: [lambda value: seen["x"].append(float(value))],
    }
    look(replay, [[torch.tensor(1.0)], [torch.tensor(5.0)]], looks)
    assert seen == {"add": [2.0, 6.0], "x": [1.0, 5.0]}
    assert ran == ["add", "add"]
