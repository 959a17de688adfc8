"""Former names of the attributes of :data:`jointbert.skeletons.NYU14`, kept for existing imports."""

from jointbert.skeletons import NYU14

JOINT_NAMES = NYU14.names
ORDERS = NYU14.all_orders

__all__ = ["JOINT_NAMES", "ORDERS"]
