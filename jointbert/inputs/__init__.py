"""Checks of what users bring: arrays, arguments, images, files, and what a backend noticed about them."""
