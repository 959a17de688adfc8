"""Runs the command line as ``python -m jointbert.cli``."""

from jointbert.cli import main

main()
