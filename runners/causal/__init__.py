"""Causal reasoning and large language models: causal facts asked by name only, scored without mercy for non-answers.

Kiciman, Ness, Sharma, Tan, arXiv 2305.00050. Claim: GPT-3.5 and GPT-4 beat data-driven methods at pairwise discovery,
graphs, counterfactuals and actual causes. Tables: causal_tuebingen, causal_neuropathic, causal_arctic, causal_crass,
causal_vignettes.
"""
