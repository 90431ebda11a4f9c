"""Sec. 4.2-4.5: metrics against naive loops and known answers, honest noise, the whole command."""
import contextlib
import csv
import importlib.util
import io
import json
import math
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch as replaced

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import losses
import nets
import run
import train
from oracles import agree
from toys import tiny_slices


def settings(**changes):
    """A run's configuration as train.py writes it."""
    words = "--data phantom --size 64 --batch 2 --updates 1 --width 1 --critic-width 1 --lam 10"
    config = vars(train.make_parser().parse_args([*words.split(), "--device", "cpu"]))
    for flag in ("resume", "smoke", "dry_run"):
        del config[flag]
    return config | changes


def grey_levels(*shape, seed=0):
    return 255 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed),
                            dtype=torch.float64)


def naive_ssim(a, b, data_range):
    """One image pair, h x w nested lists: Wang et al. window by window."""
    window = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5 ** 2)) for j in range(11)]
              for i in range(11)]
    total = sum(map(sum, window))
    C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for top in range(len(a) - 10):
        for left in range(len(a[0]) - 10):
            cells = [(window[i][j] / total, a[top + i][left + j], b[top + i][left + j])
                     for i in range(11) for j in range(11)]
            mu_a, mu_b = sum(w * u for w, u, _ in cells), sum(w * v for w, _, v in cells)
            var_a = sum(w * (u - mu_a) ** 2 for w, u, _ in cells)
            var_b = sum(w * (v - mu_b) ** 2 for w, _, v in cells)
            cov = sum(w * (u - mu_a) * (v - mu_b) for w, u, v in cells)
            above = (2 * mu_a * mu_b + C1) * (2 * cov + C2)
            values.append(above / ((mu_a ** 2 + mu_b ** 2 + C1) * (var_a + var_b + C2)))
    return sum(values) / len(values)


# ---------------------------------------------------------------- Sec. 4.2: metrics

def test_ssim_equals_a_naive_loop_on_odd_shapes_and_ranges():
    a, b = grey_levels(2, 1, 13, 15, seed=1), grey_levels(2, 1, 13, 15, seed=2)
    b = 0.6 * a + 0.4 * b
    for data_range in (255.0, 100.0):
        expected = [naive_ssim(a[n, 0].tolist(), b[n, 0].tolist(), data_range) for n in range(2)]
        agree(evaluate.ssim(a, b, data_range), expected, "Sec. 4.2: SSIM = mean over windows of "
              "(2 mu_a mu_b + C1) (2 cov_ab + C2) / ((mu_a^2 + mu_b^2 + C1) (var_a + var_b + C2))")


def test_ssim_of_opposite_contrasts_is_negative():
    a = grey_levels(1, 1, 16, 16, seed=9)
    b = 255 - a
    expected = naive_ssim(a[0, 0].tolist(), b[0, 0].tolist(), 255.0)
    assert expected < -0.5 and abs(evaluate.ssim(a, b).item() - expected) < 1e-9


def test_ssim_by_hand_for_constant_images():
    a, b = (torch.full((1, 1, 16, 16), grey, dtype=torch.float64) for grey in (100.0, 50.0))
    assert abs(evaluate.ssim(a, b).item() - (2 * 5000 + 6.5025) / (12500 + 6.5025)) < 1e-9


