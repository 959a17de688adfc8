"""Former name of :mod:`jointbert.cuda.graph_session`, kept for existing imports."""

from jointbert.cuda.graph_session import GraphSession

__all__ = ["GraphSession"]
