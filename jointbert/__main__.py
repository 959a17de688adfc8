"""Runs the command line as ``python -m jointbert``."""

from jointbert.cli import main

main()
