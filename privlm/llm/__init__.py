"""Talking to language models: one layer through which every call goes.

types: what is asked and answered. client: the LanguageModel that a runner holds (budget, call record, dispatch).
record: the call record, which is cache, resume and bill in one. backends: local weights, a server, recorded answers.
program: programs around a model whose steps see only what they declare.
"""
