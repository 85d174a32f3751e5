"""Planning: which site gets which scheme, and what that costs."""

from dmq_fx.planning.plan import Plan, PlannedSite, Totals
from dmq_fx.planning.planner import make_plan

__all__ = ["Plan", "PlannedSite", "Totals", "make_plan"]
