"""LLM programs: evidence-supported question answering as a program around a frozen language model.

Schlag, Sukhbaatar, Celikyilmaz, Yih, Weston, Schmidhuber, Li, arXiv 2305.05364. Claim: filtering paragraphs by
likelihood and searching over reasoning chains raises accuracy on StrategyQA from 60.1 to 66.4 %, without training.
Tables: llm_programs_main (accuracy), llm_programs_filter (finding the true paragraph).
"""
