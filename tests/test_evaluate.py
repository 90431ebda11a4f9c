"""Sec. 4.2-4.5: metrics against naive loops and known answers, honest noise, the whole command."""
import contextlib
import functools
import importlib
import inspect
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch as replaced

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image

import data
import evaluate
import nets
import train
import uncertainty
from oracles import agree
from toys import (TINY, files_in, go, grey_levels, refused, saved, tiny_slices, toy,
                  toy_with_beta)


def naive_windows(a, b, data_range):
    """One image pair, h x w nested lists: Wang et al. window by window -> (SSIM, b's mean) each."""
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
            below = (mu_a ** 2 + mu_b ** 2 + C1) * (var_a + var_b + C2)
            values.append((above / below, mu_b))
    return values


def naive_ssim(a, b, data_range):
    values = [value for value, _ in naive_windows(a, b, data_range)]
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


# ---------------------------------------------------------------- SSIM in the head

def head_and_air(columns, head=150.0):
    """A truth [1,1,13,30] that is air, about one grey level, but for its last so many columns."""
    truth = 2 * torch.rand(1, 1, 13, 30, generator=torch.Generator().manual_seed(columns),
                           dtype=torch.float64)
    truth[..., 30 - columns:] = head + 50 * truth[..., 30 - columns:] / 2
    return truth


def test_ssim_in_the_head_equals_a_naive_loop_over_the_windows_of_all_images():
    """Three images with heads of three sizes: a mean of their means is another number."""
    truth = torch.cat([head_and_air(columns) for columns in (3, 9, 20)])
    translation = 0.5 * truth + 0.5 * grey_levels(*truth.shape, seed=1)
    inside, means = [], []
    for a, b in zip(translation[:, 0].tolist(), truth[:, 0].tolist()):
        own = [value for value, mu_b in naive_windows(a, b, 255.0) if mu_b >= 6]
        assert 0 < len(own) < 3 * 20, "a window of air and one of the head in each image"
        inside += own
        means.append(sum(own) / len(own))
    expected = sum(inside) / len(inside)
    assert abs(expected - sum(means) / 3) > 0.01
    for size in (32, 2, 1):
        with replaced.object(evaluate, "BATCH", size):
            agree(evaluate.ssim_head(translation, truth), expected, "ssim_head: the mean of SSIM "
                  "over the windows of all images where the truth's Gaussian mean is >= 6")
    row = evaluate.score(translation, truth, np.array(["a", "b", "b"]))
    agree(row["ssim_head"], 100 * expected, "metrics.json: ssim_head times 100")


def test_ssim_in_the_head_asks_the_truth_where_the_head_is():
    truth, bright = head_and_air(9), torch.full((1, 1, 13, 30), 200.0, dtype=torch.float64)
    windows = naive_windows(bright[0, 0].tolist(), truth[0, 0].tolist(), 255.0)
    expected = [value for value, mu_b in windows if mu_b >= 6]
    agree(evaluate.ssim_head(bright, truth), sum(expected) / len(expected),
          "ssim_head: a translation that is bright in the truth's air")


def test_air_changes_ssim_and_not_ssim_in_the_head():
    truth = head_and_air(9)
    translation = 0.8 * truth + 10
    noisy = translation.clone()
    noisy[..., :9] = 100 * torch.rand(13, 9, generator=torch.Generator().manual_seed(5))
    one, other = (evaluate.ssim(image, truth).item() for image in (translation, noisy))
    assert abs(one - other) > 0.01, f"Sec. 4.2: SSIM {one} with other air is still {other}"
    one, other = (evaluate.ssim_head(image, truth) for image in (translation, noisy))
    agree(other, one, "ssim_head: air, which no window of the head meets, changes nothing")


def test_a_window_is_head_from_six_grey_levels_on_and_without_any_there_is_no_number():
    for grey, there in ((0, False), (5.9, False), (6.1, True), (200, True)):
        truth = torch.full((2, 1, 12, 12), float(grey), dtype=torch.float64)
        found = evaluate.ssim_head(grey_levels(2, 1, 12, 12, seed=2), truth)
        assert (found is not None) == there, (
            f"ssim_head: a truth of {grey} grey levels gives {found}; head begins at 6")
        row = evaluate.score(grey_levels(2, 1, 12, 12, seed=2), truth, np.array(["a", "b"]))
        assert (row["ssim_head"] is not None) == there, f"score: {row['ssim_head']} for {grey}"


# ---------------------------------------------------------------- displacement

