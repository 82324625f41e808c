"""The kernels under Triton's interpreter against the reference."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from srrc.backends.triton.kernels.estimator import Config, default_config, estimator, scores
from srrc.backends.triton.kernels.lists import Kept, guarded, reference
from srrc.backends.triton.ops.estimator import estimator as operator
from srrc.ops.gate import decide

FUSED = Config(32, 16, fused=True, num_warps=1)
CONFIGS = st.sampled_from((Config(32, 16, num_warps=1), Config(64, 128, num_warps=1), FUSED))


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Memory that nobody wrote holds NaN or the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Case:
    """Inputs of one call; `threshold` lies between two scores, away from both."""

    def __init__(
        self,
        rows: int,
        inputs: int,
        rank: int,
        units: int,
        dtype: torch.dtype,
        spread: bool,
        int8: bool = False,
    ) -> None:
        self.x = torch.randn(rows, 2 * inputs).to(dtype)[:, :inputs]
        self.projection = (torch.randn(rank, inputs + 3) / inputs**0.5).to(dtype)[:, :inputs]
        self.decoder = (torch.randn(units, rank + 1) / rank**0.5).to(dtype)[:, :rank]
        self.norm = torch.rand(units) + 0.1
        self.spread = torch.rand(units) if spread else None
        self.scales: tuple[Tensor | None, Tensor | None] = None, None
        if int8:
            self.projection, self.decoder = (
                torch.randint(-127, 128, w.shape, dtype=torch.int8) for w in (self.projection, self.decoder)
            )
            self.scales = torch.rand(rank) / 64 / inputs**0.5, torch.rand(units) / 64 / rank**0.5

    def scores(self) -> Tensor:
        return scores(self.x, self.projection, self.decoder, self.norm, self.spread, *self.scales)

    def threshold(self, dropped: float) -> float:
        """About a fraction of the scores lie below: -1 for none, infinite for all."""
        score = self.scores().flatten().sort().values
        if dropped in {0.0, 1.0}:
            return -1.0 if dropped == 0 else float("inf")
        middle = int(dropped * len(score))
        near = score[max(0, middle - 10) : middle + 10]
        if len(near) < 2:
            return float(near[0]) * 2
        widest = int(near.diff().argmax())
        return float(near[widest : widest + 2].mean())

    def found(self, gate: Tensor, config: Config | None) -> Kept:
        return estimator(*self.given(gate), config=config)

    def given(self, gate: Tensor) -> tuple[Tensor | None, ...]:
        """What kernel and operator take."""
        return self.x, self.projection, self.decoder, self.norm, gate, self.spread, *self.scales


def equal(found: Kept, truth: Kept) -> None:
    assert torch.equal(found.counts, truth.counts)
    assert torch.equal(found.rows, truth.rows)
    assert torch.equal(found.units, truth.units)


@pytest.mark.parametrize("int8", [False, True])
@settings(max_examples=40)
@given(
    rows=st.integers(1, 8),
    inputs=st.integers(1, 70),
    rank=st.integers(1, 20),
    units=st.integers(1, 150),
    dropped=st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    config=CONFIGS,
    spread=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    int8: bool,
    rows: int,
    inputs: int,
    rank: int,
    units: int,
    dropped: float,
    dtype: torch.dtype,
    config: Config,
    spread: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    case = Case(rows, inputs, rank, units, dtype, spread, int8=int8)
    gate = torch.tensor([case.threshold(dropped), 0.0])
    equal(case.found(gate, config), reference(case.scores(), gate, config.block))


def test_the_operator_takes_eight_bits() -> None:
    torch.manual_seed(0)
    case = Case(2, 40, 6, 150, torch.float32, True, int8=True)
    gate = torch.tensor([case.threshold(0.5), 0.0])
    found = Kept(*operator(*case.given(gate)), count=150)
    equal(found, reference(case.scores(), gate, found.block))
    opcheck(operator, case.given(gate), test_utils=("test_schema", "test_autograd_registration"))


@settings(max_examples=25)
@given(
    rows=st.integers(1, 8),
    units=st.integers(1, 100),
    dropped=st.sampled_from((0.0, 0.3, 0.9)),
    least=st.sampled_from((0.0, 0.1, 0.5, 1.0, 1.5)),
    seed=st.integers(0, 99),
)
def test_the_guard_is_that_of_gates(rows: int, units: int, dropped: float, least: float, seed: int) -> None:
    torch.manual_seed(seed)
    case = Case(rows, 20, 4, units, torch.float32, True)
    gate = torch.tensor([case.threshold(dropped), least])
    found = case.found(gate, Config(16, 32, num_warps=1))
    score = case.scores().float()
    keep = torch.zeros(units, dtype=torch.bool)
    for listed, count in zip(found.units, guarded(found, gate).tolist(), strict=True):
        keep[listed[:count].long()] = True
    assert torch.equal(keep, decide(score, gate).keep[0])


@pytest.mark.parametrize("config", [Config(32, 64, num_warps=1), FUSED])
def test_nan_is_kept(config: Config) -> None:
    case = Case(2, 20, 4, 50, torch.float32, True)
    case.x[1, 3] = float("nan")
    found = case.found(torch.tensor([float("inf"), 0.0]), config)
    assert found.mask().all()
    assert found.rows.sum(1).tolist() == [0, 50]


@pytest.mark.parametrize("config", [Config(32, 64, num_warps=1), FUSED])
def test_a_row_of_zeros_keeps_nothing_at_zero(config: Config) -> None:
    case = Case(1, 20, 4, 50, torch.float32, True)
    case.x.zero_()
    assert not case.found(torch.tensor([0.0, 0.0]), config).mask().any()


def test_what_a_unit_is_unsure_of_keeps_it() -> None:
    case = Case(1, 20, 4, 50, torch.float32, True)
    case.decoder.zero_()
    assert case.spread is not None
    case.spread[:] = 0
    case.spread[7] = 1
    assert case.found(torch.tensor([0.0, 0.0]), None).mask().nonzero().tolist() == [[7]]


@pytest.mark.parametrize("least", [0.5, float("nan")])
def test_a_guard_of_nan_never_fails(least: float) -> None:
    case = Case(1, 20, 4, 50, torch.float32, False)
    gate = torch.tensor([float("inf"), least])
    found = case.found(gate, None)
    assert int(guarded(found, gate).sum()) == (50 if least == 0.5 else 0)


def test_large_projections_are_computed_once() -> None:
    assert default_config(torch.zeros(1, 576), 64).fused
    assert not default_config(torch.zeros(1, 4096), 64).fused


@pytest.mark.parametrize(("rows", "rank"), [(0, 4), (9, 4), (1, 129), (1, 0)])
def test_sizes_out_of_range(rows: int, rank: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 rows, ranks to 128"):
        estimator(
            torch.zeros(rows, 8), torch.zeros(rank, 8), torch.zeros(16, rank), torch.ones(16), torch.zeros(2)
        )


@pytest.mark.parametrize("projection", [torch.zeros(4, 7), torch.zeros(8, 4).t()])
def test_a_projection_that_does_not_fit(projection: Tensor) -> None:
    with pytest.raises(ValueError, match=r"a projection \[4, 8\]"):
        estimator(torch.zeros(1, 8), projection, torch.zeros(16, 4), torch.ones(16), torch.zeros(2))


@pytest.mark.parametrize("norm", [torch.ones(15), torch.ones(1).expand(16), torch.ones(32)[::2]])
def test_a_norm_that_does_not_fit(norm: Tensor) -> None:
    with pytest.raises(ValueError, match="for each of 16 units"):
        estimator(torch.zeros(1, 8), torch.zeros(4, 8), torch.zeros(16, 4), norm, torch.zeros(2))


@pytest.mark.parametrize(
    ("of_int8", "scaled"),
    [((True, True), (False, False)), ((True, True), (True, False)), ((True, False), (True, False)),
     ((False, True), (False, True)), ((False, False), (True, True))],
)  # fmt: skip
def test_eight_bits_and_scales_belong_together(of_int8: tuple[bool, bool], scaled: tuple[bool, bool]) -> None:
    weights = [
        torch.zeros(shape, dtype=torch.int8 if int8 else torch.float32)
        for shape, int8 in zip(((4, 8), (16, 4)), of_int8, strict=True)
    ]
    scales = [torch.ones(size) if some else None for size, some in zip((4, 16), scaled, strict=True)]
    with pytest.raises(ValueError, match="two weights of int8"):
        estimator(torch.zeros(1, 8), *weights, torch.ones(16), torch.zeros(2), None, *scales)


@pytest.mark.parametrize(
    ("scales", "size"),
    [
        ((torch.ones(5), torch.ones(16)), 4),
        ((torch.ones(4, dtype=torch.float16), torch.ones(16)), 4),
        ((torch.ones(4), torch.ones(32)[::2]), 16),
        ((torch.ones(4), torch.ones(1, 16)), 16),
    ],
)
def test_a_scale_that_does_not_fit(scales: tuple[Tensor, Tensor], size: int) -> None:
    projection, decoder = torch.zeros(4, 8, dtype=torch.int8), torch.zeros(16, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match=f"scale for each of {size} rows"):
        estimator(torch.zeros(1, 8), projection, decoder, torch.ones(16), torch.zeros(2), None, *scales)
