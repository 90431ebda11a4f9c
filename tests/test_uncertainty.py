"""Sec. 4.5 and beyond: correlation, sparsification, reliability against loops and known answers."""
import contextlib
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

import uncertainty
from oracles import agree
from toys import go, grey_levels


def numbers(n, seed, kind="rand"):
    return getattr(torch, kind)(n, generator=torch.Generator().manual_seed(seed),
                                dtype=torch.float64)


def ones(n, value=1.0):
    return torch.full((n,), value, dtype=torch.float64)


def density(r, alpha, beta):
    return beta / (2 * alpha * math.gamma(1 / beta)) * math.exp(-(abs(r) / alpha) ** beta)


def test_expected_residual_by_hand_and_by_integration():
    alpha = torch.tensor([3.0, 3, 3, 3], dtype=torch.float64)
    beta = torch.tensor([1, 2, .5, 1.7], dtype=torch.float64)
    integral = sum(r * density(r, 3.0, 1.7)
                   for r in (.0005 + .001 * k for k in range(30000))) * 2 * .001
    # Gamma(4) / Gamma(2) = 6
    expected = torch.tensor([3, 3 / math.sqrt(math.pi), 18, integral], dtype=torch.float64)
    assert torch.allclose(uncertainty.expected_residual(alpha, beta), expected, rtol=1e-5)


# ---------------------------------------------------------------- Sec. 4.5: correlation

def test_pearson_equals_numpy():
    u, v = grey_levels(50, seed=7), grey_levels(50, seed=8)
    assert uncertainty.pearson(u, 2 * u + v) == pytest.approx(np.corrcoef(u, 2 * u + v)[0, 1],
                                                              abs=1e-12)
    assert uncertainty.pearson([1, 2, 3], [-2, -4, -6]) == pytest.approx(-1)
    assert uncertainty.pearson([1, 1, 1], [1, 2, 3]) is None
    assert uncertainty.pearson([], []) is None
    # their mean is not .1 in floating point
    assert uncertainty.pearson([.1, .1, .1], [1, 2, 3]) is None


