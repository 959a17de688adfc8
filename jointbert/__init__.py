"""jointbert refines 3D hand poses of 14 joints (the NYU protocol)."""

__version__ = "0.1.0"
