"""What leads to one value alone, and that value computed for chosen positions."""

from dataclasses import dataclass

import onnx_ir as ir

from srrc.backends.onnx.regions import copy_nodes, leading_to
from srrc.backends.onnx.select_rows import ELEMENTWISE, PRODUCTS, RowSelection

ROW_BY_ROW = ELEMENTWISE | PRODUCTS | {"Constant", "CastLike", "LayerNormalization", "RMSNormalization"}
"""Operators that compute each row of their first input by itself, and take none of them, too."""


@dataclass(frozen=True, eq=False)
class Part:
    """One of the values that a branch may have: what computes it, and it for chosen positions."""

    region: list[ir.Node]
    rows: RowSelection
    value: ir.Value

    @classmethod
    def of(cls, node: ir.Node, value: ir.Value, axis: int) -> "Part":
        """All that leads to `value`, which `node` reads, and nowhere else. axis: of the positions."""
        region = leading_to(node, [value])
        rows = RowSelection(set(region))
        some = rows.some(value, axis) if axis >= 0 else value
        if rows.contractions:
            return cls(region, rows, some)
        whole = RowSelection(set(region))
        copies: dict[ir.Value, ir.Value] = {}
        whole.nodes += copy_nodes(region, copies)
        return cls(region, whole, copies.get(value, value))

    @property
    def selects(self) -> bool:
        """Whether it is computed for chosen positions only."""
        return self.rows.contractions > 0

    @property
    def takes_no_rows(self) -> bool:
        """Whether it may be computed for no position at all, in no time: then it needs no `If`."""
        return self.selects and all(node.op_type in ROW_BY_ROW for node in self.rows.nodes)