def blobs(down=0.0, right=0.0, n=3):
    """n smooth images [n,1,48,48] written down as Gaussians around places that have moved."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:48, :48]
    images = np.zeros((n, 48, 48))
    for image in images:
        for _ in range(6):
            (y, x), sigma, height = rng.uniform(14, 34, 2), rng.uniform(2, 3.5), rng.uniform(30, 60)
            image += height * np.exp(-((v - y - down) ** 2 + (u - x - right) ** 2)
                                     / (2 * sigma ** 2))
    assert images.max() <= 255
    return torch.from_numpy(images).float().unsqueeze(1)


def test_what_lies_off_its_place_is_found_with_its_sign_whatever_the_contrast():
    """Against images that were not shifted but drawn at other places."""
    truth = blobs()
    for down, right in ((0.4, -0.7), (-0.7, 0.4), (1.6, 2.3)):
        for contrast in (lambda y: y, lambda y: 0.6 * y + 20, lambda y: 200 - 0.6 * y):
            translation = contrast(blobs(down, right))
            found, moved_back = evaluate.displacement(translation, truth)
            agree(found, (down, right), "displacement: pixels too low, too far right, of an image "
                  "drawn there", 1e-3)
            place = evaluate.score_in_place(translation, truth)
            assert (place["down"], place["right"]) == tuple(found)
            before = 100 * evaluate.ssim(translation, truth).mean().item()
            agree(moved_back, contrast(truth), "displacement: the translation, moved back", 0.05)
            after = 100 * evaluate.ssim(moved_back, truth).mean().item()
            agree(place["ssim"], after, "displacement: SSIM x 100 with it undone", 1e-3)
            if contrast(1.0) > contrast(0.0):
                assert after > before + 0.5, (
                    f"displacement {down, right}: SSIM {before} -> {after} with it undone")


def test_no_displacement_is_found_where_nothing_moved():
    truth = blobs()
    for what, translation in (("equal", truth), ("less contrast", 0.6 * truth + 20),
                              ("opposite contrast", 255 - truth)):
        found, _ = evaluate.displacement(translation, truth)
        assert max(map(abs, found)) < 1e-3, f"displacement: nothing moved ({what}), found {found}"


def test_a_displacement_of_whole_pixels_is_found_as_such():
    truth = blobs()
    for down, right in ((1, 0), (0, -1), (2, -3)):
        rolled = torch.from_numpy(np.roll(truth.numpy(), (down, right), axis=(2, 3)))
        found, moved_back = evaluate.displacement(0.6 * rolled + 20, truth)
        agree(found, (down, right), "displacement: of np.roll", 1e-3)
        assert moved_back.shape == truth.shape and moved_back.dtype == torch.float32


def test_the_displacement_is_one_of_all_images_whatever_the_batch():
    truth = torch.cat([blobs(), blobs(0.2, 0.3)])
    translation = 0.6 * torch.cat([blobs(0.4, -0.7), blobs(0.6, -0.4)]) + 20
    expected, moved_back = evaluate.displacement(translation, truth)
    with replaced.object(evaluate, "BATCH", 4):
        found, moved_alike = evaluate.displacement(translation, truth)
    agree(found, expected, "displacement: in batches of 4 and at once", 1e-6)
    agree(moved_alike, moved_back, "displacement: moved back in batches of 4 and at once", 1e-3)


def test_a_constant_translation_has_no_displacement():
    """It lies nowhere, so that nothing can be undone."""
    truth = blobs()
    for grey in (0.0, 100.0, 37.3, 255.0):
        translation = torch.full_like(truth, grey)
        found = evaluate.displacement(translation, truth)[0]
        assert found is None, f"displacement: of a constant {grey}, found {found}, asked for None"
        assert evaluate.score_in_place(translation, truth) is None


def test_every_batch_counts_for_the_displacement():
    n = evaluate.BATCH
    translation = torch.cat([blobs(0.5, -1, n=n), blobs(n=n)])  # half of them lie off their place
    (down, right), _ = evaluate.displacement(translation, torch.cat([blobs(n=n)] * 2))
    assert 0.1 < down < 0.4 and -0.8 < right < -0.2, \
        f"displacement, half of the images (0.5, -1) off: found ({down:.2f}, {right:.2f})"
    swapped = evaluate.displacement(translation.roll(n, 0), torch.cat([blobs(n=n)] * 2))[0]
    assert np.allclose(swapped, (down, right), atol=1e-6), f"in another order: {swapped}"


def test_what_would_lie_beyond_the_image_has_no_displacement():
    """Where the truth follows the translation's slope and not its greys, c is 0 and g/c nothing."""
    translation = blobs()
    slope = torch.gradient(translation.double(), dim=2)[0]
    found, _ = evaluate.displacement(translation, 100 + slope)
    assert found is None, f"displacement g/c with c near 0: found {found}, asked for None"


def test_moved_by_whole_pixels_is_a_roll():
    images = grey_levels(2, 1, 12, 15, seed=3)
    for down, right in ((1, 0), (0, 1), (3, -2), (-4, 5)):
        found = evaluate.moved(images, down, right)
        agree(found, np.roll(images, (down, right), axis=(2, 3)),
              f"moved by {down, right}: down and right are positive", 1e-9)


def test_what_was_moved_by_a_fraction_stays_grey_and_can_be_moved_back():
    truth = blobs()
    found = evaluate.moved(truth, 0.4, -0.7)
    agree(found, blobs(0.4, -0.7), "moved by (0.4, -0.7): as drawn there", 0.05)
    agree(evaluate.moved(found, -0.4, 0.7), truth, "moved there and back", 0.1)
    edges = 255 * (grey_levels(2, 1, 16, 16, seed=4) > 127.5).double()
    found = evaluate.moved(edges, 0.4, -0.7)  # ripples beyond both ends
    assert found.shape == edges.shape and found.min() == 0 and found.max() == 255, (
        f"moved: {found.min()} to {found.max()}, grey levels end at 0 and 255")


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


# ---------------------------------------------------------------- runs to evaluate

def toy_runs():
    """name -> (G, settings): scales by Eq. 9, none, an untrained one, and one of alpha and beta."""
    return {"one": (toy(0.9), TINY), "two": (toy(-0.5), TINY),
            "three": (toy(0.2), TINY | {"method": "pi"}), "lam0": (toy(0.7), TINY | {"lam": 0.0}),
            "ugac": (toy_with_beta, TINY | {"method": "ugac"})}


WITH_SCALE = ["one", "two", "ugac"]


def pairs(n=12):
    """Twelve pairs of three patients with eight, three and one, or the first n of these."""
    s = tiny_slices()
    x, y = (np.concatenate([images, images[:, ::-1]])[:n] for images in (s.input, s.target))
    names = [*(f"p_{k}" for k in range(8)), "q_0", "q_1", "q_2", "r_0"][:n]
    return data.Slices(s.input[:0], s.target[:0], x, y,
                       {"evaluation_input": names, "evaluation_target": names})


PATIENTS = np.array(["p"] * 8 + ["q"] * 3 + ["r"])


