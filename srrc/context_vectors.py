"""What contexts are measured in (`srrc/relevance/context.py`), from the texts of a calibration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srrc.gated_model import GatedGraph
from srrc.relevance.context import PIECE, context_basis, pooled


def context_vectors(gated: GatedGraph, calls: Sequence[Any]) -> dict[str, Tensor]:
    """The basis of contexts as a profile keeps it; nothing for a model that reads no tokens, or one piece of text.

    calls: arguments of the graph
    """
    places = gated.tokens
    if places is None:
        return {}
    ids_at, table_at = places
    found = []
    for arguments in calls:
        ids, table = arguments[ids_at].reshape(-1), arguments[table_at].detach()
        found += [
            pooled(table, piece) for piece in ids.split(PIECE) if len(piece) == PIECE or len(ids) < PIECE
        ]
    if len(found) < 2:
        return {}
    return context_basis(torch.stack(found)).vectors()
