"""Which gates are on the same residual branch, and so would stand one inside of another."""

from collections.abc import Iterable, Mapping

from srrc.passes.insert_gates import GATED
from srrc.pathways.base import Pathway
from srrc.pathways.residual import Branch


def branches_of(pathways: Iterable[Pathway]) -> Mapping[str, str]:
    """Gate id -> place of the branch that it is on, or in; gates elsewhere are not named."""
    known = [pathway for pathway in pathways if pathway.kind in GATED]
    found: dict[str, str] = {}
    for branch in (each for each in known if isinstance(each.site, Branch)):
        inside = set(branch.nodes)
        for pathway in known:
            if inside.issuperset(pathway.nodes):
                found |= dict.fromkeys(GATED[pathway.kind][1](pathway), branch.place)
    return found
