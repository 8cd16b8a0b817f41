"""LLM-Adapters: adapters for worked arithmetic, compared on six sets of math questions.

Hu et al., arXiv 2304.01933. Claim: a few million trained parameters bring a model of 7 to 13 billion close to GPT-3.5
on the easier sets. Tables: llm_adapters_v1, llm_adapters_v2, llm_adapters_emnlp4 (published | ours), llm_adapters_small
(own runs).
"""
