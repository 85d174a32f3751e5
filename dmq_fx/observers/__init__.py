"""Observers: graph nodes that watch an activation and find its range, one per timestep slot if asked."""

from dmq_fx.observers.base import OBSERVERS, ActivationObserver, make_observer
from dmq_fx.observers.histogram import HistogramObserver
from dmq_fx.observers.minmax import EmaMinMaxObserver, MinMaxObserver

__all__ = [
    "OBSERVERS",
    "ActivationObserver",
    "EmaMinMaxObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "make_observer",
]
