"""Clipping by records from one backward pass.

Guarantee: with w_i the factor of record i and g_i the gradient of its own loss over all trainable parameters,
|w_i g_i| <= C. Adding or removing one record changes the sum of w_i g_i by at most C, which is the
sensitivity that the noise is scaled to.

`rules` says what a layer's activations and output gradients are to its parameters, `gradients` computes norms
and weighted sums from them, `styles` turns norms into factors.
"""

from privlm.privacy.clipping.gradients import (
    Grams,
    Instantiated,
    PerRecordGradient,
    accumulate,
    merge,
    squared_norms,
    without_records,
)
from privlm.privacy.clipping.layouts import grouped, of_one_form, stacked
from privlm.privacy.clipping.rules import (
    RULES,
    NoRuleError,
    Rule,
    bias,
    depends_on_others,
    has_rows,
    is_general,
    reads_input,
    rule_of,
)
from privlm.privacy.clipping.styles import STYLES

__all__ = [
    "RULES",
    "STYLES",
    "Grams",
    "Instantiated",
    "NoRuleError",
    "PerRecordGradient",
    "Rule",
    "accumulate",
    "bias",
    "depends_on_others",
    "grouped",
    "has_rows",
    "is_general",
    "merge",
    "of_one_form",
    "reads_input",
    "rule_of",
    "squared_norms",
    "stacked",
    "without_records",
]
