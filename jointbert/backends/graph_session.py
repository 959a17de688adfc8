"""Recorded work for a GPU by the former name of :mod:`jointbert.cuda.graph_session`."""

from jointbert.cuda.graph_session import GraphSession

__all__ = ["GraphSession"]