def tensors(slices):
    """Inputs and truths as evaluate_runs() sees them on GN0."""
    return [torch.from_numpy(images).float().unsqueeze(1)
            for images in (slices.evaluation_input, slices.evaluation_target)]


@functools.cache
def evaluated():
    """The toy runs evaluated -> metrics, the pictures' columns, the figures."""
    shown, plotted = {}, {}

    def grid(path, columns, maps=0, caption="", square=None, labels=()):
        shown[path.name] = list(columns), maps, list(labels)

    def figure(path, figure, caption=""):
        plotted[path.name] = figure

    with replaced.multiple(evaluate, picture_grid=grid, save_figure=figure):
        metrics = evaluate.evaluate_runs(toy_runs(), pairs(), Path("nowhere"), "cpu")
    return metrics, shown, plotted


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


def test_scores_are_taken_on_the_cpu():
    """CUDA rounds to TF32: SSIM would depend on the machine. A device by an impossible name shows
    whether anything but translate() asks for it."""
    assert list(inspect.signature(evaluate.score).parameters) == ["translation", "truth",
                                                                  "patients"]
    known, keep, asked = evaluated()[0], evaluate.translate, []

    def translate(G, x, device):
        asked.append(device)
        return keep(G, x, "cpu")
    nothing = dict(picture_grid=lambda *_, **__: None, save_figure=lambda *_: None)
    with replaced.multiple(evaluate, translate=translate, **nothing):
        metrics = evaluate.evaluate_runs(toy_runs(), pairs(), Path("nowhere"), "no device")
    assert set(asked) == {"no device"} and metrics == known


def test_every_run_is_scored_on_every_scenario_as_it_is():
    metrics, slices = evaluated()[0], pairs()
    _, truth = tensors(slices)
    assert list(metrics["runs"]) == list(toy_runs())
    for scenario in evaluate.SCENARIOS:
        x = evaluate.perturb_all(slices.evaluation_input, scenario)
        assert metrics["copy_input"][scenario] == pytest.approx(evaluate.score(x, truth, PATIENTS))
        for name, (G, config) in toy_runs().items():
            parts = evaluate.translate(G, x, "cpu")
            scored = metrics["runs"][name]["scenarios"][scenario]
            assert scored == pytest.approx(evaluate.score(parts[0], truth, PATIENTS))
            if scenario == "GN0":
                chosen = evaluate.choose_512(12)
                expected = {"pcc_image": None, "pcc_pixel": None, "uncertainty": None}
                if name in WITH_SCALE:
                    expected, _ = evaluate.score_map(*(v[chosen] for v in (*parts, truth)))
                expected["method"] = config["method"]
                expected["displacement"] = evaluate.score_in_place(parts[0], truth)
                assert metrics["runs"][name] == metrics["runs"][name] | expected