def test_ssim_is_1_for_equal_images_and_symmetric_and_range_is_255():
    a, b = grey_levels(3, 1, 20, 20, seed=3), grey_levels(3, 1, 20, 20, seed=4)
    assert torch.allclose(evaluate.ssim(a, a), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(evaluate.ssim(a, b), evaluate.ssim(b, a))
    assert torch.equal(evaluate.ssim(a, b), evaluate.ssim(a, b, 255.0))


def test_psnr_by_hand():
    a = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    b = a.clone()
    b[0] += 25.5
    b[1, 0, 0, 0] = 255.0
    equation = "Sec. 4.2: PSNR = 10 log10(data_range^2 / mean (a - b)^2)"
    agree(evaluate.psnr(a, b), [20.0, 10 * math.log10(16)], equation)
    agree(evaluate.psnr(a[:1], b[:1], 51.0), [20 * math.log10(2)], equation)


def test_metrics_judge_every_image_by_itself():
    a, b = grey_levels(3, 1, 16, 16, seed=5), grey_levels(3, 1, 16, 16, seed=6)
    b[1] = a[1] + 1
    for metric in (evaluate.ssim, evaluate.psnr):
        alone = torch.cat([metric(a[n:n + 1], b[n:n + 1]) for n in range(3)])
        assert metric(a, b).shape == (3,) and torch.allclose(metric(a, b), alone)


# ---------------------------------------------------------------- Sec. 4.2: test scenarios

def test_gaussian_noise_has_k_percent_of_255_and_is_clipped():
    x = torch.full((1, 1, 400, 400), 127.0)
    for scenario, sigma in (("GN5", 12.75), ("GN10", 25.5), ("GN20", 51.0)):
        noise = evaluate.perturb(x, scenario, torch.Generator().manual_seed(0)) - x
        agree(noise.mean(), 0, f"Sec. 4.2: the noise of {scenario} has mean 0", 0.4)
        # clipping at 2.5 sigma costs GN20 a little of its deviation
        agree(noise.std(), sigma, f"Sec. 4.2: {scenario} is N(0, (k/100 255)^2), its deviation",
              (0.01 if sigma < 40 else 0.03) * sigma)
    dark = evaluate.perturb(torch.zeros(1, 1, 100, 100), "GN20", torch.Generator().manual_seed(0))
    assert dark.min() == 0 and dark.max() <= 255, "Sec. 4.2: clipped to [0,255]"
    agree((dark == 0).float().mean(), 0.5, "Sec. 4.2: half of the noise on black is clipped", 0.02)


def test_impulses_replace_k_percent_of_the_pixels_by_uniform_values():
    x = torch.full((1, 1, 500, 500), 300.0)  # no replacement can hit this value
    for scenario, share in (("IP2", 0.02), ("IP5", 0.05), ("IP10", 0.10)):
        out = evaluate.perturb(x, scenario, torch.Generator().manual_seed(0))
        hit = out[out != x]
        assert len(hit) / x.numel() == pytest.approx(share, rel=0.05)
        assert 0 <= hit.min() and hit.max() <= 255
        assert hit.mean().item() == pytest.approx(127.5, abs=4)
        assert hit.std().item() == pytest.approx(255 / math.sqrt(12), rel=0.05)


def test_gn0_changes_nothing_and_unknown_scenarios_are_refused():
    x = grey_levels(1, 1, 8, 8)
    assert torch.equal(evaluate.perturb(x, "GN0"), x)
    with pytest.raises(ValueError, match="choose one of GN0"):
        evaluate.perturb(x, "GN7")


def test_perturbed_images_depend_on_scenario_and_place_alone():
    images = grey_levels(3, 8, 8).byte().numpy()
    for scenario in evaluate.SCENARIOS:
        one = evaluate.perturb_all(images, scenario)
        assert torch.equal(one, evaluate.perturb_all(images, scenario))
        assert torch.equal(one[:2], evaluate.perturb_all(images[:2], scenario))
    same = np.repeat(images[:1], 2, axis=0)
    assert not torch.equal(*evaluate.perturb_all(same, "GN5").split(1))


def test_no_scenario_repeats_the_noise_of_another_nor_does_the_next_process_change_it():
    flat = np.full((2, 32, 32), 128, np.uint8)
    noise = torch.cat([evaluate.perturb_all(flat, s)
                       for s in ("GN5", "GN10", "GN20")]).flatten(1) - 128
    assert (torch.corrcoef(noise) - torch.eye(6)).abs().max() < 0.2
    assert noise[0, :3].tolist() == pytest.approx(GN5, abs=1e-3)


# so that two papers' worth of runs, months apart, meet the same noise
GN5 = (-9.0020, -1.1453, 1.7863)


# ---------------------------------------------------------------- a run and its translations

def toy(gain):
    """A translation that can be written down, and a scale that differs from pixel to pixel."""
    return lambda x: (gain * x, 0.2 + 0.1 * x ** 2 + 0.05 * x)


def toy_with_beta(u):
    """A translation with a generalized Gaussian map, as UGAC's."""
    return 0.9 * u, 0.3 + 0.1 * u ** 2, 0.5 + (u + 1)


def toy_runs():
    return {"one": (toy(0.9), settings()), "two": (toy(-0.5), settings()),
            "three": (toy(0.2), settings(method="pi"))}


def judged_slices():
    """Five pairs of two patients, four and one."""
    s = tiny_slices()
    names = [f"p_{k}" for k in range(4)] + ["q_0"]
    return data.Slices(s.input[:0], s.target[:0], s.input[:5], s.target[:5],
                       {"evaluation_input": names, "evaluation_target": names})


def test_translations_arrive_in_grey_levels_and_in_order():
    x = torch.from_numpy(tiny_slices().input[:5]).float().unsqueeze(1)
    with replaced.object(evaluate, "BATCH", 2):
        image, scale, beta = evaluate.translate(toy(0.9), x, "cpu")
        three = evaluate.translate(lambda u: (u, 0.1 + u ** 2, 2 + u), x, "cpu")
    u = x / 127.5 - 1
    assert beta.shape == scale.shape and (beta == 1).all()  # a Laplace density
    # beta has no unit
    assert torch.allclose(three[1], 127.5 * (0.1 + u ** 2), atol=1e-3)
    assert torch.allclose(three[2], 2 + u)
    assert torch.allclose(image, 127.5 * (0.9 * u + 1), atol=1e-3)
    assert torch.allclose(scale, 127.5 * toy(0.9)(u)[1], atol=1e-3)


def saved(folder, G, **changes):
    """A run's folder as train.py leaves it, with this generator."""
    config = settings(**changes)
    state = train.build(config)
    folder.mkdir(parents=True, exist_ok=True)
    run.save(folder, config, 1, 0.0, state._replace(theta=torch.nn.ModuleDict({"G": G})))
    return folder


def test_a_run_is_loaded_with_its_own_width_and_weights(tmp_path):
    G = nets.UNet(width=2)
    loaded, config = evaluate.load_run(saved(tmp_path, G, width=2, critic_width=3), "cpu")
    pairs = zip(G.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs) and config["width"] == 2
    assert not loaded.training


# ---------------------------------------------------------------- Sec. 4.3: Table 1

def test_score_averages_images_and_spreads_over_patients():
    truth = torch.zeros(4, 1, 16, 16, dtype=torch.float64)
    # 20, 40, 40, 40 dB
    image = truth + torch.tensor([25.5, 2.55, 2.55, 2.55], dtype=torch.float64).view(4, 1, 1, 1)
    row = evaluate.score(image, truth, np.array(["a", "a", "b", "b"]))
    assert row["psnr"] == pytest.approx(35) and row["psnr_patients_mean"] == pytest.approx(35)
    assert row["psnr_patients_sd"] == pytest.approx(math.sqrt(50))  # patients at 30 and 40 dB
    assert row["ssim"] == pytest.approx(100 * evaluate.ssim(image, truth).mean().item())


def test_patients_count_alike_however_many_slices_they_have():
    truth = torch.zeros(4, 1, 16, 16, dtype=torch.float64)
    # 20, 40, 40, 40 dB
    image = truth + torch.tensor([25.5, 2.55, 2.55, 2.55], dtype=torch.float64).view(4, 1, 1, 1)
    row = evaluate.score(image, truth, np.array(["a", "b", "b", "b"]))
    assert row["psnr"] == pytest.approx(35) and row["psnr_patients_mean"] == pytest.approx(30)
    row = evaluate.score(image, truth, np.array(["a", "a", "a", "b"]))
    assert row["psnr_patients_mean"] == pytest.approx((100 / 3 + 40) / 2)


@pytest.fixture
def judged(tmp_path):
    """Three toy runs judged -> metrics, the pictures' columns, the figures' axes."""
    shown, plotted = {}, {}

    def grid(path, columns, maps=0, caption=""):
        shown[path.name] = columns, maps

    def figure(path, figure, caption=""):
        plotted[path.name] = figure.axes

    with replaced.multiple(evaluate, picture_grid=grid, save_figure=figure):
        metrics = evaluate.judge(toy_runs(), judged_slices(), tmp_path, "cpu")
    return metrics, shown, plotted


def test_every_run_is_judged_on_every_scenario_as_it_is(judged):
    metrics, slices = judged[0], judged_slices()
    truth = torch.from_numpy(slices.evaluation_target).float().unsqueeze(1)
    patients = np.array(["p"] * 4 + ["q"])
    for scenario in evaluate.SCENARIOS:
        x = evaluate.perturb_all(slices.evaluation_input, scenario)
        assert metrics["copy_input"][scenario] == pytest.approx(evaluate.score(x, truth, patients))
        for name, (G, config) in toy_runs().items():
            parts = evaluate.translate(G, x, "cpu")
            scored = metrics["runs"][name]["scenarios"][scenario]
            assert scored == pytest.approx(evaluate.score(parts[0], truth, patients))
            if scenario == "GN0":
                chosen = evaluate.random_images(5)
                expected = {"pcc_image": None, "pcc_pixel": None, "uncertainty": None}
                if config["method"] == "uapi":
                    expected, _ = evaluate.judge_map(*(v[chosen] for v in (*parts, truth)),
                                                     patients[chosen])
                expected["method"] = config["method"]
                assert metrics["runs"][name] == metrics["runs"][name] | expected


def test_the_best_ssim_and_the_best_psnr_are_bold_each_by_itself():
    rows = [["run", "GN0", "GN5"], ["a", "50.00/9.00", "10.00/8.00"],
            ["b", "9.00/10.00", "-2.00/8.00"], ["copy of the input", "99.00/99.00", "9.00/inf"]]
    assert evaluate.bold(rows) == [rows[0], ["a", "**50.00**/9.00", "**10.00**/**8.00**"],
                                   ["b", "9.00/**10.00**", "-2.00/**8.00**"], rows[3]]
    # a run alone is not the best of anything
    assert evaluate.bold([rows[0], *rows[2:]]) == [rows[0], *rows[2:]]
    rows[1] = ["a", "50.00/inf", "10.00/8.00"]
    assert evaluate.bold(rows)[1][1] == "**50.00**/**inf**"
    assert evaluate.bold(rows)[2][1] == "9.00/10.00"


def test_table_1_says_the_same_in_markdown_and_csv(judged, tmp_path):
    rows = evaluate.table(judged[0])
    markdown = evaluate.write_table(rows, tmp_path)
    cells = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in markdown.splitlines()]
    cells = [[cell.replace("**", "") for cell in row] for row in cells]
    assert cells[:1] + cells[2:] == rows == list(csv.reader(open(tmp_path / "table1.csv")))
    assert len(rows) == 5
    assert (tmp_path / "table1.md").read_text() == markdown


