"""The former place of the runtimes: see :mod:`jointbert.runtimes` and :mod:`jointbert.cuda`."""