def rows_of(markdown):
    """A table's cells, without the line below its header."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    assert rows[1] == ["---"] * len(rows[0])
    return rows[:1] + rows[2:]


def test_table_1_has_a_row_of_ssim_and_psnr_for_each_run_and_for_the_copy():
    metrics = evaluated()[0]
    markdown = evaluate.table(metrics)
    assert "**" not in markdown
    header, *rows = rows_of(markdown)
    assert header == ["run", *evaluate.SCENARIOS]
    scores = {name: row["scenarios"] for name, row in metrics["runs"].items()}
    scores["copy of the input"] = metrics["copy_input"]
    assert rows == [[name, *(f"{row[s]['ssim']:.2f}/{row[s]['psnr']:.2f}"
                             for s in evaluate.SCENARIOS)] for name, row in scores.items()]


# ---------------------------------------------------------------- Sec. 4.4 and 4.5: figures

def check_columns(columns, titles, values):
    assert [title.split("\n")[0] for title, _ in columns] == titles
    for (title, column), expected in zip(columns, values, strict=True):
        agree(column, expected, f"the column {title!r}", 1e-3)


def test_figure_4_shows_six_slices_evenly_spread_their_translations_and_truths():
    assert evaluate.six_indices(12).tolist() == [0, 2, 4, 7, 9, 11]
    assert evaluate.six_indices(5).tolist() == [0, 1, 2, 2, 3, 4]  # six of five
    columns, maps, _ = evaluated()[1]["fig4_samples.png"]
    x, truth = (v[[0, 2, 4, 7, 9, 11]] for v in tensors(pairs()))
    said = {name: evaluate.translate(G, x, "cpu")[0] for name, (G, _) in toy_runs().items()}
    check_columns(columns, ["input", *toy_runs(), "truth"], (x[:, 0], *said.values(), truth))
    assert maps == 0


def test_the_middle_slice_of_each_of_the_first_four_patients_is_shown():
    for patients, expected in ((["c"] * 3 + ["a"] * 4 + ["b"] + ["c2"] * 2 + ["d"] * 5,
                                [1, 5, 7, 9]),
                               (["a", "b", "a", "b", "a"], [2, 3]), (["z"], [0]),
                               (list("edcba"), [0, 1, 2, 3]), (["b"] * 2 + ["a"] * 5, [1, 4])):
        found = list(map(int, evaluate.middle_slices(np.array(patients))))
        assert found == expected, f"Fig. 6: of {patients} found {found}, asked for {expected}"


MIDDLE = [4, 9, 11]  # of p, q and r


def test_figures_6_and_8_are_drawn_for_every_run_with_a_scale_where_one_is_trained():
    shown, (x, truth) = evaluated()[1], [v[MIDDLE] for v in tensors(pairs())]
    assert sorted(name for name in shown if "fig6" in name) == sorted(
        f"fig6_8_{name}.png" for name in toy_runs()), "Sec. 4.5: one figure a run, PI's, too"
    for name, (G, _) in toy_runs().items():
        columns, maps, labels = shown[f"fig6_8_{name}.png"]
        translation, alpha, beta = evaluate.translate(G, x, "cpu")
        titles = ["input", "translation", "truth", "residual"]
        values = [x, translation, truth, (translation - truth).abs()]
        if name in WITH_SCALE:
            titles.append("scale")
            values.append(uncertainty.expected_residual(alpha, beta))
        check_columns(columns, titles, values)
        assert maps == len(titles) - 3, f"{name}: {maps} columns as maps, {titles[3:]} are maps"
        scores = zip("pqr", 100 * evaluate.ssim(translation, truth),
                     evaluate.psnr(translation, truth))
        assert labels == [f"{who}\nSSIM {ssim:.1f}\nPSNR {psnr:.1f} dB"
                          for who, ssim, psnr in scores], f"{name}: rows are labelled {labels}"


def test_the_scale_of_ugac_is_drawn_as_the_residual_that_it_expects():
    """alpha itself would look alike, but is E|r| for beta = 1 only."""
    x = tensors(pairs())[0][MIDDLE]
    _, alpha, beta = evaluate.translate(toy_with_beta, x, "cpu")
    assert (beta - 1).abs().mean() > 0.2
    expected = [a * math.gamma(2 / b) / math.gamma(1 / b)
                for a, b in zip(alpha.flatten().tolist(), beta.flatten().tolist())]
    title, scale = evaluated()[1]["fig6_8_ugac.png"][0][-1]
    assert title.startswith("scale")
    agree(scale.flatten() / torch.tensor(expected), torch.ones(len(expected)),
          "Sec. 4.5, Fig. 6 and 8: scale over E|r| = alpha Gamma(2/beta) / Gamma(1/beta)", 1e-4)


def test_pi_and_runs_with_lam_0_are_scored_without_a_scale():
    metrics, _, plotted = evaluated()
    scored = [name for name, row in metrics["runs"].items() if row["uncertainty"]]
    assert scored == WITH_SCALE, f"scales of {scored} are scored, trained were {WITH_SCALE}"
    titles = [ax.get_title().split("\n")[0] for ax in plotted["fig7_9_scatter.png"].axes]
    assert titles == WITH_SCALE, f"Sec. 4.5, Fig. 7 and 9: panels of {titles}"


def test_curves_and_points_are_those_of_metrics_json():
    metrics, _, plotted = evaluated()
    assert plotted.keys() == {"fig2_3_psnr.png", "fig7_9_scatter.png", "uncertainty.png"}
    lines = {line.get_label(): list(line.get_ydata())
             for line in plotted["fig2_3_psnr.png"].axes[0].lines}
    scores = {name: row["scenarios"] for name, row in metrics["runs"].items()}
    scores["copy of the input"] = metrics["copy_input"]
    assert lines == {name: [row[s]["psnr"] for s in evaluate.SCENARIOS]
                     for name, row in scores.items()}
    chosen, (x, truth) = evaluate.choose_512(12), tensors(pairs())
    for name, ax in zip(WITH_SCALE, plotted["fig7_9_scatter.png"].axes, strict=True):
        translation, alpha, beta = evaluate.translate(toy_runs()[name][0], x, "cpu")
        scale = uncertainty.expected_residual(alpha, beta)
        means = [v.mean(dim=(1, 2, 3))[chosen] for v in ((translation - truth).abs(), scale)]
        assert all(np.allclose(*pair) for pair in zip(ax.lines[0].get_data(), means, strict=True))
        whole = metrics["runs"][name]["uncertainty"]["correlation"]["whole"]
        assert ax.get_title() == (f"{name}\nPearson {whole['pearson_image']:.2f}, "
                                  f"Spearman {whole['spearman_image']:.2f}")
    left, right = plotted["uncertainty.png"].axes
    assert len(left.lines) == 6
    assert [line.get_label().split(",")[0] for line in right.lines] == [*WITH_SCALE, "ideal"]
    for k, name in enumerate(WITH_SCALE):
        found = metrics["runs"][name]["uncertainty"]
        by_map, oracle = left.lines[2 * k:2 * k + 2]
        order, size = found["sparsification"], found["reliability"]
        assert list(by_map.get_ydata()) == order["map"]
        assert list(oracle.get_ydata()) == order["oracle"]
        assert list(by_map.get_xdata()) == list(oracle.get_xdata()) == order["removed"]
        assert by_map.get_label() == f"{name}, AUSE {order['ause']:.3f}"
        assert list(right.lines[k].get_ydata()) == size["observed"]
        assert list(right.lines[k].get_xdata()) == size["nominal"]
        assert right.lines[k].get_label() == f"{name}, ECE {size['ece']:.3f}"


def test_every_figure_says_below_itself_how_to_read_it(tmp_path):
    captions = {}
    slices, keep = pairs(5), evaluate.save_figure

    def figure(path, figure, caption=""):
        captions[path.name] = caption
        keep(path, figure, caption)
        drawn = figure.get_supxlabel().replace("\n", " ")
        assert drawn == caption, f"{path.name}: below it stands {drawn!r}, not {caption!r}"

    runs = {name: toy_runs()[name] for name in ("one", "three")}
    with replaced.object(evaluate, "save_figure", figure), \
            replaced.object(data, "save_figure", figure):
        evaluate.evaluate_runs(runs, slices, tmp_path, "cpu")
        evaluate.plot_translations(tmp_path / "fig5.png", torch.zeros(6, 1, 64, 64), {})
        train.plot_samples(tmp_path / "patches.png", toy(0.9), slices, "cpu", True)
    good = {"fig2_3_psnr.png": "A good curve", "fig4_samples.png": "A good translation",
            "fig5.png": "A good translation", "fig6_8_one.png": "A good scale",
            "fig6_8_three.png": "The residual should be dark", "fig7_9_scatter.png": "A good scale",
            "uncertainty.png": "A good curve", "patches.png": "should be alike"}
    assert captions.keys() == good.keys()
    for name, words in good.items():
        assert words in captions[name], f"{name}: does not say what is good: {captions[name]!r}"
    assert all(words in captions["uncertainty.png"]
               for words in ("oracle", "AUSE", "ECE", "Both are 0 at best"))
    assert "colour bar" in captions["fig6_8_one.png"]
    assert "scale" not in captions["fig6_8_three.png"]


def test_a_run_keeps_its_colour_and_marker_in_every_figure():
    metrics = {"runs": {f"run{k}": {} for k in range(9)}}
    styles = [evaluate.line_style(metrics, name) for name in metrics["runs"]]
    for key in ("color", "marker"):
        assert len({style[key] for style in styles}) == 9, f"two runs share a {key}"
    metrics, _, plotted = evaluated()
    for k, name in enumerate(WITH_SCALE):
        style, (left, right) = evaluate.line_style(metrics, name), plotted["uncertainty.png"].axes
        lines = [*(v for v in plotted["fig2_3_psnr.png"].axes[0].lines if v.get_label() == name),
                 plotted["fig7_9_scatter.png"].axes[k].lines[0], left.lines[2 * k], right.lines[k]]
        assert {(v.get_color(), v.get_marker()) for v in lines} == {
            (style["color"], style["marker"])}, f"{name} changes its looks between figures"


# ---------------------------------------------------------------- Sec. 4.5: scale and residual

def test_at_most_512_images_are_correlated():
    assert len(evaluate.choose_512(600)) == 512
    assert sorted(evaluate.choose_512(5)) == [0, 1, 2, 3, 4]


def test_the_512_are_drawn_at_random_and_the_same_every_time():
    one, again = (evaluate.choose_512(600).tolist() for _ in range(2))
    assert one == again and len(set(one)) == 512 and max(one) > 550 and one != sorted(one)


def test_maps_of_every_kind_are_scored_as_expected_residuals():
    truth, image, alpha = (size * grey_levels(11, 1, 10, 10, seed=seed) / 255 + 1
                           for seed, size in ((25, 60), (26, 60), (27, 9)))
    beta = .3 + 3 * grey_levels(11, 1, 10, 10, seed=29) / 255
    row, points = evaluate.score_map(image, alpha, beta, truth)
    r, bright = (image - truth).abs(), truth > 25.5
    assert 0.2 < bright.double().mean() < 0.9
    expected = uncertainty.expected_residual(alpha, beta)
    assert points == [v.mean(dim=(1, 2, 3)).tolist() for v in (r, expected)]
    assert row["pcc_image"] == pytest.approx(uncertainty.pearson(*points))
    assert row["pcc_pixel"] == pytest.approx(uncertainty.pearson(r, expected))
    assert row["uncertainty"] == {
        "correlation": {"whole": uncertainty.correlate(r, expected, truth > 0),
                        "foreground": uncertainty.correlate(r, expected, bright)},
        "sparsification": uncertainty.sparsification(r, expected),
        "reliability": uncertainty.reliability(r, alpha, beta)}


def test_fewer_than_ten_images_have_no_correlation_per_image():
    truth, image, alpha = (grey_levels(9, 1, 10, 10, seed=seed) + 1 for seed in (25, 26, 27))
    row, _ = evaluate.score_map(image, alpha, torch.ones_like(alpha), truth)
    assert row["pcc_image"] is None, f"Sec. 4.5: pcc_image of 9 images is {row['pcc_image']}"
    assert row["pcc_pixel"] == pytest.approx(uncertainty.pearson((image - truth).abs(), alpha))
    assert evaluate.two_digits(None) == "undefined" and evaluate.two_digits(-.126) == "-0.13"


# ---------------------------------------------------------------- the program

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """UAPI and PI, untrained."""
    root = tmp_path_factory.mktemp("runs")
    return [saved(root / method, nets.UNet(width=1), method=method) for method in ("uapi", "pi")]


def call(*words):
    go(*words, program=evaluate)


def no_json(word):
    raise AssertionError(f"{word} is no JSON")


def touch(path, *_, **__):
    path.touch()


def evaluate_toys(out, slices, **methods):
    """The whole command on toys, but for the pictures: name = method -> metrics.json."""
    def load_run(name, _):
        G = toy_with_beta if methods[name] == "ugac" else toy(0.9)
        return G, TINY | {"method": methods[name]}
    with replaced.multiple(evaluate, load=lambda *_: slices, load_run=load_run, save_figure=touch,
                           picture_grid=touch):
        call(*methods, "--data", "phantom", "--out", out)
    return json.loads((out / "metrics.json").read_text(), parse_constant=no_json)


def test_metrics_json_keeps_its_keys():
    """Programs read it: results/ and whoever has evaluated before."""
    scores = {"ssim_head", *(name + end for name in ("ssim", "psnr")
                             for end in ("", "_patients_mean", "_patients_sd"))}
    correlations = {f"{kind}_{of}" for kind in ("pearson", "spearman") for of in ("image", "pixel")}
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        metrics = evaluate_toys(Path(out), pairs(), uapi="uapi", pi="pi")
        assert {"metrics.json", "table1.md"} <= {path.name for path in Path(out).iterdir()}
        assert rows_of((Path(out) / "table1.md").read_text())[0][0] == "run"
    assert metrics.keys() == {"runs", "copy_input"} and list(metrics["runs"]) == ["uapi", "pi"]
    for row in metrics["runs"].values():
        assert row.keys() == {"method", "scenarios", "displacement", "pcc_image", "pcc_pixel",
                              "uncertainty"}
        assert row["displacement"].keys() == {"down", "right", "ssim"}
    for row in (metrics["copy_input"], *(run["scenarios"] for run in metrics["runs"].values())):
        assert list(row) == list(evaluate.SCENARIOS)
        for scenario in row.values():
            assert scenario.keys() == scores
            assert all(isinstance(value, float) for value in scenario.values())
    uapi, pi = metrics["runs"].values()
    assert (uapi["method"], pi["method"]) == ("uapi", "pi")
    assert pi["uncertainty"] is pi["pcc_image"] is pi["pcc_pixel"] is None
    found = uapi["uncertainty"]
    assert found.keys() == {"correlation", "sparsification", "reliability"}
    assert found["correlation"].keys() == {"whole", "foreground"}
    assert all(of.keys() == correlations for of in found["correlation"].values())
    assert found["sparsification"].keys() == {"removed", "map", "oracle", "ause"}
    assert found["reliability"].keys() == {"nominal", "observed", "ece"}
    whole = found["correlation"]["whole"]
    assert uapi["pcc_image"] == whole["pearson_image"], "Sec. 4.5: per image"
    assert uapi["pcc_pixel"] == whole["pearson_pixel"], "Sec. 4.5: per pixel"


def test_two_runs_give_table_1_metrics_and_every_figure(tmp_path, runs):
    call(*runs, "--data", "phantom", "--out", tmp_path)
    assert sorted(files_in(tmp_path)) == [
        "fig2_3_psnr.png", "fig4_samples.png", "fig6_8_pi.png", "fig6_8_uapi.png",
        "fig7_9_scatter.png", "metrics.json", "table1.md", "uncertainty.png"]
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
    rows = rows_of((tmp_path / "table1.md").read_text())
    assert rows[0] == ["run", *evaluate.SCENARIOS]
    assert [row[0] for row in rows[1:]] == ["uapi", "pi", "copy of the input"]
    cell = metrics["runs"]["pi"]["scenarios"]["IP10"]
    assert rows[2][7] == f"{cell['ssim']:.2f}/{cell['psnr']:.2f}"


def test_every_method_is_scored_and_those_with_a_map_are_asked_what_they_know(tmp_path, capsys):
    methods = ("pi", "uapi", "cyclegan", "ugac", "gcgan", "uagc", "cut")
    metrics = evaluate_toys(tmp_path, pairs(), **{method: method for method in methods})
    scaled = [name for name, row in metrics["runs"].items() if row["uncertainty"]]
    assert list(metrics["runs"]) == list(methods) and scaled == ["uapi", "ugac", "uagc"]
    assert sorted(p.name for p in tmp_path.glob("fig6_8_*")) == sorted(f"fig6_8_{name}.png"
                                                                       for name in methods)
    x, truth = tensors(pairs())
    chosen = evaluate.choose_512(12)
    parts = [v[chosen] for v in (*evaluate.translate(toy_with_beta, x, "cpu"), truth)]
    expected, _ = evaluate.score_map(*parts)
    assert {key: metrics["runs"]["ugac"][key] for key in expected} == expected
    printed = capsys.readouterr().out
    assert all(f"\n{name}: SSIM in the head" in printed for name in methods)
    blocks = {block.split(":")[0]: block for block in printed.split("\n") if "SSIM in" in block}
    assert list(blocks) == list(methods)
    assert printed.count("Pearson/Spearman of scale and residual, whole") == 3
    assert printed.count("Pearson/Spearman of scale and residual, foreground") == 3


def test_runs_without_a_map_leave_no_figure_of_one(tmp_path):
    evaluate_toys(tmp_path, pairs(5), one="cut", two="pi")
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "fig2_3_psnr.png", "fig4_samples.png", "fig6_8_one.png", "fig6_8_two.png"]


def test_what_is_known_of_a_run_is_printed(tmp_path, capsys):
    row = evaluate_toys(tmp_path, pairs(), run="uapi")["runs"]["run"]
    said, about = capsys.readouterr().out, row["uncertainty"]
    whole = about["correlation"]["whole"]
    assert whole["pearson_image"] == row["pcc_image"]
    assert whole["pearson_pixel"] == row["pcc_pixel"]
    for region, found in about["correlation"].items():
        numbers = [f"{found[f'{kind}_{of}']:.2f}" for of in ("image", "pixel")
                   for kind in ("pearson", "spearman")]
        assert (f"{region}: " + "{}/{} per image, {}/{} per pixel".format(*numbers)) in said
        assert len(set(numbers)) == 4
    assert (f"AUSE {about['sparsification']['ause']:.3f}; "
            f"ECE {about['reliability']['ece']:.3f}") in said
    place = row["displacement"]
    assert f"SSIM in the head {row['scenarios']['GN0']['ssim_head']:.2f}; " in said
    assert (f"lies {place['down']:+.2f} pixels down, {place['right']:+.2f} right, "
            f"SSIM {place['ssim']:.2f} with that undone") in said


def test_five_pairs_have_no_correlation_per_image_and_that_is_printed(tmp_path, capsys):
    row = evaluate_toys(tmp_path, pairs(5), run="uapi")["runs"]["run"]
    assert row["pcc_image"] is None and row["pcc_pixel"] is not None
    assert f"undefined/undefined per image, {row['pcc_pixel']:.2f}/" in capsys.readouterr().out


def test_a_perfect_copy_and_a_single_patient_leave_valid_json():
    slices = pairs(5)
    names = {"evaluation_input": ["p_0"] * 5, "evaluation_target": ["p_0"] * 5}
    slices = slices._replace(evaluation_target=slices.evaluation_input, names=names)
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        metrics = evaluate_toys(Path(out), slices, run="uapi")
        assert "/inf" in (Path(out) / "table1.md").read_text()
    assert metrics["copy_input"]["GN0"]["psnr"] is None
    assert metrics["copy_input"]["GN0"]["ssim"] == pytest.approx(100)
    assert metrics["copy_input"]["GN5"]["psnr_patients_sd"] is None


def test_a_name_means_itself_in_legends_titles_and_the_table():
    """To matplotlib $ means mathematics and a first _ no legend; a byte can be no text at all."""
    known, figures, name = evaluated()[0], [], "_$lam_$seed\udce9"
    metrics = {"runs": {name: known["runs"]["one"]}, "copy_input": known["copy_input"]}
    drawn = r"_$lam_$seed\udce9"
    with replaced.object(evaluate, "save_figure", lambda _, figure, __: figures.append(figure)):
        evaluate.plot_psnr("nowhere", metrics)
        evaluate.plot_uncertainty("nowhere", metrics)
        evaluate.plot_scatter("nowhere", metrics, {name: ([1, 2], [3, 4])})
    legends = [[text.get_text() for text in ax.get_legend().get_texts()]
               for figure in figures[:2] for ax in figure.axes]
    title = figures[2].axes[0].get_title().split("\n")[0]
    for texts, more in zip((*legends, [title]), (1, 0, 1, 0), strict=True):
        assert len(texts) == 1 + more, f"{name!r} is missing in {texts}"
        assert not cbook.is_math_text(texts[0]), f"{texts[0]!r} is drawn as mathematics"
        assert texts[0].split(",")[0].replace(r"\$", "$").strip() == drawn, texts
    assert rows_of(evaluate.table(metrics))[1][0] == drawn


def test_runs_of_any_name_are_evaluated_and_stand_in_every_legend(tmp_path):
    """Names that matplotlib, the table or the output could stumble over; everything is drawn."""
    names = ["$lam_$seed", "_x", os.fsdecode(b"r\xe9sum\xe9"), "thin\u202fspace", "\u6f22\u5b57"]
    as_drawn = ["$lam_$seed", "_x", "r\\udce9sum\\udce9", "thin\\u202fspace", "\u6f22\u5b57"]
    folders = [saved(tmp_path / name, nets.UNet(width=1)) for name in names]
    legends, keep = {}, evaluate.save_figure

    def figure(path, figure, caption):
        keep(path, figure, caption)
        legends[path.name] = [text.get_text() for ax in figure.axes if ax.get_legend()
                              for text in ax.get_legend().get_texts()]
    with replaced.object(evaluate, "save_figure", figure):
        call(*folders, "--data", "phantom", "--out", tmp_path / "out")
    plain = lambda text: text.split(",")[0].replace(r"\$", "$").strip()
    assert list(map(plain, legends["fig2_3_psnr.png"])) == [*as_drawn, "copy of the input"]
    assert list(map(plain, legends["uncertainty.png"])) == [*as_drawn, *as_drawn, "ideal"]
    for text in sum(legends.values(), []):
        assert not cbook.is_math_text(text), f"{text!r} is drawn as mathematics"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["runs"]) == names
    table = (tmp_path / "out" / "table1.md").read_text(encoding="utf-8")
    assert [row[0] for row in rows_of(table)[1:]] == [*as_drawn, "copy of the input"]
    assert all((tmp_path / "out" / f"fig6_8_{name}.png").stat().st_size > 1000 for name in names)


def test_table_1_is_utf_8_where_the_locale_is_not(tmp_path, h5):
    """As a process of its own, whose files would be ASCII by default."""
    names = [os.fsdecode(b"r\xe9sum\xe9"), "\u6f22\u5b57"]
    folders = [saved(tmp_path / name, nets.UNet(width=1)) for name in names]
    program = ("import locale, runpy, sys; locale.setlocale(locale.LC_CTYPE, 'C'); "
               "print(open('new', 'w').encoding); del sys.argv[0]; "
               "runpy.run_path(sys.argv[0], run_name='__main__')")
    root = Path(evaluate.__file__).parent
    words = [sys.executable, "-X", "utf8=0", "-c", program, root / "evaluate.py", *folders,
             "--data", h5, "--out", "out", "--device", "cpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True,
                          env=os.environ | {"LC_ALL": "C.UTF-8", "PYTHONPATH": str(root)})
    said = done.stdout.decode("utf-8", "replace")
    if "utf-8" in said.split("\n")[0].lower():
        pytest.skip("this system has one encoding for every locale")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    table = (tmp_path / "out" / "table1.md").read_text(encoding="utf-8")
    assert [row[0] for row in rows_of(table)[1:]] == ["r\\udce9sum\\udce9", "\u6f22\u5b57",
                                                      "copy of the input"]


def test_unpaired_data_are_all_translated_and_not_scored(tmp_path, runs):
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
    out = tmp_path / "out"
    with replaced.object(evaluate, "picture_grid", grid):
        call(*runs, "--data", tmp_path / "unpaired.h5", "--out", out)
    assert not (out / "metrics.json").exists() and list(shown) == ["fig5_translations.png"]
    pngs = sorted(f"{name}.png" for name in names["evaluation_input"])
    for which in ("uapi/translation", "pi/translation"):
        assert sorted(p.name
                      for p in (out / which).iterdir()) == pngs, "not every slice is translated"
    assert sorted(p.name for p in (out / "uapi/scale").glob("*.png")) == pngs
    assert not (out / "pi/scale").exists()
    titles, columns = zip(*shown["fig5_translations.png"])
    assert titles == ("input", "uapi", "pi") and len(columns[0]) == 6
    G = {name: evaluate.load_run(folder, "cpu")[0] for name, folder in zip(("uapi", "pi"), runs)}
    for k, cells in zip([0, 1, 2, 4, 5, 6], zip(*columns), strict=True):
        picture = torch.from_numpy(x[k]).float()[None, None]
        assert torch.equal(cells[0], picture[0])
        for name, cell in zip(("uapi", "pi"), cells[1:]):
            translation = evaluate.translate(G[name], picture, "cpu")[0][0]
            assert torch.allclose(cell, translation, atol=0.1)  # other batches round otherwise
            path = out / name / "translation" / f"{names['evaluation_input'][k]}.png"
            stored = np.asarray(Image.open(path))
            assert np.abs(stored - translation[0].numpy()).max() <= 0.6


@pytest.mark.parametrize("names", (["a", "a"], ["../a", "b"], ["a", "b\0"], ["a", ""]))
def test_names_in_an_h5_that_cannot_name_files_are_refused(tmp_path, names):
    slices = pairs(2)._replace(names={"evaluation_input": names})
    error = refused(evaluate.translate_unpaired, {"same": (toy(1.0), TINY)}, slices,
                    tmp_path / "out", "cpu")
    assert "cannot name files" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_with_scores_of_other_runs_is_refused_and_with_its_own_renewed():
    """Else uncertainty.png of a run with a scale would stay beside the scores of one without."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        evaluate_toys(Path(out), pairs(), uapi="uapi")
        before = files_in(Path(out))
        said = refused(evaluate_toys, Path(out), pairs(), pi="pi")
        assert f"--out {out}: holds scores of other runs, fig6_8_uapi.png; choose another" in said
        assert files_in(Path(out)) == before
        evaluate_toys(Path(out), pairs(), uapi="uapi", more="pi")
        before = files_in(Path(out))
        said = refused(evaluate_toys, Path(out), pairs(), uapi="pi", more="pi")
        assert "other runs, fig7_9_scatter.png" in said, "of this run when it had a scale"
        assert files_in(Path(out)) == before