# ---------------------------------------------------------------- Sec. 4.4 and 4.5: figures

def test_figures_4_to_8_show_what_their_titles_say(judged):
    _, shown, _ = judged
    slices, places = judged_slices(), [0, 1, 2, 2, 3, 4]  # six of five
    x, truth = (torch.from_numpy(v).float().unsqueeze(1)[places]
                for v in (slices.evaluation_input, slices.evaluation_target))
    said = {name: evaluate.translate(G, x, "cpu") for name, (G, _) in toy_runs().items()}
    columns, maps = shown["fig4_samples.png"]
    assert list(columns) == ["input", "one", "two", "three", "truth"] and maps == 0
    values = x, *(translation for translation, *_ in said.values()), truth
    for column, expected in zip(columns.values(), values, strict=True):
        assert torch.allclose(column.float(), expected, atol=1e-3)
    assert sorted(name for name in shown if "fig6" in name) == ["fig6_8_one.png", "fig6_8_two.png"]
    columns, maps = shown["fig6_8_two.png"]
    assert list(columns) == ["input", "translation", "truth", "residual", "scale"] and maps == 2
    translation, scale, _ = said["two"]
    values = x, translation, truth, (translation - truth).abs(), scale
    for column, expected in zip(columns.values(), values, strict=True):
        assert torch.allclose(column, expected, atol=1e-3)


def test_figures_6_and_8_show_residual_and_scale_last_and_as_maps():
    x, translation, truth, scale = (grey_levels(6, 1, 8, 8, seed=seed) for seed in range(4))
    shown = []
    with replaced.object(evaluate, "picture_grid", lambda *words: shown.extend(words)):
        evaluate.plot_residuals("nowhere.png", x, translation, truth, scale)
    _, columns, maps, _ = shown
    assert list(columns) == ["input", "translation", "truth", "residual", "scale"] and maps == 2
    values = x, translation, truth, (translation - truth).abs(), scale
    for (title, column), expected in zip(columns.items(), values, strict=True):
        assert torch.equal(column, expected), f"{title}: the column shows other values"


def test_pi_and_runs_with_lam_0_are_judged_without_a_scale():
    runs = {"uapi": (toy(0.9), settings()), "pi": (toy(0.9), settings(method="pi")),
            "lam0": (toy(0.9), settings(lam=0.0))}
    none = dict(picture_grid=lambda *_, **__: None, save_figure=lambda *_: None)
    with replaced.multiple(evaluate, **none):
        metrics = evaluate.judge(runs, judged_slices(), Path("nowhere"), "cpu")
    judged = [name for name, row in metrics["runs"].items() if row["uncertainty"]]
    assert judged == ["uapi"], f"scales of {judged} are judged, only uapi's was trained"


def test_curves_and_points_are_those_of_metrics_json(judged):
    metrics, _, plotted = judged
    lines = {line.get_label(): list(line.get_ydata())
             for line in plotted["fig2_3_psnr.png"][0].lines}
    scores = {name: row["scenarios"] for name, row in metrics["runs"].items()}
    scores["copy of the input"] = metrics["copy_input"]
    assert lines == {name: [row[s]["psnr"] for s in evaluate.SCENARIOS]
                     for name, row in scores.items()}
    slices, chosen = judged_slices(), evaluate.random_images(5)
    x, truth = (torch.from_numpy(v).float().unsqueeze(1)
                for v in (slices.evaluation_input, slices.evaluation_target))
    translation, scale, _ = evaluate.translate(toy(-0.5), x, "cpu")
    ax = plotted["fig7_9_scatter.png"][1]
    means = [v.mean(dim=(1, 2, 3))[chosen] for v in ((translation - truth).abs(), scale)]
    # pi has no scale
    assert ax.get_title().startswith("two") and len(plotted["fig7_9_scatter.png"]) == 2
    assert all(np.allclose(*pair) for pair in zip(ax.lines[0].get_data(), means, strict=True))
    two = metrics["runs"]["two"]["uncertainty"]
    by_map, oracle = plotted["sparsification.png"][0].lines[2:]
    assert list(by_map.get_ydata()) == two["sparsification"]["map"]
    assert list(oracle.get_ydata()) == two["sparsification"]["oracle"]
    for ax, when in zip(plotted["reliability.png"], ("before", "after"), strict=True):
        assert [line.get_label().split(",")[0] for line in ax.lines] == ["one", "two", "ideal"]
        assert list(ax.lines[1].get_ydata()) == two["rescaled"][when]["observed"]
        assert list(ax.lines[1].get_xdata()) == two["rescaled"][when]["nominal"]


def test_every_figure_says_below_itself_how_to_read_it(tmp_path):
    captions = {}
    slices, keep = judged_slices(), evaluate.save_figure

    def figure(path, figure, caption=""):
        captions[path.name] = caption
        keep(path, figure, caption)
        drawn = figure.get_supxlabel().replace("\n", " ")
        assert drawn == caption, f"{path.name}: below it stands {drawn!r}, not {caption!r}"

    with replaced.object(evaluate, "save_figure", figure), \
            replaced.object(data, "save_figure", figure):
        evaluate.judge({"one": (toy(0.9), settings())}, slices, tmp_path, "cpu")
        evaluate.plot_translations(tmp_path / "fig5.png", torch.zeros(6, 1, 64, 64), {})
        data.plot_samples(tmp_path / "patches.png", toy(0.9), slices, "cpu", True)
    good = {"fig2_3_psnr.png": "A good curve", "fig4_samples.png": "A good translation",
            "fig5.png": "A good translation", "fig6_8_one.png": "A good scale",
            "fig7_9_scatter.png": "A good scale", "sparsification.png": "A good curve",
            "reliability.png": "A good curve", "patches.png": "should be alike"}
    assert captions.keys() == good.keys()
    for name, words in good.items():
        assert words in captions[name], f"{name}: does not say what is good: {captions[name]!r}"
    assert "oracle" in captions["sparsification.png"]


