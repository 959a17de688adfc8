"""Export of the refiner to other runtimes. Needs torch (``pip install "jointbert[export]"``)."""
