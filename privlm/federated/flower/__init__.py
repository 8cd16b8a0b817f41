"""Federations over a network: Flower carries the bytes, the rounds are ours (docs: README of an exported app).

Flower is no dependency of PrivLM: it is imported where a message is made or read.
"""
