"""Estimates: shares, means, differences and rates, each with n and a 95 % interval. numpy and scipy only.

    shares           share, share_of_counts: Wilson, with the design effect of units and weights
    differences      paired_difference, mcnemar: two systems on the same items
    seeds            mean_over_seeds (t), sign_flips: runs that differ in the seed
    classification   accuracy, f1, precision, recall, macro_f1, matthews, majority_class
    rouge            rouge_l: one answer against its reference; a mean of them is a share
    exact_match      the same for short answers
    detection        auc, mean_of_rates: scores against membership
    statistic        any other statistic of independent units: the BCa bootstrap

`python benchmarks/coverage_of_intervals.py` simulates how often each interval holds the truth (docs/estimates.md). None
has width 0; where n is too small to give one, ci_low and ci_high are None.
"""
