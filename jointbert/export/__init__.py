"""Export of the refiner and the estimator to ONNX. Needs torch (``pip install "jointbert[export]"``)."""
