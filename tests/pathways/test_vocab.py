"""The vocabulary head, and what only looks like one."""

import torch
from torch import Tensor, nn


class Head(nn.Module):
    def __init__(self, vocabulary: int = 80, after=lambda x: x) -> None:
        super().__init__()
        self.body, self.head, self.after = nn.Linear(16, 16), nn.Linear(16, vocabulary), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(torch.tanh(self.body(x))))


def test_a_head_is_found_through_scaling_caps_and_slices(capture) -> None:
    for after in (
        lambda x: x,
        lambda x: 30.0 * torch.tanh(x / 30.0),
        lambda x: x[:, -1:].float() * 0.5,
        lambda x: torch.log_softmax(x, -1),
    ):
        (graph,) = capture(Head(after=after), torch.randn(2, 3, 16))
        graph.find()
        (pathway,) = graph.of("vocab")
        assert (pathway.place, pathway.units) == ("head.weight", 80)
        assert pathway.site.linear.in_features == 16


def test_a_wide_linear_inside_the_model_is_no_head(capture) -> None:
    (graph,) = capture(nn.Sequential(nn.Linear(16, 80), nn.Tanh(), nn.Linear(80, 16)), torch.randn(2, 16))
    graph.find()
    assert graph.of("vocab") == []


def test_logits_that_go_into_another_product_are_no_head(capture) -> None:
    (graph,) = capture(Head(after=lambda x: x @ x.transpose(-1, -2)), torch.randn(2, 3, 16))
    graph.find()
    assert graph.of("vocab") == []


def test_a_classifier_is_refused_for_saving_nothing(capture) -> None:
    (graph,) = capture(Head(vocabulary=40), torch.randn(2, 16))
    graph.find()
    assert graph.of("vocab") == []
    assert graph.refused("vocab") == [("head.weight", "NO_SAVING")]


def test_computed_logit_weights_are_refused(capture) -> None:
    class Tied(Head):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.body(x), self.head.weight * 2)

    (graph,) = capture(Tied(), torch.randn(2, 16))
    graph.find()
    assert graph.of("vocab") == []
    assert [reason for _, reason in graph.refused("vocab")] == ["NOT_A_PARAMETER"]