def test_ranks_equal_a_naive_count_with_ties():
    values = [2.0, -1, 2, 5, 2, -1, 0, 7]
    naive = [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
    assert uncertainty.ranks(values).tolist() == naive == [5, 1.5, 5, 7, 5, 1.5, 3, 8]


def test_spearman_sees_order_alone():
    u, v = numbers(60, 1), numbers(60, 2)
    v = u + v
    rho = uncertainty.spearman(u, v)
    assert 0.3 < rho < 0.95
    assert uncertainty.spearman(u, v.exp() ** 9) == pytest.approx(rho)
    assert uncertainty.spearman(3 - 1 / u, v) == pytest.approx(rho)
    assert uncertainty.spearman(u, -v) == pytest.approx(-rho)
    assert uncertainty.spearman(u, u ** 5) == pytest.approx(1)
    assert uncertainty.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert uncertainty.spearman(u, 0 * v) is None


def test_correlation_is_taken_per_image_mean_and_per_pixel():
    """Twelve images: the scale is large beside each residual, not where it is."""
    residual, scale = torch.zeros(2, 12, 4, dtype=torch.float64)
    for k in range(12):
        residual[k, k % 4], scale[k, k % 4], scale[k, (k + 1) % 4] = 4 * k + 4, .01 * k + .01, k + 1
    residual, scale = residual.view(12, 1, 2, 2), scale.view(12, 1, 2, 2)
    found = uncertainty.correlate(residual, scale, residual >= 0)
    # means agree, places do not, and in order most places do
    for name in ("pearson", "spearman"):
        agree(found[f"{name}_image"], 1, f"Sec. 4.5: {name} of mean scale and mean residual, one "
              "number an image")
    assert found["pearson_pixel"] < 0 < found["spearman_pixel"], "Sec. 4.5, pixel by pixel"


def test_correlation_inside_a_region_leaves_the_rest_out():
    residual, expected, inside = (numbers(12 * 16, seed).view(12, 1, 4, 4) for seed in (5, 6, 7))
    inside = inside > .4
    inside[2] = False  # an image without foreground
    rows = [zip(*(v[n].flatten().tolist() for v in (residual, expected, inside)))
            for n in range(12) if n != 2]
    pairs = [[(r, e) for r, e, counts in row if counts] for row in rows]
    means = [[sum(column) / len(column) for column in zip(*image)] for image in pairs]
    pixels = [pair for image in pairs for pair in image]
    assert uncertainty.correlate(residual, expected, inside) == {
        "pearson_image": pytest.approx(np.corrcoef(*zip(*means))[0, 1]),
        "spearman_image": uncertainty.spearman(*zip(*means)),
        "pearson_pixel": pytest.approx(np.corrcoef(*zip(*pixels))[0, 1]),
        "spearman_pixel": uncertainty.spearman(*zip(*pixels))}
    assert set(uncertainty.correlate(residual, expected, inside & False).values()) == {None}


def test_a_correlation_per_image_needs_ten_images_that_count():
    """Two points lie on a line: the Pearson correlation of few images would be 1 of itself."""
    assert uncertainty.FEWEST == 10, f"Sec. 4.5: {uncertainty.FEWEST} images, we ask for 10"
    for n, empty in ((2, 0), (9, 0), (10, 0), (10, 1), (11, 1)):
        residual, scale = (numbers(n * 16, seed).view(n, 1, 4, 4) for seed in (20, 21))
        inside = torch.ones_like(residual, dtype=torch.bool)
        inside[:empty] = False
        found = uncertainty.correlate(residual, scale, inside)
        means = [v[empty:].mean(dim=(1, 2, 3)) for v in (residual, scale)]
        for name, function in (("pearson", uncertainty.pearson),
                               ("spearman", uncertainty.spearman)):
            got, pixel = found[f"{name}_image"], found[f"{name}_pixel"]
            what = f"Sec. 4.5, {name} of {n} images, {empty} of them empty: found {got}, asked for "
            if n - empty < 10:
                assert got is None, what + "None"
            else:
                assert got == pytest.approx(function(*means)), what + str(function(*means))
            expected = function(residual[empty:], scale[empty:])
            assert pixel == pytest.approx(expected), (
                f"Sec. 4.5, {name} per pixel of {n} images: found {pixel}, asked for {expected}")


# ---------------------------------------------------------------- beyond the paper: sparsification

def laplace_quantiles(n, alpha=1.0):
    """n absolute residuals that a Laplace density could not fit better."""
    return torch.tensor([-alpha * math.log1p(-(k + .5) / n) for k in range(n)], dtype=torch.float64)


def test_what_remains_equals_a_naive_loop_on_an_odd_number():
    residual, scale = numbers(37, 8), numbers(37, 9)
    curve = []
    for k in range(20):
        pairs = sorted(zip(scale.tolist(), residual.tolist()))[:37 - 37 * k // 20]
        curve.append(sum(r for _, r in pairs) / len(pairs))
    assert uncertainty.mean_of_the_rest(residual, scale).tolist() == pytest.approx(curve)
    # among equals nobody is picked by place
    for map_ in (ones(37), torch.cat([ones(18), ones(19, 2.0)])):
        first = torch.randperm(18, generator=torch.Generator().manual_seed(0)).tolist()
        shuffled = first + list(range(36, 17, -1))
        assert torch.allclose(uncertainty.mean_of_the_rest(residual, map_),
                              uncertainty.mean_of_the_rest(residual[shuffled], map_))
    assert torch.allclose(uncertainty.mean_of_the_rest(residual, ones(37)), residual.mean())


def test_sparsification_error_of_the_oracle_of_no_map_and_of_the_worst():
    uniform = (torch.arange(2000, dtype=torch.float64) + .5) / 2000
    ause = lambda residual, map_: uncertainty.sparsification(residual, map_)["ause"]
    assert ause(uniform, uniform) == 0 == ause(uniform, uniform ** 3)
    # the oracle keeps 1 - f of the mean
    assert ause(uniform, ones(2000)) == pytest.approx(.95 ** 2 / 2)
    assert ause(uniform, 1 - uniform) == pytest.approx(.95 ** 2)     # the worst map keeps 1 + f
    assert ause(7 * uniform, ones(2000, 3.)) == pytest.approx(ause(uniform, ones(2000)))
    # exponential: 1 - m(f) / m(0)
    lost = [-f * math.log(f) / (1 - f) if f else 0 for f in (k / 20 for k in range(20))]
    expected = sum(lost) / 20 - lost[-1] / 40
    assert ause(laplace_quantiles(20000), ones(20000)) == pytest.approx(expected, abs=1e-3)
    random = ause(laplace_quantiles(20000), numbers(20000, 10))
    assert random == pytest.approx(0.6, abs=.02)
    found = uncertainty.sparsification(4 * uniform, 1 - uniform)
    assert found["removed"] == [k / 20 for k in range(20)] and len(found["map"]) == 20
    # in grey levels
    assert found["map"][10] == pytest.approx(3) and found["oracle"][10] == pytest.approx(1)


# ---------------------------------------------------------------- beyond the paper: reliability

def generalized_gaussian(n, alpha, beta):
    """Absolute residuals drawn from the density: (|r|/alpha)^beta is Gamma(1/beta)."""
    drawn = torch.from_numpy(np.random.default_rng(0).gamma(1 / beta.numpy(), size=n))
    return alpha * drawn ** (1 / beta)


def test_probability_integrates_the_density():
    for r, alpha, beta in ((.7, 1.3, 1.0), (2.0, .8, 1.7), (3.0, 2.0, .6), (.4, .5, 2.0)):
        r, alpha, beta = (torch.tensor([v], dtype=torch.float64) for v in (r, alpha, beta))
        step = r.item() / 20000
        integral = 2 * step * sum(density((k + .5) * step, alpha.item(), beta.item())
                                  for k in range(20000))
        assert uncertainty.probability(r, alpha, beta).item() == pytest.approx(integral, abs=1e-4)
    r, alpha = 9 * numbers(50, 11), 1 + numbers(50, 12)
    assert torch.allclose(uncertainty.probability(r, alpha, ones(50)), 1 - torch.exp(-r / alpha))
    assert torch.allclose(uncertainty.probability(r, alpha, ones(50, 2.)), torch.erf(r / alpha))
    assert uncertainty.probability(torch.tensor([0., 1e4]), torch.ones(2),
                                   torch.tensor([.3, 4.])).tolist() == [0, 1]


def test_honest_maps_are_reliable():
    ece = lambda *words: uncertainty.reliability(*words)["ece"]
    alpha = 1 + 20 * numbers(40000, 13)
    assert ece(alpha * laplace_quantiles(40000), alpha, ones(40000)) < 1e-4
    beta = .4 + 3 * numbers(40000, 14)
    assert ece(generalized_gaussian(40000, alpha, beta), alpha, beta) < .005
    # beta matters
    assert ece(generalized_gaussian(40000, alpha, beta), alpha, ones(40000)) > .02


def test_coverage_of_a_map_that_is_half_or_double_the_truth_by_hand():
    r = laplace_quantiles(20000)
    for factor in (.5, 2.0):
        found = uncertainty.reliability(r, ones(20000, factor), ones(20000))
        # P(|r| <= factor ln(1/(1-p)))
        expected = [1 - (1 - k / 20) ** factor for k in range(1, 20)]
        assert found["nominal"] == pytest.approx([k / 20 for k in range(1, 20)])
        assert found["observed"] == pytest.approx(expected, abs=1e-4)
        ece = sum(abs(e - k / 20) for k, e in enumerate(expected, 1)) / 19
        assert found["ece"] == pytest.approx(ece, abs=1e-4)
    # u = 0.451 everywhere: too few below, too many above
    found = uncertainty.reliability(ones(7, .6), ones(7), ones(7))
    assert found["observed"] == [0] * 9 + [1] * 10
    assert found["ece"] == pytest.approx((2.25 + 2.75) / 19)


# ---------------------------------------------------------------- four made-up maps

def answers():
    """name -> Pearson per pixel, AUSE and ECE of each made-up map."""
    residual, maps = uncertainty.made_up_maps(torch.Generator().manual_seed(0))
    everywhere = torch.ones_like(residual, dtype=torch.bool)
    return {name: (uncertainty.correlate(residual, scale, everywhere)["pearson_pixel"],
                   uncertainty.sparsification(residual, scale)["ause"],
                   uncertainty.reliability(residual, scale, torch.ones_like(scale))["ece"])
            for name, scale in maps.items()}


def test_order_sees_no_factor_and_size_does():
    """Half of an honest map: AUSE cannot tell, ECE must."""
    (rho, ause, ece), (half_rho, half_ause, half_ece) = (
        answers()[name] for name in ("honest", "half as large"))
    assert abs(ause - half_ause) <= 1e-6, f"AUSE by order alone: {ause}, half as large {half_ause}"
    assert abs(rho - half_rho) <= 1e-6, f"Sec. 4.5: Pearson {rho}, half as large {half_rho}"
    assert ece < 0.02, f"ECE of an honest map: found {ece:.4f}, asked for less than 0.02"
    assert half_ece > 0.1, f"ECE of half of it: found {half_ece:.4f}, asked for more than 0.1"


def test_maps_that_know_no_place_order_pixels_far_worse_than_an_honest_one():
    ause = {name: found[1] for name, found in answers().items()}
    assert abs(ause["constant"] - ause["shuffled"]) < 0.05, f"AUSE, both know nothing: {ause}"
    for name in ("constant", "shuffled"):
        assert ause[name] > ause["honest"] + 0.15, f"AUSE, {name} above honest by 0.15: {ause}"
    rho = {name: found[0] for name, found in answers().items()}
    assert rho["constant"] is None, f"Sec. 4.5: Pearson of a constant, found {rho['constant']}"
    assert abs(rho["shuffled"]) < 0.03 < 0.3 < rho["honest"], f"Sec. 4.5: Pearson per pixel {rho}"


def test_the_program_prints_the_three_answers_to_each_map_and_draws_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        go(program=uncertainty)
    *lines, last = said.getvalue().splitlines()
    assert last == "wrote uncertainty.png"
    assert [path.name for path in tmp_path.iterdir()] == ["uncertainty.png"]
    with Image.open(tmp_path / "uncertainty.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 200
    for line, (name, (rho, ause, ece)) in zip(lines, answers().items(), strict=True):
        rho = "undefined" if rho is None else f"{rho:.2f}"
        assert line.split() == [*name.split(), "Pearson", rho, "AUSE", f"{ause:.3f}", "ECE",
                                f"{ece:.3f}"], f"{name}: {line!r}"
