"""Former package of :mod:`jointbert.runtimes` and :mod:`jointbert.cuda`, kept for existing imports."""
