"""Residual branches: where they start and end, what of them must run anyway, and what is no branch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    """Attention-like and MLP-like parts to put together."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mix, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 48), nn.Linear(48, 16)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def _branches(graph) -> list[tuple[str, str, str, str]]:
    graph.find()
    return [(p.place, p.site.entry.name, p.site.exit.name, p.site.stream.name) for p in graph.of("residual")]


def test_pre_norm_branches_take_their_norm_along(capture) -> None:
    class PreNorm(Layer):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.mix(self.norm(x))
            return x + self.mlp(self.norm2(x))

    (graph,) = capture(PreNorm(), torch.randn(2, 3, 16))
    graph.find()
    first, second = graph.of("residual")
    assert first.weights == ("norm.weight", "norm.bias", "mix.weight", "mix.bias")
    assert second.weights[:2] == ("norm2.weight", "norm2.bias")
    assert second.site.stream is second.site.entry is first.site.add
    assert first.site.kept == second.site.kept == ()
    assert first.site.entry.op == "placeholder"
    assert second.cost.flops == 2 * 6 * 2 * 16 * 48


def test_post_norm_branches_leave_the_norm_on_the_stream(capture) -> None:
    class PostNorm(Layer):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x + self.mix(x))
            return self.norm2(x + self.mlp(x))

    (graph,) = capture(PostNorm(), torch.randn(2, 3, 16))
    graph.find()
    first, second = graph.of("residual")
    assert first.weights == ("mix.weight", "mix.bias")
    assert second.weights == ("up.weight", "up.bias", "down.weight", "down.bias")


def test_a_norm_after_the_branch_belongs_to_it(capture) -> None:
    class Sandwich(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm2(self.mlp(self.norm(x)))

    (graph,) = capture(Sandwich(), torch.randn(2, 3, 16))
    graph.find()
    (branch,) = graph.of("residual")
    assert branch.weights[0] == "norm.weight"
    assert branch.weights[-1] == "norm2.bias"


def test_parallel_branches_share_a_norm_that_belongs_to_neither(capture) -> None:
    class Parallel(Layer):
        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            return self.mix(h) + self.mlp(h) + x

    (graph,) = capture(Parallel(), torch.randn(2, 3, 16))
    graph.find()
    mix, mlp = graph.of("residual")
    assert mix.weights == ("mix.weight", "mix.bias")
    assert mlp.weights == ("up.weight", "up.bias", "down.weight", "down.bias")
    assert mix.site.entry is mlp.site.entry
    assert mix.site.entry.target is F.layer_norm
    assert mix.site.stream is mlp.site.stream
    assert mix.site.stream.op == "placeholder"


def test_what_a_branch_hands_out_is_kept(capture) -> None:
    class Caching(Layer):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            keys = self.mix(self.norm(x))
            return x + self.mlp(keys), keys

    (graph,) = capture(Caching(), torch.randn(2, 3, 16))
    graph.find()
    (branch,) = graph.of("residual")
    assert branch.place == "norm.weight"
    assert [node.target for node in branch.site.kept] == [F.layer_norm, F.linear]
    assert branch.weights == ("up.weight", "up.bias", "down.weight", "down.bias")
    assert branch.cost.flops == 2 * 6 * 2 * 16 * 48


def test_what_a_branch_writes_into_a_cache_is_kept(capture) -> None:
    class Caching(Layer):
        def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
            cache.index_copy_(1, position, self.mix(self.norm(x)))
            return x + self.mlp(cache).mean(1, keepdim=True)

    (graph,) = capture(Caching(), torch.randn(2, 1, 16), torch.zeros(2, 8, 16), torch.tensor([3]))
    graph.find()
    (branch,) = graph.of("residual")
    assert branch.place == "norm.weight"
    assert [str(node.target) for node in branch.site.kept][-1] == "index_copy_"
    assert branch.weights == ("up.weight", "up.bias", "down.weight", "down.bias")


def test_a_cache_written_after_it_was_read_pins_the_branch(capture) -> None:
    class Late(Layer):
        def forward(self, x: Tensor, cache: Tensor) -> Tensor:
            read = self.up(cache + x)
            cache.add_(1)
            return x + self.down(F.gelu(read))

    (graph,) = capture(Late(), torch.randn(2, 16), torch.zeros(2, 16))
    graph.find()
    assert graph.of("residual") == []
    assert graph.refused("residual") == [("up.weight", "WRITTEN_BETWEEN")]


def test_a_projected_shortcut_is_no_stream(capture) -> None:
    class Down(Layer):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.sin(x)
            return self.mix(x) + self.mlp(x)

    (graph,) = capture(Down(), torch.randn(2, 16))
    graph.find()
    assert graph.of("residual") == []
    assert [reason for _, reason in graph.refused("residual")] == ["NO_STREAM"]


def test_a_branch_whose_value_is_read_elsewhere_is_refused(capture) -> None:
    class Read(Layer):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.mlp(x)
            return x + h, h

    (graph,) = capture(Read(), torch.randn(2, 16))
    graph.find()
    assert graph.of("residual") == []
    assert graph.refused("residual") == [("up.weight", "USED_ELSEWHERE")]


def test_sums_without_a_matrix_are_no_branches(capture) -> None:
    class Rotary(Layer):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 2 + torch.cat((-x[..., 8:], x[..., :8]), -1)  # rotary embedding's shape
            return x + 0.1 * self.norm(x)  # a vector of weights, not a matrix

    (graph,) = capture(Rotary(), torch.randn(2, 16))
    assert _branches(graph) == []
    assert graph.context.refusals == []


def test_a_stream_kept_in_another_dtype_is_looked_through(capture) -> None:
    class Wide(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() + self.mlp(x).float()

    (graph,) = capture(Wide().bfloat16(), torch.randn(2, 16, dtype=torch.bfloat16))
    ((place, entry, _, stream),) = _branches(graph)
    assert place == "up.weight"
    assert entry != stream
