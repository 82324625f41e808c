"""What the passes of one compilation hand on to each other."""

from dataclasses import dataclass, field

from srrc.pathways.base import Pathway
from srrc.reasons import Refusal
from srrc.runtime.gates import Gate


@dataclass
class Context:
    """One compilation of one graph.

    options:  srrc's options as the user gave them
    fqns:     placeholder name -> fully qualified name of the parameter or buffer it holds
    pathways: what `find_pathways` found, in graph order
    refusals: what was looked at and turned down, and why
    gates:    what `insert_gates` put in, in order of insertion
    """

    options: object = None
    fqns: dict[str, str] = field(default_factory=dict)
    pathways: list[Pathway] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
