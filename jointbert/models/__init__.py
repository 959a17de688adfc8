"""The thesis's modules in torch. Importing this package needs ``pip install "jointbert[train]"`` or any torch."""

from jointbert.models.refiner import JointRefiner, RefinerConfig

__all__ = ["JointRefiner", "RefinerConfig"]
