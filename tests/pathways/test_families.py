"""Which pathways are found in each family, and that normalising changes no bit of what a graph computes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from srrc.models_zoo import families
from srrc.passes.normalise import Normalise


@dataclass(frozen=True)
class Expected:
    """Pathways of a family's two-layer model, by kind, and its refusals as (kind, reason) -> number."""

    residual: int = 4
    neuron: int = 2
    channel: int = 9
    vocab: int = 1
    attention: int = 2
    expert: int = 0
    activation: str = "silu"
    groups: int = 1
    refusals: tuple[tuple[str, str, int], ...] = ()

    def counts(self) -> dict[str, int]:
        kinds = ("residual", "neuron", "channel", "vocab", "attention", "expert")
        return {kind: getattr(self, kind) for kind in kinds if getattr(self, kind)}


GATED = Expected(groups=2)  # q k v | o | gate up | down in each layer, and the head
SEQ2SEQ = Expected(residual=10, neuron=4, channel=22, attention=6, activation="gelu")
EXPECTED = {
    "llama": GATED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gemma2": Expected(groups=2, activation="gelu_tanh"),
    "gemma3": Expected(groups=2, activation="gelu_tanh"),
    "phi3": GATED,
    "gpt2": Expected(activation="gelu_tanh"),
    "gpt-neox": Expected(activation="gelu"),
    "opt": Expected(activation="relu"),
    # Attention and MLP read one norm: q k v and the first MLP matrix share a gate.
    "falcon": Expected(channel=7, activation="gelu", groups=4),
    # No dense MLP; the router is a linear of its own.
    "mixtral": Expected(neuron=0, channel=7, expert=2, groups=2),
    # The MLPs are the shared experts; router, their gate and their first matrices read one value.
    "qwen2-moe": Expected(expert=2, groups=2, refusals=(("residual", "NO_STREAM", 2),)),
    "bert": Expected(vocab=0, activation="gelu"),  # the ninth linear is the pooler
    "roberta": Expected(vocab=0, activation="gelu"),
    "distilbert": Expected(vocab=0, channel=8, activation="gelu"),
    "t5": Expected(residual=10, neuron=4, channel=22, attention=6, activation="relu"),
    "bart": SEQ2SEQ,
    "whisper": SEQ2SEQ,
    "vit": Expected(vocab=0, activation="gelu"),
    "clip": Expected(residual=8, neuron=4, channel=18, vocab=0, attention=4, activation="quick_gelu"),
    # Convolutions only: a block may be skipped, but nothing in it has a gate.
    "resnet": Expected(residual=2, neuron=0, channel=0, vocab=0, attention=0),
    # The prefill scan runs under vmap, whose level a skipped region would upset.
    "mamba": Expected(
        residual=0,
        neuron=0,
        channel=7,
        attention=0,
        refusals=(("residual", "INTERPRETER_STATE", 2), ("channel", "UNSUPPORTED_SHAPE", 2)),
    ),
}


def _counts(graph) -> dict[str, int]:
    return dict(Counter(pathway.kind for pathway in graph.context.pathways))


def _refusals(graph) -> set[tuple[str, str, int]]:
    counted = Counter((r.kind, r.reason.name) for r in graph.context.refusals)
    return {(*key, times) for key, times in counted.items()}


def _assert_same(graph) -> None:
    """The normalised graph gives the captured one's outputs, and leaves its arguments as that does."""
    ours, theirs = graph.arguments(), graph.arguments()
    with torch.no_grad():
        expected, actual = graph.copy()(*theirs), graph.normalised()(*ours)
    for left, right in zip((*expected, *theirs), (*actual, *ours), strict=True):
        if isinstance(left, torch.Tensor):
            assert left.stride() == right.stride()
            torch.testing.assert_close(right, left, rtol=0, atol=0, equal_nan=True)
        else:
            assert left == right


def test_every_family_is_expected() -> None:
    assert EXPECTED.keys() == set(families.names())


