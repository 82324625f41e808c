"""What writes, what aliases, what changes the interpreter."""

import torch
from torch import Tensor
from torch.nn import functional as F

from srrc.pathways.effects import changes_interpreter, makes_fresh_storage, written_arguments


def _nodes(graph) -> dict[str, torch.fx.Node]:
    return {node.name: node for node in graph.gm.graph.nodes}


def test_writers_are_found_by_every_convention(capture) -> None:
    def function(x: Tensor, cache: Tensor, stats: Tensor) -> Tensor:
        cache.add_(1)
        cache[0] = 0
        cache *= 2
        cache.__iadd__(1)
        F.relu(cache, inplace=True)
        torch.add(x, 1, out=cache)
        normed = F.batch_norm(x, stats, stats.clone(), training=True)
        return normed + cache

    (graph,) = capture(function, torch.rand(4, 4), torch.rand(4, 4), torch.rand(4))
    written = [
        (getattr(node.target, "__name__", node.target), [w.name for w in written_arguments(node)])
        for node in graph.gm.graph.nodes
        if list(written_arguments(node))
    ]
    names = [name for name, _ in written]
    assert names == ["add_", "setitem", "imul", "__iadd__", "relu", "add", "batch_norm"]
    view = graph.view(graph.gm)
    x, cache, stats = (_nodes(graph)[name] for name in ("l_x_", "l_cache_", "l_stats_"))
    assert view.storage.is_written(cache)
    assert view.storage.is_written(stats)
    assert not view.storage.is_written(x)


def test_a_write_through_a_view_is_a_write(capture) -> None:
    def function(x: Tensor, cache: Tensor) -> Tensor:
        torch.flatten(cache)[2:].view(-1).mul_(3)
        return torch.sin(x) + cache

    (graph,) = capture(function, torch.rand(4, 4), torch.rand(4, 4))
    view = graph.view(graph.gm)
    x, cache = (_nodes(graph)[name] for name in ("l_x_", "l_cache_"))
    (writer,) = [node for node in view.nodes if node.target == "mul_"]
    (reader,) = [node for node in view.nodes if "add" in node.name]
    assert view.storage.is_written(cache)
    assert not view.storage.is_written(x)
    assert view.storage.writes_outside(writer)
    assert view.depends(reader, writer), "the sum reads what was written through the view"


def test_fresh_storage_is_only_claimed_where_it_is_known(capture) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return torch.sin(x), x.view(-1), x.contiguous(), torch.flatten(x), F.dropout(x, 0.1, False), x.exp()

    (graph,) = capture(function, torch.rand(4, 4))
    fresh = {n.name: makes_fresh_storage(n) for n in graph.gm.graph.nodes if n.op.startswith("call")}
    assert [name for name, value in fresh.items() if value] == ["sin", "exp"]


def test_a_custom_op_is_fresh_by_its_schema(capture) -> None:
    @torch.library.custom_op("srrc_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    @torch.library.custom_op("srrc_test::bump", mutates_args=("x",))
    def bump(x: Tensor) -> None:
        x.add_(1)

    twice.register_fake(torch.empty_like)
    bump.register_fake(lambda x: None)

    def function(x: Tensor) -> Tensor:
        y = twice(x)
        bump(y)
        return y

    (graph,) = capture(function, torch.rand(4))
    calls = [node for node in graph.gm.graph.nodes if node.op == "call_function"]
    assert [makes_fresh_storage(node) for node in calls] == [True, False]
    assert [len(list(written_arguments(node))) for node in calls] == [0, 1]


def test_interpreter_state_is_seen(capture) -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.vmap(torch.sin)(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return y @ y

    (graph,) = capture(function, torch.rand(4, 4))
    changing = [node.name for node in graph.gm.graph.nodes if changes_interpreter(node)]
    assert {"_enter_autocast", "_exit_autocast", "_vmap_increment_nesting"} <= set(changing)
