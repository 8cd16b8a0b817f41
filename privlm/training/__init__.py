"""The training loop, objectives, schedules and checkpoints.

Works as a plain library: needs torch and accelerate only.
"""