@pytest.mark.parametrize("name", families.names())
def test_pathways_of_a_forward_call(name: str, family_graph) -> None:
    graph, expected = family_graph(name), EXPECTED[name]
    _assert_same(graph)
    gm = graph.find()
    assert _counts(graph) == expected.counts()
    assert _refusals(graph) == set(expected.refusals)
    assert {p.site.activation for p in graph.of("neuron")} <= {expected.activation}
    assert {p.site.groups for p in graph.of("attention")} <= {expected.groups}
    code = gm.code
    Normalise()(gm, graph.context).recompile()
    assert gm.code == code, "normalising twice changed the graph again"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon", "bert", "t5", "clip"])
def test_bfloat16_gives_the_same_pathways_and_bits(name: str, capture) -> None:
    tiny = families.tiny(name)
    tiny.model.to(torch.bfloat16)
    (graph,) = capture(tiny.model, **tiny.inputs(2, 8))
    _assert_same(graph)
    graph.find()
    assert _counts(graph) == EXPECTED[name].counts()


def test_handed_out_hidden_states_hide_nothing(capture) -> None:
    tiny = families.tiny("llama")
    graphs = capture(tiny.model, output_hidden_states=True, **tiny.inputs(2, 8))
    counts: Counter[str] = Counter()
    for graph in graphs:
        graph.find()
        counts.update(_counts(graph))
    assert counts == EXPECTED["llama"].counts()


def test_handed_out_attention_weights_are_kept(capture) -> None:
    tiny = families.tiny("bert")
    tiny.model.set_attn_implementation("eager")
    inputs = tiny.inputs(2, 8)
    (graph,) = capture(tiny.model, **inputs)
    graph.find()
    assert _counts(graph) == EXPECTED["bert"].counts()
    (graph,) = capture(tiny.model, output_attentions=True, **inputs)
    _assert_same(graph)
    graph.find()
    assert graph.of("attention") == []
    assert {reason for _, reason in graph.refused("attention")} == {"USED_ELSEWHERE"}
    assert [bool(p.site.kept) for p in graph.of("residual")] == [True, False, True, False]


GENERATORS = [name for name in families.names() if families.tiny(name).generates]


@pytest.mark.parametrize("name", GENERATORS)
def test_dynamic_shapes_give_the_same_pathways(name: str, family_graph) -> None:
    graph, expected = family_graph(name, dynamic=True), EXPECTED[name]
    _assert_same(graph)
    graph.find()
    counts = expected.counts()
    if name == "gpt2":  # its formula has math.pi in it, which is an input of the graph then
        del counts["neuron"]
        assert {reason for _, reason in graph.refused("neuron")} == {"UNKNOWN_ACTIVATION"}
    assert _counts(graph) == counts
    symbols = {symbol for pathway in graph.context.pathways for symbol in pathway.cost.symbols}
    assert symbols, "no cost depends on batch or length"


@pytest.mark.parametrize("name", GENERATORS)
def test_prefill_and_decode_have_the_same_places(name: str, capture_generate) -> None:
    tiny = families.tiny(name)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "cache_implementation": "static"}
    prefill, decode = capture_generate(tiny.model, **tiny.inputs(2, 5), **options)
    for graph in (prefill, decode):
        _assert_same(graph)
        graph.find()
        assert {p.site.groups for p in graph.of("attention")} <= {EXPECTED[name].groups}
    before, after = ({(p.kind, p.place) for p in g.context.pathways} for g in (prefill, decode))
    if tiny.kind == "encoder-decoder":  # keys and values of the encoder's output are computed once
        assert {kind for kind, _ in before - after} == {"channel"}
        assert after < before
    elif name == "mamba":  # one step needs no scan, so its branches can be skipped
        assert {kind for kind, _ in after - before} == {"residual"}
        assert before < after
    else:
        assert before == after
        assert _counts(decode) == EXPECTED[name].counts()


def test_the_table_in_the_documentation_is_what_is_found() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pathways.md").read_text()
    kinds = ("residual", "neuron", "channel", "vocab", "attention", "expert")
    rows = {
        cells[0]: tuple(int(cell) for cell in cells[1:7])
        for line in text.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 8 and cells[1].isdigit()
    }
    assert rows == {name: tuple(getattr(e, kind) for kind in kinds) for name, e in EXPECTED.items()}
