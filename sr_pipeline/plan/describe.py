"""A plan as data for people and programs, and as a Mermaid drawing."""

from __future__ import annotations

from typing import Any

from sr_pipeline.plan.cadence import ALWAYS
from sr_pipeline.plan.compile import Op, Plan


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-able data: the phases in order, what is changed by whom, gradients, state, warnings."""
    return {
        "graph": plan.wiring.graph.source,
        "stream": plan.stream,
        "setup": [_op(op) for op in plan.setup],
        "step": [_op(op) for op in plan.steps],
        "finish": [_op(op) for op in plan.finish],
        "mutations": mutations(plan),
        "state": [*plan.state, *plan.reducers],
        "unchanged": list(plan.unchanged),
        "warnings": [str(w) for w in plan.warnings],
    }


def _op(op: Op) -> dict[str, Any]:
    return {
        "node": op.node,
        "type": op.type.name,
        "every": None if op.demand == ALWAYS else sorted(sorted(g) for g in op.demand),
        "grad": op.grad,
        "training": op.training,
        "crosses": list(op.frozen),
        "detached": list(op.detached),
        "retain_graph": op.retain_graph,
    }


def mutations(plan: Plan) -> list[dict[str, str]]:
    """Who changes what: ``{"node": "g_step", "input": "model", "value": "generator"}``."""
    return [
        {"node": op.node, "input": name, "value": plan.wiring.links[op.node][name].node}
        for op in plan.ops
        for name in op.type.mutations
        if name in plan.wiring.links[op.node]
    ]


def mermaid(plan: Plan) -> str:
    """The plan as a Mermaid flowchart: a box a phase, an arrow a link, a thick arrow a change in place."""
    number = {op.node: n for n, op in enumerate(plan.ops)}
    lines = ["flowchart LR"]
    for phase, ops in (("setup", plan.setup), ("step", plan.steps), ("finish", plan.finish)):
        if not ops:
            continue
        lines.append(f"  subgraph {phase}")
        for op in ops:
            gradient = " ∇" if op.grad else ""
            label = f"{op.node}<br/><i>{op.type.name}{gradient}</i>".replace('"', "'")
            lines.append(f'    n{number[op.node]}["{label}"]')
        lines.append("  end")
    for op in plan.ops:
        for name, value in plan.wiring.links[op.node].items():
            arrow = "==>" if name in op.type.mutations else "-->"
            lines.append(f"  n{number[value.node]} {arrow}|{name}| n{number[op.node]}")
    return "\n".join(lines) + "\n"
