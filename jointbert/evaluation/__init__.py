"""Evaluation: accuracy metrics, attention statistics, pictures of hands."""
