"""Differential privacy: accounting, sampling, clipping, noise, the engine and its ledger."""
