"""Empirical audits: statistics that bound epsilon from below.

An accountant's epsilon is an upper bound on paper, which a defect of the implementation can falsify. An audit plants
canaries, records whose presence is decided by coins, trains, and guesses the coins. Guessing better than the claimed
epsilon allows proves a defect; guessing no better proves nothing. No module here imports torch.
"""
