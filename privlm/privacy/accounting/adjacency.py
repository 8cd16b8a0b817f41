"""Which pairs of outputs bound a step under each adjacency, and why.

add_remove, zero_out: removing a record and adding one (loss.py: remove, add; Zhu, Dong, Wang, arXiv 2106.08567,
Theorem 11). zero_out makes a record the null record, which has the same loss.

replace_one: the pair `replace`, of a record at one end of the clipping ball and its replacement at the other (Koskela,
Jalko, Honkela, arXiv 1906.03049, section on substitution; dp-accounting's AdjacencyType.REPLACE). It dominates: let the
noise be 1, u and v the clipped gradients of the two records, |u|, |v| <= mu, and the other records' draw fixed. For any
set S of outputs with N(0)(S) = a and any weight alpha >= 0,

    P(S) - alpha Q(S) = (1 - q)(1 - alpha) a + q N(u)(S) - alpha q N(v)(S),

and by Neyman and Pearson N(u)(S) <= Phi(Phi^-1(a) + mu) and N(v)(S) >= Phi(Phi^-1(a) - mu). The half-line with
N(0)-mass a attains both at once where u = mu and v = -mu, so that no other records have a larger hockey-stick
divergence, at any alpha. Mixing over the draw of the others does not raise it (joint convexity), and dominating pairs
compose, steps chosen by earlier outputs included (arXiv 2106.08567, Theorem 10).
"""

REPLACE = "replace"


def directions_of(direction: str) -> tuple[str, ...]:
    """The pairs to bound: both stands for removing and adding."""
    return ("remove", "add") if direction == "both" else (direction,)


def pair_of(adjacency: str, direction: str) -> str:
    """What the accountants are asked for: the direction, which replace_one has only one of."""
    return REPLACE if adjacency == "replace_one" else direction
