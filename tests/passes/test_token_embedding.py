"""Where a graph looks its tokens up."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from srrc.models_zoo import families
from srrc.passes.capture import parameter_names
from srrc.passes.token_embedding import token_embedding


def found(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], str] | None:
    """Shape of the ids and name of the table."""
    torch._dynamo.reset()
    seen: list[Any] = []

    def backend(gm: fx.GraphModule, example_inputs: list[Any]) -> Any:
        names = parameter_names(gm, example_inputs)
        place = token_embedding(gm, names)
        if place is not None:
            seen.append((tuple(place[0].meta["example_value"].shape), names[place[1].name]))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=backend)(*args, **kwargs)
    return seen[0] if seen else None


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_models_of_text_have_one(family: str) -> None:
    tiny = families.tiny(family)
    ids = torch.arange(4, 12)[None]
    place = found(tiny.model, ids)
    assert place is not None
    shape, name = place
    assert shape == (1, 8)
    assert dict(tiny.model.named_parameters())[name] is tiny.model.get_input_embeddings().weight


def test_models_of_pictures_and_of_numbers_have_none() -> None:
    assert found(nn.Linear(4, 4), torch.randn(2, 4)) is None


def test_ids_that_are_computed_are_none() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            table: torch.Tensor = self.table(torch.arange(x.shape[0]))
            return table + x

    assert found(Positions(), torch.randn(2, 4)) is None
