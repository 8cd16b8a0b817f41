"""PKG: a small tuned model writes a background text, with which a black box answers.

Luo et al., arXiv 2305.04757. Claim: a small open model that has learnt a domain guides a black box better than
retrieval does, and the domain's data never leave the host. Tables: pkg_main, pkg_size, pkg_reader, pkg_scienceqa
(published | ours), pkg_small (own runs).
"""
