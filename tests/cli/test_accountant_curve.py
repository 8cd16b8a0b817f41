"""`privlm accountant curve`: the picture is drawn, and its shading is where the estimate is below the truth."""

import numpy as np
import pytest

from privlm.cli.accountant import main
from privlm.privacy.accounting import Segment
from privlm.privacy.accounting.curves import epsilon_curves, understated

pytestmark = pytest.mark.torch_free

RUN = ["--sample-rate", "0.3", "--steps", "8", "--noise-multiplier", "3", "--delta", "1e-5"]


def test_short_runs_with_little_noise_are_understated():
    noises = [0.6, 0.8, 1.4]
    curves = epsilon_curves([Segment(1000 / 67349, noise, 203) for noise in noises], 0.5 / 67349)
    assert understated(curves).tolist() == [True, True, False]
    assert (curves["contour"] <= curves["pld"]).all()
    assert (curves["pld"] < curves["rdp"]).all()


def test_where_the_contour_refuses_pld_is_the_truth():
    curves = epsilon_curves([Segment(0.01, 1.0, 1)], 1e-5)
    assert np.isnan(curves["contour"]).all()
    assert understated(curves).all() == (curves["edgeworth"] < curves["pld"]).all()


@pytest.mark.medium
@pytest.mark.parametrize(("suffix", "beginning"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures(suffix, beginning, tmp_path, capsys):
    picture = tmp_path / f"curve.{suffix}"
    assert main(["curve", *RUN, "--output", str(picture)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(picture)
    assert picture.read_bytes().startswith(beginning)
    assert picture.stat().st_size > 10_000
