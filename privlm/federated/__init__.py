"""Clients that train on what they keep, and a server that averages: the rounds, their rules, what moves the bytes."""
