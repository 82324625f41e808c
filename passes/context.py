"""What the passes of one compilation hand on to each other."""

from dataclasses import dataclass, field

import sympy

from srrc.pathways.base import Pathway
from srrc.reasons import Refusal
from srrc.runtime.gates import Gate, GateStore


@dataclass
class Context:
    """One compilation of one graph.

    options:  srrc's options as the user gave them
    fqns:     placeholder name -> fully qualified name of the parameter or buffer it holds
    pathways: what `find_pathways` found, in graph order
    refusals: what was looked at and turned down, and why
    costs:    (kind, place) -> (flops, bytes) of each pathway at `sizes`, from `annotate_cost`
    gates:    what `insert_gates` put in, in order of insertion
    gate_store: where their tensors come from
    sizes:    values of the graph's symbols that this specialisation is for; a symbol that is missing counts by its hint
    """

    options: object = None
    fqns: dict[str, str] = field(default_factory=dict)
    pathways: list[Pathway] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    costs: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    gate_store: GateStore = field(default_factory=GateStore)
    sizes: dict[sympy.Symbol, int] = field(default_factory=dict)
