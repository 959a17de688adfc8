"""Metrics, the text format of published predictions, figures."""
