"""jointbert refines 3D hand poses of 14 joints (the NYU protocol) with a BERT-like Transformer.

>>> import jointbert
>>> demo = jointbert.load_demo()
>>> refined = jointbert.refine(demo.predictions)
"""

import importlib

from jointbert.contract import JointbertWarning, Status
from jointbert.demo import load_demo
from jointbert.refine import Refiner, refine
from jointbert.skeletons import NYU14
from jointbert.stream import Refined, Stream

__version__ = "0.1.0"
JOINT_NAMES = NYU14.names
__all__ = ["JOINT_NAMES", "JointbertWarning", "Refined", "Refiner", "Status", "Stream", "__version__", "load_demo", "refine"]

_MODULES = ("camera", "skeleton")
"""Modules that the documentation names as attributes of the package; the first use imports them."""


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"jointbert.{name}")
    raise AttributeError(f"module 'jointbert' has no attribute {name!r}")
