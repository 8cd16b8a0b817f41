import pytest

from privlm.report.card import figure, rounded_up
from privlm.results import Result

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(2.9994, "3.000"), (2.998, "2.998"), (2.9980001, "2.999"), (0.0, "0.000"), (float("inf"), "inf")],
)
def test_a_guaranteed_epsilon_is_never_rounded_down(epsilon, text):
    assert rounded_up(epsilon) == text


def test_nor_is_it_in_a_row_of_results():
    values = {
        name: figure(Result(name, 2.99942, "epsilon", None, None, None, None, "measured"))
        for name in ("epsilon", "epsilon_edgeworth")
    }
    assert values == {"epsilon": "3.000", "epsilon_edgeworth": "2.999"}
