"""The loss of distillation, KL(teacher, student) over a vocabulary, in little memory.

Autograd would hold some eight copies of [rows, vocabulary] in float32. Here the gradient, which is softmax(student) -
softmax(teacher), is made a few rows at a time in the forward, and one copy of it kept in the student's dtype.
"""

from typing import Any

import torch
from torch import Tensor

_CHUNK = 128


class _Distil(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        grad = torch.empty_like(student)
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        for start in range(0, len(student), _CHUNK):
            rows = slice(start, start + _CHUNK)
            wanted, given = teacher[rows].float().log_softmax(-1), student[rows].float().log_softmax(-1)
            weight = wanted.exp()
            total += (weight * (wanted - given)).sum()
            grad[rows] = ((given.exp() - weight) / len(student)).to(grad.dtype)
        ctx.save_for_backward(grad)
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * upstream[0], None


def distil(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL(teacher, student) in nats a row: float32 []. Both [rows, vocabulary], any floating dtype.

    The gradient goes to `student` alone.
    """
    return _Distil.apply(student, teacher)  # type: ignore[no-untyped-call, no-any-return]
