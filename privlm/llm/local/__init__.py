"""Weights in this process: found, loaded or trained here; asked for continuations, scores and hidden states."""
