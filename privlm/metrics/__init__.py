"""Metrics of predictions, with their uncertainty. numpy only."""