def test_a_run_scored_on_other_data_is_noted_and_a_dot_is_a_folder_with_a_name(
        tmp_path, monkeypatch, capsys):
    (tmp_path / "phantom").mkdir()
    monkeypatch.chdir(tmp_path / "phantom")
    for data, noted in ((".", False), ("..", True)):
        with replaced.multiple(evaluate, load=lambda *_: pairs(), save_figure=touch,
                               picture_grid=touch,
                               load_run=lambda *_: (toy(0.9), TINY | {"data": "phantom"})):
            call("uapi", "--data", data, "--out", tmp_path / "out")
        assert ("was trained on phantom, and is scored on" in capsys.readouterr().out) == noted, data


def data_set(root, *folders):
    """A data set in folders' layout, of two pairs."""
    s = tiny_slices()
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for k in range(2):
        for which, images in (("input", s.evaluation_input), ("target", s.evaluation_target)):
            path = root / "evaluation" / f"p_{k}_{which}.png"
            if "evaluation" not in folders:
                path = root / ("testA" if which == "input" else "testB") / f"p_{k}.png"
            Image.fromarray(images[k]).save(path)
    return root


def tree(root):
    return {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}


def test_an_out_among_the_slices_is_refused_and_nothing_is_written():
    """The next training would take our figures for slices."""
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        runs = [saved(root / "run", nets.UNet(width=1))]
        one = data_set(root / "one", "input", "target", "evaluation")
        other = data_set(root / "other", "trainA", "trainB", "testA", "testB")
        (root / "link").symlink_to(one / "evaluation", target_is_directory=True)
        outs = [(one, one / name) for name in ("input", "target", "evaluation")]
        outs += [(other, other / name) for name in ("trainA", "trainB", "testA", "testB")]
        outs += [(one, one / "input" / "deep" / "er"), (one, root / "link" / "new"),
                 (one, root / "link"), (one, one / "target" / ".." / "evaluation"),
                 (root / "link" / "..", one / "input")]
        before = tree(root)
        for data_folder, out in outs:
            error = refused(call, *runs, "--data", data_folder, "--out", out)
            assert f"--out {out}" in error and "choose another --out" in error, error
            assert tree(root) == before, f"--out {out} was refused, but something was written"