def test_a_run_keeps_its_colour_and_marker_in_every_figure():
    metrics = {"runs": {f"run{k}": {} for k in range(9)}}
    styles = [evaluate.line_style(metrics, name) for name in metrics["runs"]]
    for key in ("color", "marker"):
        assert len({style[key] for style in styles}) == 9, f"two runs share a {key}"





# ---------------------------------------------------------------- Sec. 4.5: scale and residual

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
    assert torch.allclose(evaluate.expected_residual(alpha, beta), expected, rtol=1e-5)


def test_pearson_equals_numpy():
    u, v = grey_levels(50, seed=7), grey_levels(50, seed=8)
    assert evaluate.pearson(u, 2 * u + v) == pytest.approx(np.corrcoef(u, 2 * u + v)[0, 1],
                                                           abs=1e-12)
    assert evaluate.pearson([1, 2, 3], [-2, -4, -6]) == pytest.approx(-1)
    assert evaluate.pearson([1, 1, 1], [1, 2, 3]) is None and evaluate.pearson([], []) is None
    # their mean is not .1 in floating point
    assert evaluate.pearson([.1, .1, .1], [1, 2, 3]) is None


def test_ranks_equal_a_naive_count_with_ties():
    values = [2.0, -1, 2, 5, 2, -1, 0, 7]
    naive = [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
    assert evaluate.ranks(values).tolist() == naive == [5, 1.5, 5, 7, 5, 1.5, 3, 8]


def test_spearman_sees_order_alone():
    u, v = numbers(60, 1), numbers(60, 2)
    v = u + v
    rho = evaluate.spearman(u, v)
    assert 0.3 < rho < 0.95
    assert evaluate.spearman(u, v.exp() ** 9) == pytest.approx(rho)
    assert evaluate.spearman(3 - 1 / u, v) == pytest.approx(rho)
    assert evaluate.spearman(u, -v) == pytest.approx(-rho)
    assert evaluate.spearman(u, u ** 5) == pytest.approx(1)
    assert evaluate.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert evaluate.spearman(u, 0 * v) is None


@pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="scipy is not installed")
def test_spearman_equals_scipy():
    from scipy.stats import spearmanr
    u, v = (6 * numbers(200, 3)).round(), (6 * numbers(200, 4)).round()
    for other in (v, u + v, u - v):
        assert evaluate.spearman(u, other) == pytest.approx(spearmanr(u, other).statistic,
                                                            abs=1e-12)


def test_correlation_is_taken_per_image_mean_and_per_pixel():
    truth = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    image = torch.tensor([[4., 0, 0, 0], [0, -8, 0, 0], [0, 0, 12, 0]],
                         dtype=torch.float64).view(3, 1, 2, 2)
    scale = torch.tensor([[.01, 1, 0, 0], [2, .02, 0, 0], [0, 0, .03, 3]],
                         dtype=torch.float64).view(3, 1, 2, 2)
    found = evaluate.correlate((image - truth).abs(), scale, truth == 0)
    # means agree, places do not, and in order most places do
    for name in ("pearson", "spearman"):
        agree(found[f"{name}_image"], 1, f"Sec. 4.5: {name} of mean scale and mean residual, one "
              "number an image")
    assert found["pearson_pixel"] < 0 < found["spearman_pixel"], "Sec. 4.5, pixel by pixel"


def test_correlation_inside_a_region_leaves_the_rest_out():
    residual, expected, inside = (numbers(64, seed).view(4, 1, 4, 4) for seed in (5, 6, 7))
    inside = inside > .4
    inside[2] = False  # an image without foreground
    rows = [zip(*(v[n].flatten().tolist() for v in (residual, expected, inside)))
            for n in (0, 1, 3)]
    pairs = [[(r, e) for r, e, counts in row if counts] for row in rows]
    means = [[sum(column) / len(column) for column in zip(*image)] for image in pairs]
    pixels = [pair for image in pairs for pair in image]
    assert evaluate.correlate(residual, expected, inside) == {
        "pearson_image": pytest.approx(np.corrcoef(*zip(*means))[0, 1]),
        "spearman_image": evaluate.spearman(*zip(*means)),
        "pearson_pixel": pytest.approx(np.corrcoef(*zip(*pixels))[0, 1]),
        "spearman_pixel": evaluate.spearman(*zip(*pixels))}
    assert set(evaluate.correlate(residual, expected, inside & False).values()) == {None}


def test_at_most_512_images_are_correlated():
    assert len(evaluate.random_images(600)) == 512
    assert sorted(evaluate.random_images(5)) == [0, 1, 2, 3, 4]


def test_the_512_are_drawn_at_random_and_the_same_every_time():
    one, again = (evaluate.random_images(600).tolist() for _ in range(2))
    assert one == again and len(set(one)) == 512 and max(one) > 550 and one != sorted(one)


def test_maps_of_every_kind_are_judged_as_expected_residuals():
    truth, image, alpha, noise = (size * numbers(300, seed).view(3, 1, 10, 10) + 1
                                  for seed, size in ((25, 60), (26, 60), (27, 9), (28, 9)))
    beta = .3 + 3 * numbers(300, 29).view(3, 1, 10, 10)
    patients = np.array(["a", "b", "c"])
    row, points = evaluate.judge_map(image, alpha, beta, truth, patients, noise)
    r, bright = (image - truth).abs(), truth > 25.5
    expected = evaluate.expected_residual(alpha, beta)
    assert points == [v.mean(dim=(1, 2, 3)).tolist() for v in (r, expected)]
    assert row["pcc_image"] == pytest.approx(evaluate.pearson(*points))
    assert row["pcc_pixel"] == pytest.approx(evaluate.pearson(r, expected))
    found = row["uncertainty"]
    assert found["correlation"] == {"whole": evaluate.correlate(r, expected, truth > 0),
                                    "foreground": evaluate.correlate(r, expected, bright)}
    assert found["sparsification"] == evaluate.sparsification(r, expected)
    assert found["reliability"] == evaluate.reliability(r, alpha, beta)
    assert found["rescaled"] == evaluate.rescaled(r, alpha, beta, patients)
    for name, inside in (("whole", truth > 0), ("foreground", bright)):
        pixels = noise[inside], expected[inside]
        assert found["noise"][name]["pearson_pixel"] == evaluate.pearson(*pixels)
        assert found["noise"][name]["spearman_pixel"] == evaluate.spearman(*pixels)
        ratio = (pixels[1] / pixels[0]).mean().item()
        assert found["noise"][name]["mean_ratio"] == pytest.approx(ratio)
    assert evaluate.judge_map(image, alpha, beta, truth,
                              patients)[0]["uncertainty"]["noise"] is None


