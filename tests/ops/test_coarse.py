"""Coarse weights: how far they are from the full ones, and that ONNX Runtime computes the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import srrc.ops  # noqa: F401  (defines torch.ops.srr)
from srrc.backends.onnx.session import Session
from srrc.ops.coarse_linear import BLOCK, coarse_weight, full_weight, rounded

SIZES = st.integers(1, 300)


@given(outputs=st.integers(1, 20), inputs=SIZES, bits=st.sampled_from([4, 8]), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_weight_is_within_a_step_of_its_block(outputs: int, inputs: int, bits: int, seed: int) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    codes, scale = coarse_weight(weight, bits)
    blocks = -(-inputs // BLOCK)
    assert codes.shape == (outputs, blocks, BLOCK * bits // 8)
    assert scale.shape == (outputs, blocks)
    steps = scale.abs().repeat_interleave(BLOCK, 1)[:, :inputs]
    off = (full_weight(codes, scale, inputs, bits) - weight).abs()
    assert (
        off <= steps * 1.0001 + 1e-12
    ).all()  # a whole step at the end that has no code, half a step elsewhere
    assert (off <= steps * 0.5001 + 1e-12).float().mean() > 0.9 or inputs < 16


def test_a_block_of_zeros_stays_zero() -> None:
    weight = torch.zeros(3, 2 * BLOCK)
    weight[1, :BLOCK] = 2.0
    codes, scale = coarse_weight(weight, 8)
    torch.testing.assert_close(full_weight(codes, scale, 2 * BLOCK, 8), weight)
    assert torch.equal(rounded(torch.zeros(2, 5)), torch.zeros(2, 5))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 576, 96), (7, 130, 33), (40, 256, 64)])
def test_onnx_runtime_computes_the_reference(
    bits: int, rows: int, inputs: int, outputs: int, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator)
    codes, scale = coarse_weight(torch.randn(outputs, inputs, generator=generator), bits)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scale"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=4,
    )
    held = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name)
        for name, value in (("codes", codes), ("scale", scale))
    ]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        held,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "one.onnx")
    actual = Session(tmp_path / "one.onnx").run({"x": x})["y"]
    expected = torch.ops.srr.coarse_linear(x, codes, scale, None, bits)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 3.0])
def test_a_coarse_head_is_exact_where_it_counts(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(12, 64, generator=generator), torch.randn(200, 64, generator=generator)
    codes, scale = coarse_weight(weight, 8)
    counters = torch.zeros(3, dtype=torch.int64)
    gate = torch.tensor([threshold, 0.0])
    logits = torch.ops.srr.coarse_head(x, weight, None, codes, scale, gate, counters, 5, 8)
    dense = x @ weight.t()
    if threshold < 0:
        torch.testing.assert_close(logits, dense)
        return
    assert torch.equal(logits.argmax(-1), dense.argmax(-1))
    best = dense.topk(2).indices
    torch.testing.assert_close(logits.gather(-1, best), dense.gather(-1, best))
    coarse = torch.ops.srr.coarse_linear(x, codes, scale, None, 8)
    assert (logits == coarse).sum(-1).min() >= 200 - 5
    assert not torch.equal(logits, coarse)


def test_gradients_are_those_of_the_weight_that_the_codes_stand_for() -> None:
    x = torch.randn(4, 40, requires_grad=True)
    bias = torch.zeros(7, requires_grad=True)
    codes, scale = coarse_weight(torch.randn(7, 40), 8)
    torch.ops.srr.coarse_linear(x, codes, scale, bias, 8).sum().backward()
    torch.testing.assert_close(x.grad, full_weight(codes, scale, 40, 8).sum(0).expand(4, 40))
    torch.testing.assert_close(bias.grad, torch.full((7,), 4.0))
