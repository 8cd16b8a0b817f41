"""FedIT: instruction tuning by clients that keep their instructions, a server averages their adapters (Shepherd).

Zhang et al., arXiv 2305.05644. Claim: the federated model is better than one that is trained on any one client's
instructions, and near the centralised one. Tables: fedit_main (arms of our own; the paper's figures were not found),
fedit_small (own small runs).
"""
