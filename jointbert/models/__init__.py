"""The thesis's networks as torch modules. The package needs torch, the estimator also
``pip install "jointbert[estimator]"``."""

from jointbert.models.refiner import JointRefiner, RefinerConfig

__all__ = ["JointRefiner", "RefinerConfig"]
