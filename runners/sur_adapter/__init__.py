"""SUR-adapter: an adapter by which short sentences draw what long lists of keywords do, taught by a language model.

Zhong et al., arXiv 2305.05189 (ACM MM 2023). Claim: hidden states of a language model, distilled into one adapter
behind the frozen text encoder, close the gap between sentences and keywords. Tables: sur_adapter_main,
sur_adapter_ablation.
"""
