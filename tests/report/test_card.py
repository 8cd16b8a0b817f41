import pytest

from privlm.report.card import rounded_up

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(2.9994, "3.000"), (2.998, "2.998"), (2.9980001, "2.999"), (0.0, "0.000"), (float("inf"), "inf")],
)
def test_a_guaranteed_epsilon_is_never_rounded_down(epsilon, text):
    assert rounded_up(epsilon) == text