# ---------------------------------------------------------------- beyond the paper: sparsification

def laplace_quantiles(n, alpha=1.0):
    """n absolute residuals that a Laplace density could not fit better."""
    return torch.tensor([-alpha * math.log1p(-(k + .5) / n) for k in range(n)], dtype=torch.float64)


def test_what_remains_equals_a_naive_loop_on_an_odd_number():
    residual, uncertainty = numbers(37, 8), numbers(37, 9)
    curve = []
    for k in range(20):
        pairs = sorted(zip(uncertainty.tolist(), residual.tolist()))[:37 - 37 * k // 20]
        curve.append(sum(r for _, r in pairs) / len(pairs))
    assert evaluate.remaining(residual, uncertainty).tolist() == pytest.approx(curve)
    # among equals nobody is picked by place
    for map_ in (ones(37), torch.cat([ones(18), ones(19, 2.0)])):
        first = torch.randperm(18, generator=torch.Generator().manual_seed(0)).tolist()
        shuffled = first + list(range(36, 17, -1))
        assert torch.allclose(evaluate.remaining(residual, map_),
                              evaluate.remaining(residual[shuffled], map_))
    assert torch.allclose(evaluate.remaining(residual, ones(37)), residual.mean())


def test_sparsification_error_of_the_oracle_of_no_map_and_of_the_worst():
    uniform = (torch.arange(2000, dtype=torch.float64) + .5) / 2000
    ause = lambda residual, map_: evaluate.sparsification(residual, map_)["ause"]
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
    found = evaluate.sparsification(4 * uniform, 1 - uniform)
    assert found["removed"][:2] == [0, .05] and len(found["map"]) == 20
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
        assert evaluate.probability(r, alpha, beta).item() == pytest.approx(integral, abs=1e-4)
    r, alpha = 9 * numbers(50, 11), 1 + numbers(50, 12)
    assert torch.allclose(evaluate.probability(r, alpha, ones(50)), 1 - torch.exp(-r / alpha))
    assert torch.allclose(evaluate.probability(r, alpha, ones(50, 2.)), torch.erf(r / alpha))
    assert evaluate.probability(torch.tensor([0., 1e4]), torch.ones(2),
                                torch.tensor([.3, 4.])).tolist() == [0, 1]


def test_honest_maps_are_reliable():
    alpha = 1 + 20 * numbers(40000, 13)
    assert evaluate.reliability(alpha * laplace_quantiles(40000), alpha, ones(40000))["ece"] < 1e-4
    beta = .4 + 3 * numbers(40000, 14)
    assert evaluate.reliability(generalized_gaussian(40000, alpha, beta), alpha, beta)["ece"] < .005
    # beta matters
    assert evaluate.reliability(generalized_gaussian(40000, alpha, beta), alpha,
                                ones(40000))["ece"] > .02


def test_coverage_of_a_map_that_is_half_or_double_the_truth_by_hand():
    r = laplace_quantiles(20000)
    for factor in (.5, 2.0):
        found = evaluate.reliability(r, ones(20000, factor), ones(20000))
        # P(|r| <= factor ln(1/(1-p)))
        expected = [1 - (1 - k / 20) ** factor for k in range(1, 20)]
        assert found["nominal"] == pytest.approx([k / 20 for k in range(1, 20)])
        assert found["observed"] == pytest.approx(expected, abs=1e-4)
        ece = sum(abs(e - k / 20) for k, e in enumerate(expected, 1)) / 19
        assert found["ece"] == pytest.approx(ece, abs=1e-4)
    # u = 0.451 everywhere: too few below, too many above
    found = evaluate.reliability(ones(7, .6), ones(7), ones(7))
    assert found["observed"] == [0] * 9 + [1] * 10
    assert found["ece"] == pytest.approx((2.25 + 2.75) / 19)


def test_log_loss_is_eq_9_for_laplace_and_ugacs_known_answers():
    r, alpha = 9 * numbers(36, 15), 1 + numbers(36, 16)
    eq_9 = losses.patch_laplace(r.view(1, 1, 6, 6), torch.zeros(1, 1, 6, 6, dtype=torch.float64),
                                alpha.view(1, 1, 6, 6))
    assert evaluate.reliability(r, alpha, ones(36))["log_loss"] == pytest.approx(eq_9.item())
    r = torch.tensor([.5, 1, 2, .1], dtype=torch.float64)
    for a, b, known in ((1, 1, .9), (2, 1, 1.143147), (1, 2, 1.194218), (.5, 1.5, 2.184005),
                        (1, .5, 1.552534)):
        log_loss = evaluate.reliability(r, ones(4, a), ones(4, b))["log_loss"]
        assert log_loss == pytest.approx(known + math.log(2), abs=1e-5)


# ---------------------------------------------------------------- beyond the paper: one factor

def test_best_factor_is_1_for_honest_maps_and_the_mean_ratio_for_laplace():
    r, alpha = 9 * numbers(80, 17), 1 + numbers(80, 18)
    assert evaluate.best_factor(r, alpha, ones(80)) == pytest.approx((r / alpha).mean().item(),
                                                                     rel=1e-9)
    assert evaluate.best_factor(laplace_quantiles(40000, 2.), ones(40000, 2.),
                                ones(40000)) == pytest.approx(1, abs=1e-4)
    alpha, beta = 1 + 20 * numbers(40000, 19), .4 + 3 * numbers(40000, 20)
    r = generalized_gaussian(40000, alpha, beta)
    c = evaluate.best_factor(r, alpha, beta)
    assert c == pytest.approx(1, abs=.02)
    assert evaluate.best_factor(r, 3 * alpha, beta) == pytest.approx(c / 3)


def test_no_other_factor_is_likelier():
    r, alpha, beta = 9 * numbers(80, 21), 1 + numbers(80, 22), .4 + 3 * numbers(80, 23)
    r[0] = 0  # a perfect pixel breaks nothing
    c = evaluate.best_factor(r, alpha, beta)
    loss = lambda factor: evaluate.reliability(r, factor * alpha, beta)["log_loss"]
    assert loss(c) < min(loss(.99 * c), loss(1.01 * c), loss(.5 * c), loss(2 * c), loss(1.0))


def test_the_factor_is_fitted_and_judged_on_different_patients():
    patients = np.array(["d", "b", "a", "c"] * 10 + ["a"])
    # a and c fit, b and d judge
    ratio = torch.tensor([1., 1, 3, 3] * 10 + [3.], dtype=torch.float64).view(41, 1, 1, 1)
    alpha = 1 + numbers(41 * 400, 24).view(41, 1, 20, 20)
    residual = ratio * alpha * laplace_quantiles(400).view(1, 1, 20, 20)
    found = evaluate.rescaled(residual, alpha, torch.ones(()).expand_as(alpha), patients)
    assert found["c"] == pytest.approx(3, rel=2e-3)
    assert found["before"]["ece"] < .002
    expected = [1 - (1 - k / 20) ** 3 for k in range(1, 20)]
    assert found["after"]["observed"] == pytest.approx(expected, abs=.01)
    assert found["before"]["log_loss"] < found["after"]["log_loss"]
    assert evaluate.rescaled(residual, alpha, torch.ones_like(alpha), np.array(["a"] * 41)) is None


# ---------------------------------------------------------------- --image

@pytest.fixture
def pictures(tmp_path):
    """A picture of its own, and a folder with three, one of them no picture."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, shape in ((tmp_path / "slice.png", (50, 90)), (folder / "b.png", (64, 64)),
                        (folder / "c.tif", (80, 30))):
        Image.fromarray(grey_levels(*shape, seed=shape[0]).byte().numpy()).save(path)
    (folder / "d.png").write_text("text")
    return [tmp_path / "slice.png", folder]


def test_files_and_folders_are_translated_in_one_call_each_in_its_own_size(
        monkeypatch, tmp_path, capsys, runs, pictures):
    out = tmp_path / "out"
    cli(monkeypatch, *runs, "--image", *pictures, "--out", out)
    names = {"slice": (90, 50), "b": (64, 64), "c": (30, 80)}
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == sorted(
        [f"{name}/translation/{picture}.png" for name in ("uapi", "pi") for picture in names]
        + [f"uapi/scale/{picture}.{end}" for picture in names for end in ("npy", "png")]
        + ["scale.json"])
    for picture, size in names.items():
        for which in ("pi/translation", "uapi/translation", "uapi/scale"):
            assert Image.open(out / which / f"{picture}.png").size == size
    said = capsys.readouterr()
    assert "d.png: cannot be read" in said.err and "skipped 1 of 4 pictures in all" in said.err


def test_the_scale_pictures_of_one_call_share_one_white_level_which_is_written_down(
        monkeypatch, tmp_path, capsys, runs, pictures):
    other = saved(tmp_path / "other", nets.UNet(width=1))
    cli(monkeypatch, runs[0], other, "--image", *pictures, "--out", tmp_path / "out")
    maps = {path: np.load(path) for path in (tmp_path / "out").rglob("*.npy")}
    white = json.loads((tmp_path / "out" / "scale.json").read_text())["white_level_in_grey_levels"]
    assert len(maps) == 6 and white == pytest.approx(max(scale.max() for scale in maps.values()))
    for path, scale in maps.items():
        shown = np.asarray(Image.open(path.with_suffix(".png")))
        off = np.abs(shown - 255 * scale / white).max()
        assert off <= 0.501, f"{path}: has a white level of its own, off by {off} grey levels"
    assert f"white is {white:.1f} grey levels" in capsys.readouterr().out


def test_a_scale_picture_is_as_dark_as_its_scale_is_small_beside_the_others_of_its_call():
    dark, bright = np.full((64, 64), 127, np.uint8), np.full((64, 64), 255, np.uint8)
    pictures, G = [("dark", dark), ("bright", bright)], lambda u: (u, 0.1 + 0.5 * (u + 1))
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        evaluate.write_translations(pictures, {"run": (G, settings())}, Path(out), "cpu")
        grey = [np.asarray(Image.open(f"{out}/run/scale/{name}.png")).mean()
                for name in ("dark", "bright")]
    wanted = [255 * (0.1 + 127 / 255) / 1.1, 255]
    assert grey == pytest.approx(wanted, abs=.5), f"one white level asks for {wanted}, not {grey}"


def test_two_pictures_of_one_name_are_refused_before_one_takes_the_others_place(
        monkeypatch, tmp_path, capsys, runs, pictures):
    Image.fromarray(tiny_slices().input[0]).save(tmp_path / "b.jpg")
    with pytest.raises(SystemExit) as stop:
        cli(monkeypatch, runs[0], "--image", *pictures, tmp_path / "b.jpg", "--out",
            tmp_path / "out")
    assert stop.value.code == 2 and "has the same name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # named twice
    cli(monkeypatch, runs[0], "--image", *pictures, pictures[1] / "b.png", "--out",
        tmp_path / "out")


def test_a_picture_of_the_runs_size_is_translated_as_it_is(tmp_path):
    picture = tiny_slices().evaluation_input[0]
    write_translations(tmp_path, toy(0.9), picture)
    translation, scale, _ = evaluate.translate(toy(0.9),
                                               torch.from_numpy(picture).float()[None, None], "cpu")
    shown = np.asarray(Image.open(tmp_path / "same" / "translation" / "a.png"))
    assert np.abs(shown - translation.squeeze().numpy()).max() <= 0.5001
    assert np.allclose(np.load(tmp_path / "same" / "scale" / "a.npy"), scale.squeeze())


def write_translations(out, G, picture, **changes):
    evaluate.write_translations([("a", picture)], {"same": (G, settings(**changes))}, out, "cpu")


def test_one_picture_comes_back_in_its_own_place_and_scale(tmp_path):
    picture = tiny_slices().input[0][10:42]  # 32x64: padded above and below, never resized
    write_translations(tmp_path, toy(1.0), picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "same" / "translation" / "a.png")),
                          picture)
    u = picture / 127.5 - 1
    scale = 127.5 * (0.2 + 0.1 * u ** 2 + 0.05 * u)
    assert np.allclose(np.load(tmp_path / "same" / "scale" / "a.npy"), scale, atol=1e-3)
    shown = np.asarray(Image.open(tmp_path / "same" / "scale" / "a.png"))
    assert np.abs(shown - 255 * scale / scale.max()).max() <= 0.501


def test_growing_back_never_wraps_from_white_to_black(tmp_path):
    edge = np.zeros((128, 128), np.uint8)
    edge[:, 64:] = 255
    write_translations(tmp_path, toy(1.0), edge)
    out = np.asarray(Image.open(tmp_path / "same" / "translation" / "a.png")).astype(int)
    assert (np.diff(out, axis=1) >= 0).all()


def test_the_scale_of_a_picture_by_ugac_is_an_expected_residual(tmp_path):
    picture = tiny_slices().input[0]
    write_translations(tmp_path, toy_with_beta, picture, method="ugac")
    _, *maps = evaluate.translate(toy_with_beta, torch.from_numpy(picture).float()[None, None],
                                  "cpu")
    expected = evaluate.expected_residual(*maps).squeeze()
    assert np.allclose(np.load(tmp_path / "same" / "scale" / "a.npy"), expected, rtol=1e-4)


# ---------------------------------------------------------------- the program

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """UAPI and PI, untrained."""
    root = tmp_path_factory.mktemp("runs")
    return [saved(root / method, nets.UNet(width=1), method=method) for method in ("uapi", "pi")]


def cli(monkeypatch, *words):
    slices = tiny_slices()
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, words)])
    with replaced.object(data, "phantoms", lambda size: slices):
        evaluate.main()


def evaluate_toys(monkeypatch, out, slices, **methods):
    """The whole command on toys: name = method."""
    def load_run(name, _):
        G = toy_with_beta if methods[name] == "ugac" else toy(0.9)
        return G, settings(method=methods[name])
    monkeypatch.setattr("sys.argv",
                        ["evaluate.py", *methods, "--data", "phantom", "--out", str(out)])
    def touch(path, *_, **__):
        path.touch()
    no_pictures = dict(save_figure=touch, picture_grid=touch)
    with replaced.multiple(evaluate, load=lambda *_: slices, load_run=load_run, **no_pictures), \
            replaced.multiple(data, **no_pictures):
        evaluate.main()
    return json.loads((out / "metrics.json").read_text(),
                      parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_two_runs_give_table_1_metrics_and_every_figure(monkeypatch, tmp_path, runs):
    cli(monkeypatch, *runs, "--data", "phantom", "--out", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "fig2_3_psnr.png", "fig4_samples.png", "fig6_8_uapi.png", "fig7_9_scatter.png",
        "metrics.json", "patches_pi.png", "patches_uapi.png", "reliability.png",
        "sparsification.png", "table1.csv", "table1.md"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["runs"]) == ["uapi", "pi"] and metrics["runs"]["pi"]["pcc_image"] is None
    slices = tiny_slices()
    x, truth = (torch.from_numpy(v).double().unsqueeze(1)
                for v in (slices.evaluation_input, slices.evaluation_target))
    G, _ = evaluate.load_run(runs[0], "cpu")
    with torch.no_grad():
        translation = 127.5 * (1 + G(x.float() / 127.5 - 1)[0]).double()
    expected = evaluate.psnr(translation, truth).mean().item()
    assert metrics["runs"]["uapi"]["scenarios"]["GN0"]["psnr"] == pytest.approx(expected, abs=1e-4)
    expected = 100 * evaluate.ssim(x, truth).mean().item()
    assert metrics["copy_input"]["GN0"]["ssim"] == pytest.approx(expected, abs=1e-3)
    rows = list(csv.reader(open(tmp_path / "table1.csv")))
    assert rows[0] == ["run", *evaluate.SCENARIOS]
    assert [row[0] for row in rows[1:]] == ["uapi", "pi", "copy of the input"]
    cell = metrics["runs"]["pi"]["scenarios"]["IP10"]
    assert rows[2][7] == f"{cell['ssim']:.2f}/{cell['psnr']:.2f}"


def test_pictures_are_shared_among_processes_as_pairs_are(monkeypatch, tmp_path, runs):
    """Else every process of torchrun would write every file at the same time."""
    seen, picture = [], tmp_path / "a.png"
    Image.fromarray(tiny_slices().input[0]).save(picture)
    monkeypatch.setattr(evaluate.run, "join_processes", lambda device: seen.append("joined"))
    monkeypatch.setattr(evaluate.run, "leave_processes", lambda: seen.append("left"))
    for words in (("--image", picture), ("--data", "phantom")):
        cli(monkeypatch, runs[0], *words, "--out", tmp_path / "out")
    assert seen == ["joined", "left"] * 2


def test_without_lam_the_scale_head_is_neither_drawn_nor_judged(monkeypatch, tmp_path):
    run_folder, titles = saved(tmp_path / "lam0", nets.UNet(width=1), lam=0.0), {}

    def grid(path, columns, *_):
        titles[path.name] = columns.keys()
    out, picture = tmp_path / "out", tmp_path / "a.png"
    Image.fromarray(tiny_slices().input[0]).save(picture)
    with replaced.object(data, "picture_grid", grid):
        cli(monkeypatch, run_folder, "--data", "phantom", "--out", out)
        cli(monkeypatch, run_folder, "--image", picture, "--out", out)
    judged = json.loads((out / "metrics.json").read_text())["runs"]["lam0"]
    assert judged["uncertainty"] is judged["pcc_image"] is judged["pcc_pixel"] is None
    assert not any("scale" in title for title in titles["patches_lam0.png"])
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == [
        "a.png", "fig2_3_psnr.png", "fig4_samples.png", "metrics.json", "table1.csv", "table1.md"]


def test_every_method_is_judged_and_those_with_a_map_are_asked_what_they_know(monkeypatch, tmp_path,
                                                                              capsys):
    methods = ("pi", "uapi", "cyclegan", "ugac", "gcgan", "uagc", "cut", "released")
    slices = judged_slices()
    noise = np.random.default_rng(0).uniform(1, 9, slices.evaluation_target.shape)
    slices = slices._replace(noise=noise.astype(np.float32))
    metrics = evaluate_toys(monkeypatch, tmp_path, slices, **{method: method for method in methods})
    scaled = [name for name, run in metrics["runs"].items() if run["uncertainty"]]
    assert list(metrics["runs"]) == list(methods) and scaled == ["uapi", "ugac", "uagc", "released"]
    assert sorted(p.name for p in tmp_path.glob("fig6_8_*")) == sorted(f"fig6_8_{name}.png"
                                                                       for name in scaled)
    x, truth = (torch.from_numpy(v).float().unsqueeze(1)
                for v in (slices.evaluation_input, slices.evaluation_target))
    chosen = evaluate.random_images(5)
    parts = [v[chosen] for v in (*evaluate.translate(toy_with_beta, x, "cpu"), truth)]
    expected, _ = evaluate.judge_map(*parts, np.array(["p"] * 4 + ["q"])[chosen],
                                     torch.from_numpy(slices.noise).unsqueeze(1)[chosen])
    assert {key: metrics["runs"]["ugac"][key] for key in expected} == expected
    printed = capsys.readouterr().out
    assert all(f"\n{name}: Pearson" in printed for name in scaled)
    assert printed.count(": Pearson") == 4


def test_runs_without_a_map_leave_no_figure_of_one(monkeypatch, tmp_path):
    evaluate_toys(monkeypatch, tmp_path, judged_slices(), one="cut", two="pi")
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "fig2_3_psnr.png", "fig4_samples.png", "patches_one.png", "patches_two.png"]


def test_both_correlations_are_printed(monkeypatch, tmp_path, capsys):
    judged = evaluate_toys(monkeypatch, tmp_path, judged_slices(), run="uapi")["runs"]["run"]
    whole, line = judged["uncertainty"]["correlation"]["whole"], capsys.readouterr().out
    assert whole["pearson_image"] == judged["pcc_image"]
    assert whole["pearson_pixel"] == judged["pcc_pixel"]
    numbers = [f"{whole[f'{kind}_{of}']:.2f}" for of in ("image", "pixel")
               for kind in ("pearson", "spearman")]
    assert "{}/{} per image, {}/{} per pixel".format(*numbers) in line and len(set(numbers)) == 4
    halves = judged["uncertainty"]["rescaled"]
    before, after = halves["before"]["ece"], halves["after"]["ece"]
    assert f"ECE {before:.3f} -> {after:.3f} with c = {halves['c']:.3g}" in line
    assert f"AUSE {judged['uncertainty']['sparsification']['ause']:.3f}" in line


def test_a_perfect_copy_and_a_single_patient_leave_valid_json(monkeypatch, tmp_path, capsys):
    slices = judged_slices()
    names = {"evaluation_input": ["p_0"] * 5, "evaluation_target": ["p_0"] * 5}
    metrics = evaluate_toys(monkeypatch, tmp_path,
                            slices._replace(evaluation_target=slices.evaluation_input, names=names),
                            run="uapi")
    assert metrics["copy_input"]["GN0"]["psnr"] is None
    assert metrics["copy_input"]["GN0"]["ssim"] == pytest.approx(100)
    assert metrics["runs"]["run"]["uncertainty"]["rescaled"] is None
    assert "/inf" in (tmp_path / "table1.csv").read_text()
    assert "no c from one patient alone" in capsys.readouterr().out


def test_unpaired_data_are_all_translated_and_not_scored(monkeypatch, tmp_path, runs):
    """Seven slices: Figure 5 shows six of them, each beside its own input; every one is a file."""
    slices, shown = tiny_slices(), {}
    names = {**slices.names, "evaluation_input": [f"p_{k}" for k in range(6)] + ["q.v_0"],
             "evaluation_target": []}
    x = np.concatenate([slices.input, slices.evaluation_input])[:7]
    nothing = np.zeros((0, 64, 64), np.uint8)
    data.write_h5(tmp_path / "unpaired.h5", slices._replace(
        evaluation_input=x, evaluation_target=nothing, names=names))

    def grid(path, columns, *_, **__):
        shown[path.name] = columns
    with replaced.multiple(evaluate, picture_grid=grid, plot_samples=lambda *_: None):
        cli(monkeypatch, *runs, "--data", tmp_path / "unpaired.h5", "--out", tmp_path / "out")
    out = tmp_path / "out"
    assert not (out / "metrics.json").exists() and list(shown) == ["fig5_translations.png"]
    pngs = sorted(f"{name}.png" for name in names["evaluation_input"])
    for which in ("uapi/translation", "pi/translation"):
        assert sorted(p.name
                      for p in (out / which).iterdir()) == pngs, "not every slice is translated"
    assert sorted(p.name for p in (out / "uapi/scale").glob("*.png")) == pngs
    assert not (out / "pi/scale").exists()
    columns = shown["fig5_translations.png"]
    assert list(columns) == ["input", "uapi", "pi"] and len(columns["input"]) == 6
    G = {name: evaluate.load_run(folder, "cpu")[0] for name, folder in zip(("uapi", "pi"), runs)}
    for k, cells in zip([0, 1, 2, 4, 5, 6], zip(*columns.values())):
        picture = torch.from_numpy(x[k]).float()[None, None]
        assert torch.equal(cells[0], picture[0])
        for name, cell in zip(("uapi", "pi"), cells[1:]):
            translation = evaluate.translate(G[name], picture, "cpu")[0][0]
            assert torch.allclose(cell, translation, atol=0.1)  # other batches round otherwise
            path = out / name / "translation" / f"{names['evaluation_input'][k]}.png"
            stored = np.asarray(Image.open(path))
            assert np.abs(stored - translation[0].numpy()).max() <= 0.6


@pytest.mark.parametrize("names", (["a", "a"], ["../a", "b"], ["a", "b\0"]))
def test_names_in_an_h5_that_cannot_name_files_are_refused(tmp_path, capsys, names):
    slices = judged_slices()
    slices = slices._replace(evaluation_input=slices.evaluation_input[:2],
                             names={"evaluation_input": names})
    with pytest.raises(SystemExit) as stop:
        evaluate.translate_unpaired({"same": (toy(1.0), settings())}, slices, tmp_path / "out",
                                    "cpu")
    assert stop.value.code == 2 and "cannot name files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_use_ends_in_one_sentence_and_code_2(monkeypatch, tmp_path, capsys, runs):
    (tmp_path / "text.png").write_text("not a picture")
    for words, sentence in (([runs[0]], "give either --data"),
                            ([tmp_path, "--data", "phantom"], "no such checkpoint"),
                            ([runs[0], "--data", tmp_path / "none"], "no such folder"),
                            ([runs[0], "--data", tmp_path],
                             "no readable image for evaluation_input"),
                            ([runs[0], runs[0], "--data", "phantom"], "same folder name"),
                            ([runs[0], "--image", tmp_path / "text.png", "--out", tmp_path / "out"],
                             "cannot be read as an image")):
        with pytest.raises(SystemExit) as stop:
            cli(monkeypatch, *words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and sentence in error and error.startswith("error: ")
        assert error.count("\n") == 1


def test_runs_of_two_sizes_are_not_compared(monkeypatch, tmp_path, capsys):
    folders = [saved(tmp_path / f"run{size}", nets.UNet(width=1), size=size) for size in (64, 96)]
    with pytest.raises(SystemExit) as stop:
        cli(monkeypatch, *folders, "--data", "phantom", "--out", tmp_path / "out")
    assert stop.value.code == 2 and "different sizes, [64, 96]" in capsys.readouterr().err


@pytest.mark.parametrize("program", ("evaluate", "data"))
def test_help_fits_80_columns_has_an_example_and_keeps_the_schema_for_the_end(program):
    module = {"evaluate": evaluate, "data": data}[program]
    with replaced.object(sys, "argv", [f"{program}.py", "--help"]), replaced.dict("os.environ",
                                                                                  COLUMNS="80"):
        with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(io.StringIO()) as text:
            module.main()
    lines = text.getvalue().splitlines()
    assert stop.value.code == 0 and max(map(len, lines)) <= 80, max(lines, key=len)
    assert any(line.startswith(f"    python {program}.py ") for line in lines), "no example"
    if program == "evaluate":
        assert text.getvalue().index("--device") < text.getvalue().index("metrics.json, null")