def test_an_out_beside_the_slices_is_accepted_and_the_default_among_them_is_not(
        monkeypatch, tmp_path, runs):
    one = data_set(tmp_path / "one", "input", "target", "evaluation")
    other = data_set(tmp_path / "other", "trainA", "trainB", "testA", "testB")
    before = tree(tmp_path)
    monkeypatch.chdir(one)
    for words in ((), ("--out", "evaluation"), ("--out", "./input/x")):  # evaluation by default
        error = refused(call, runs[0], "--data", ".", *words)
        assert "lies in a folder of slices" in error and tree(tmp_path) == before
    with replaced.multiple(evaluate, save_figure=touch, picture_grid=touch):
        for data_folder, out in ((one, one / "results"), (".", "results2"),
                                 (other, tmp_path / "inputs")):
            call(runs[0], "--data", data_folder, "--out", out)
            assert "metrics.json" in files_in(Path(out)), f"--out {out}: a sibling is no pile"
    assert all(tree(tmp_path)[path] == content for path, content in before.items())


@pytest.mark.parametrize("program", ("evaluate", "data", "translate"))
def test_help_fits_80_columns_has_an_example_and_keeps_the_schema_for_the_end(program):
    module = importlib.import_module(program)
    with replaced.object(sys, "argv", [f"{program}.py", "--help"]), replaced.dict("os.environ",
                                                                                  COLUMNS="80"):
        with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(io.StringIO()) as text:
            module.main()
    lines = text.getvalue().splitlines()
    assert stop.value.code == 0 and max(map(len, lines)) <= 80, max(lines, key=len)
    assert any(line.startswith(f"    python {program}.py") for line in lines), "no example"
    if program == "evaluate":
        assert text.getvalue().index("--device") < text.getvalue().index("metrics.json, null")
