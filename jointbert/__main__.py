"""``python -m jointbert``."""

from jointbert.cli import main

main()
