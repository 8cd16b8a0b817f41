"""Distances between sets of features: right against other computations, and refused where they mean nothing."""

import numpy as np
import pytest
from scipy import linalg, stats

from privlm.diffusion.distances import frechet, frechet_distance, kernel, kernel_distance
from privlm.diffusion.extractors import Extractor
from privlm.errors import UsageError


def normal(seed, n, dims, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).normal(size=(n, dims))


def test_a_frechet_distance_in_one_dimension_is_the_one_computed_by_hand():
    """Of N(0, 1) and N(3, 2 ** 2) it is 3 ** 2 + (2 - 1) ** 2; here of the samples' own moments."""
    a, b = np.array([[-1.0], [0.0], [1.0]]), np.array([[1.0], [3.0], [5.0]])
    assert frechet(a, b) == pytest.approx(9 + 1, rel=1e-6)


def test_frechet_agrees_with_the_matrix_root_of_scipy():
    mixing = np.random.default_rng(5).normal(size=(8, 8))
    a, b = normal(1, 300, 8) @ mixing, normal(2, 200, 8, shift=0.3, scale=1.4)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(first @ second).real
    gap = a.mean(axis=0) - b.mean(axis=0)
    assert frechet(a, b) == pytest.approx(gap @ gap + np.trace(first + second - 2 * root), rel=1e-5)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)


def test_a_set_has_no_distance_to_itself():
    a = normal(0, 100, 16)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-6)
    flat = np.concatenate([a, np.zeros((100, 8))], axis=1)  # directions without variance
    assert frechet(flat, flat) == pytest.approx(0, abs=1e-6)
    assert frechet(a[:5], a[:5], allow_small=True) == pytest.approx(0, abs=1e-6)
    assert frechet(np.ones((3, 2)), np.ones((3, 2))) == 0


def test_single_precision_features_are_compared_in_double():
    a = normal(0, 200, 4, shift=1_000, scale=0.01).astype(np.float32)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_too_few_images_for_a_frechet_distance_are_refused_unless_allowed():
    a, b = normal(0, 17, 16), normal(1, 16, 16)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    with pytest.raises(
        UsageError, match=r"fid of 17 and 16 images with 16 features .* at least 17 .* allow_small=true"
    ):
        frechet(a, b)
    assert frechet(a, b, allow_small=True) > 0
    with pytest.raises(UsageError, match="at least 2 images of each set, not 17 and 1"):
        frechet(a, b[:1], allow_small=True)


def by_hand(a, b):
    """The sums over pairs, one by one."""
    k = lambda x, y: (x @ y / len(x) + 1) ** 3  # noqa: E731
    n, m = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def test_the_kernel_distance_and_its_error_are_those_computed_by_hand():
    a, b = normal(0, 6, 3), normal(1, 5, 3, shift=0.5)
    value, error = kernel(a, b)
    assert value == pytest.approx(by_hand(a, b))
    without_a = [by_hand(np.delete(a, i, axis=0), b) for i in range(6)]
    without_b = [by_hand(a, np.delete(b, i, axis=0)) for i in range(5)]
    assert error**2 == pytest.approx(np.var(without_a) * 5 + np.var(without_b) * 4)


def test_the_kernel_distance_of_like_sets_is_nought_on_average():
    found = [kernel(normal(2 * seed, 20, 4), normal(2 * seed + 1, 20, 4))[0] for seed in range(400)]
    assert min(found) < 0
    assert abs(stats.ttest_1samp(found, 0).statistic) < 3


def test_the_standard_error_is_the_spread_over_samples():
    found = [kernel(normal(2 * seed, 40, 4), normal(2 * seed + 1, 60, 4, shift=0.6)) for seed in range(300)]
    values, errors = np.transpose(found)
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.2)


def test_too_few_images_for_a_kernel_distance_are_refused():
    with pytest.raises(UsageError, match="at least 3 images of each set, not 5 and 2"):
        kernel(normal(0, 5, 3), normal(1, 2, 3))


@pytest.mark.parametrize("distance", [frechet, kernel])
def test_features_must_be_finite_and_of_one_width(distance):
    a = normal(0, 10, 3)
    spoiled = a.copy()
    spoiled[4, 1] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        distance(a, spoiled)
    with pytest.raises(ValueError, match=r"\(10, 3\) and \(10, 2\)"):
        distance(a, a[:, :2])


def test_a_distance_of_images_is_named_after_its_extractor_and_says_of_how_many():
    means = Extractor("means", lambda images: images.mean(axis=(1, 2)))
    real, fake = normal(0, 30, 4 * 4 * 3).reshape(30, 4, 4, 3), normal(1, 20, 4 * 4 * 3).reshape(20, 4, 4, 3)
    fid, kid = frechet_distance(real, fake, means), kernel_distance(real, fake, means)
    assert (fid.name, fid.n_real, fid.n_fake, fid.dims, fid.standard_error) == ("fid[means]", 30, 20, 3, None)
    assert fid.value == pytest.approx(frechet(real.mean(axis=(1, 2)), fake.mean(axis=(1, 2))))
    assert (kid.name, kid.n_real, kid.n_fake, kid.dims) == ("kid[means]", 30, 20, 3)
    assert (kid.value, kid.standard_error) == kernel(real.mean(axis=(1, 2)), fake.mean(axis=(1, 2)))
