"""The joints of the NYU protocol by their former names: see :data:`jointbert.skeletons.NYU14`."""

from jointbert.skeletons import NYU14

JOINT_NAMES = NYU14.names
ORDERS = NYU14.all_orders

__all__ = ["JOINT_NAMES", "ORDERS"]
