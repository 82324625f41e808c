"""Statistics, quality, and the JSON's figures, on numbers whose answers are known."""

import math
import random

import pytest

from srrc.bench.quality import quality
from srrc.bench.result import make_result
from srrc.bench.samples import Samples
from srrc.bench.settings import Settings
from srrc.bench.statistics import mean_interval, ratios, spread
from srrc.bench.table import remarks, tables
from srrc.bench.variants import Variant


def test_spread_is_median_and_quartiles() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0], 10) == {"median": 30.0, "q1": 20.0, "q3": 40.0}
    assert spread([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0}
    assert spread([]) is None


def test_ratios_are_taken_pair_by_pair() -> None:
    # Both slow down tenfold together: the ratio must not notice.
    found = ratios([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert found == {"median": 2.0, "q1": 2.0, "q3": 2.0}


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    draw = random.Random(1)
    held = 0
    for _ in range(400):
        _, low, high = mean_interval([draw.gauss(3, 1) for _ in range(640)])
        held += low <= 3 <= high
    assert 0.90 < held / 400 < 0.98


def test_an_interval_takes_neighbours_that_agree_for_one_observation() -> None:
    draw = random.Random(2)
    steps = [value for _ in range(40) for value in [draw.gauss(0, 1)] * 16]
    _, low, high = mean_interval(steps)
    _, naive_low, naive_high = mean_interval(steps, block=1)
    assert high - low > 3 * (naive_high - naive_low)


def test_too_few_tokens_have_no_interval() -> None:
    assert mean_interval([1.0] * 20) == (1.0, -math.inf, math.inf)


def _read(loss: float, kl: float | None = None) -> dict[str, object]:
    kls = [] if kl is None else [kl] * 64
    return {"loss": [loss] * 64, "kl": kls, "same": [1] * len(kls), "apart": None if kl is None else 0.5}


def test_quality_compares_with_the_reference_by_domain_and_together() -> None:
    reference = {"a": _read(1.0), "b": _read(3.0)}
    found = quality({"a": _read(1.1, 0.01), "b": _read(3.0, 0.03)}, reference)
    assert found["perplexity"] == pytest.approx(math.exp(2.05))
    assert found["relative_perplexity"] == pytest.approx(math.exp(0.05))
    assert found["kl"] == pytest.approx(0.02)
    assert found["tokens"] == 128
    assert found["domains"]["a"]["relative_perplexity"] == pytest.approx(math.exp(0.1))
    assert found["domains"]["b"]["kl"] == pytest.approx(0.03)
    low, high = found["kl_interval"]
    assert 0 <= low < 0.02 < high


def test_the_reference_is_at_no_distance_from_itself() -> None:
    reference = {"a": _read(1.0)}
    found = quality(reference, reference)
    assert (found["relative_perplexity"], found["kl"], found["argmax_agreement"]) == (1.0, 0.0, 1.0)


def test_without_a_reference_there_is_perplexity_alone() -> None:
    found = quality({"a": _read(1.0)}, None)
    assert found["perplexity"] == pytest.approx(math.e)
    assert found["relative_perplexity"] is None
    assert found["kl"] is None


def _samples(step: float, tokens: list[int], work: float = 0.0) -> Samples:
    samples = Samples(
        loaded={"weight_bytes": 100, "resident_bytes": 1000},
        compiled={"first_s": 9.0, "second_s": 1.0, "peak_bytes": 4000, "graphs": 2},
        warm={"first_s": 3.0, "second_s": 1.0, "peak_bytes": 3000},
        finished={"peak_bytes": 1500, "graphs": 2, "fallbacks": {}},
        prefills={0: 10 * step},
        tokens={0: tokens},
        slices={(0, 0): [step] * 4},
    )
    if work:
        samples.decode_work.update({"flops_executed": 4 * work, "flops_dense": 8.0})
        samples.decode_work.update({"bytes_executed": 4 * work, "bytes_dense": 16.0})
        samples.prefill_work.update({"flops_executed": 5.0, "flops_dense": 5.0})
    return samples


_VARIANTS = [Variant("eager", "eager"), Variant("srr", "srr"), Variant("srr-0.5", "routed", 0.5)]


def test_the_result_in_the_schema() -> None:
    samples = {
        "eager": _samples(0.1, [1, 2, 3, 4, 5]),
        "srr": _samples(0.05, [1, 2, 3, 4, 5], work=2.0),
        "srr-0.5": _samples(0.02, [1, 2, 9, 4, 5], work=1.0),
    }
    result = make_result(Settings("m", prefill_length=100), _VARIANTS, samples, {})
    eager, srr, routed = result["variants"]
    assert result["model"] == "m"
    assert eager["decode_tokens_per_s"] == pytest.approx(10)
    assert eager["prefill_tokens_per_s"] == pytest.approx(100)
    assert eager["flops_per_token"] == pytest.approx(2)  # the dense cost, as srr counted it
    assert not eager["counted"]
    assert eager["compile_cold_s"] is None
    assert srr["speedups"]["eager"]["decode"]["median"] == pytest.approx(2)
    assert (srr["compile_cold_s"], srr["compile_warm_s"]) == (8.0, 2.0)
    assert srr["peak_memory_bytes"] == 4000
    assert srr["running_peak_over_loaded_bytes"] == 500
    assert routed["flops_per_token"] == pytest.approx(1)
    assert routed["flops_of_dense"] == pytest.approx(0.5)
    assert routed["bytes_of_dense"] == pytest.approx(0.25)
    assert routed["greedy"] == {
        "prompts": 1,
        "prompts_equal": 0,
        "tokens": 5,
        "tokens_before_first_difference": 2,
    }


def test_remarks_name_what_failed_and_what_is_not_exact() -> None:
    samples = {"eager": _samples(0.1, [1, 2]), "srr": _samples(0.1, [1, 3]), "srr-0.5": Samples()}
    samples["srr"].finished = {"graphs": 3, "fallbacks": {"no compiler": 2}}
    result = make_result(Settings("m"), _VARIANTS, samples, {"routed": "it broke"})
    found = list(remarks(result))
    assert found == [
        "srr-0.5 is missing: it broke",
        "srr writes other tokens than eager on 1 prompts",
        "srr compiled 1 more graphs while it was measured",
        "srr ran dense 2 times: no compiler",
    ]
    assert [table.row_count for table in tables(result)] == [2, 2]
