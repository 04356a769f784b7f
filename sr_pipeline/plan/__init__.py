"""What a graph compiles to: phases, order, lifetimes, gradient scopes."""

from sr_pipeline.plan.compile import Op, Plan, compile_plan
from sr_pipeline.plan.describe import describe, mermaid

__all__ = ["Op", "Plan", "compile_plan", "describe", "mermaid"]
