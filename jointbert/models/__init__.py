"""The thesis's modules in torch. Importing this package needs torch; the estimator ``pip install "jointbert[estimator]"``."""

from jointbert.models.refiner import JointRefiner, RefinerConfig

__all__ = ["JointRefiner", "RefinerConfig"]
