"""Sec. 4.2-4.5: metrics against naive loops and known answers, honest perturbations, and the whole command end to end."""
import csv
import json
import math
from unittest.mock import patch as replaced

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import data
import evaluate
import nets
import train
from test_train import TINY, same, tiny_slices, weights


def grey_levels(*shape, seed=0):
    return 255 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_ssim(a, b, data_range):
    """One image pair, h x w nested lists: Wang et al. window by window."""
    window = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5 ** 2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, window))
    C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for top in range(len(a) - 10):
        for left in range(len(a[0]) - 10):
            cells = [(window[i][j] / total, a[top + i][left + j], b[top + i][left + j]) for i in range(11) for j in range(11)]
            mu_a, mu_b = sum(w * u for w, u, _ in cells), sum(w * v for w, _, v in cells)
            var_a, var_b = sum(w * (u - mu_a) ** 2 for w, u, _ in cells), sum(w * (v - mu_b) ** 2 for w, _, v in cells)
            cov = sum(w * (u - mu_a) * (v - mu_b) for w, u, v in cells)
            values.append((2 * mu_a * mu_b + C1) * (2 * cov + C2) / ((mu_a ** 2 + mu_b ** 2 + C1) * (var_a + var_b + C2)))
    return sum(values) / len(values)


# ---------------------------------------------------------------- metrics

def test_ssim_equals_a_naive_loop_on_odd_shapes_and_ranges():
    a, b = grey_levels(2, 1, 13, 15, seed=1), grey_levels(2, 1, 13, 15, seed=2)
    b = 0.6 * a + 0.4 * b
    for data_range in (255.0, 100.0):
        expected = [naive_ssim(a[n, 0].tolist(), b[n, 0].tolist(), data_range) for n in range(2)]
        assert (evaluate.ssim(a, b, data_range) - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-9


def test_ssim_by_hand_for_constant_images():
    a, b = torch.full((1, 1, 16, 16), 100.0, dtype=torch.float64), torch.full((1, 1, 16, 16), 50.0, dtype=torch.float64)
    assert abs(evaluate.ssim(a, b).item() - (2 * 5000 + 6.5025) / (12500 + 6.5025)) < 1e-9


def test_ssim_is_1_for_equal_images_and_symmetric_and_range_is_255():
    a, b = grey_levels(3, 1, 20, 20, seed=3), grey_levels(3, 1, 20, 20, seed=4)
    assert torch.allclose(evaluate.ssim(a, a), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(evaluate.ssim(a, b), evaluate.ssim(b, a))
    assert torch.equal(evaluate.ssim(a, b), evaluate.ssim(a, b, 255.0))


def test_metrics_judge_every_image_by_itself():
    a, b = grey_levels(3, 1, 16, 16, seed=5), grey_levels(3, 1, 16, 16, seed=6)
    b[1] = a[1] + 1
    for metric in (evaluate.ssim, evaluate.psnr):
        alone = torch.cat([metric(a[n:n + 1], b[n:n + 1]) for n in range(3)])
        assert metric(a, b).shape == (3,) and torch.allclose(metric(a, b), alone)


def test_psnr_by_hand():
    a = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    b = a.clone()
    b[0] += 25.5
    b[1, 0, 0, 0] = 255.0
    assert torch.allclose(evaluate.psnr(a, b), torch.tensor([20.0, 10 * math.log10(16)], dtype=torch.float64))
    assert abs(evaluate.psnr(a[:1], b[:1], 51.0).item() - 20 * math.log10(2)) < 1e-12


def test_score_averages_images_and_spreads_over_patients():
    truth = torch.zeros(4, 1, 16, 16, dtype=torch.float64)
    image = truth + torch.tensor([25.5, 2.55, 2.55, 2.55], dtype=torch.float64).view(4, 1, 1, 1)  # 20, 40, 40, 40 dB
    row = evaluate.score(image, truth, np.array(["a", "a", "b", "b"]))
    assert row["psnr"] == pytest.approx(35) and row["psnr_patients_mean"] == pytest.approx(35)
    assert row["psnr_patients_sd"] == pytest.approx(math.sqrt(50))  # patients at 30 and 40 dB
    assert row["ssim"] == pytest.approx(100 * evaluate.ssim(image, truth).mean().item())


def test_pearson_equals_numpy():
    u, v = grey_levels(50, seed=7), grey_levels(50, seed=8)
    assert evaluate.pearson(u, 2 * u + v) == pytest.approx(np.corrcoef(u, 2 * u + v)[0, 1], abs=1e-12)
    assert evaluate.pearson([1, 2, 3], [-2, -4, -6]) == pytest.approx(-1)
    assert evaluate.pearson([1, 1, 1], [1, 2, 3]) is None


def test_correlation_is_taken_per_image_mean_and_per_pixel():
    truth = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    image = torch.tensor([[4., 0, 0, 0], [0, -8, 0, 0], [0, 0, 12, 0]], dtype=torch.float64).view(3, 1, 2, 2)
    scale = torch.tensor([[0., 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 3]], dtype=torch.float64).view(3, 1, 2, 2)
    found, (residual_means, scale_means) = evaluate.correlate(image, scale, truth)
    assert found["pcc_image"] == pytest.approx(1) and found["pcc_pixel"] < 0  # means agree, places do not
    assert sorted(residual_means) == [1, 2, 3] and sorted(scale_means) == [.25, .5, .75]


def test_at_most_512_images_are_correlated():
    many = torch.zeros(600, 1, 1, 1)
    assert len(evaluate.correlate(many, many, many)[1][0]) == 512


# ---------------------------------------------------------------- perturbations

def test_gaussian_noise_has_k_percent_of_255_and_is_clipped():
    x = torch.full((1, 1, 400, 400), 127.0)
    for scenario, sigma in (("GN5", 12.75), ("GN10", 25.5), ("GN20", 51.0)):
        noise = evaluate.perturb(x, scenario, torch.Generator().manual_seed(0)) - x
        # clipping at 2.5 sigma costs GN20 a little of its deviation
        assert abs(noise.mean()) < 0.4 and noise.std().item() == pytest.approx(sigma, rel=0.01 if sigma < 40 else 0.03)
    dark = evaluate.perturb(torch.zeros(1, 1, 100, 100), "GN20", torch.Generator().manual_seed(0))
    assert dark.min() == 0 and dark.max() <= 255 and abs((dark == 0).float().mean() - 0.5) < 0.02


def test_impulses_replace_k_percent_of_the_pixels_by_uniform_values():
    x = torch.full((1, 1, 500, 500), 300.0)  # no replacement can hit this value
    for scenario, share in (("IP2", 0.02), ("IP5", 0.05), ("IP10", 0.10)):
        out = evaluate.perturb(x, scenario, torch.Generator().manual_seed(0))
        hit = out[out != x]
        assert len(hit) / x.numel() == pytest.approx(share, rel=0.05)
        assert 0 <= hit.min() and hit.max() <= 255 and hit.mean().item() == pytest.approx(127.5, abs=4)
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


# ---------------------------------------------------------------- the program

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One update each of UAPI and PI."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("uapi", "pi"):
        (root / method).mkdir()
        with replaced.multiple(train, draw_samples=lambda *_: None, draw_curves=lambda *_: None):
            train.train(TINY | {"method": method, "updates": 1, "critic_steps": 1}, tiny_slices(), root / method)
    return [root / "uapi", root / "pi"]


def cli(monkeypatch, *words):
    slices = tiny_slices()
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, words)])
    with replaced.object(data, "phantoms", lambda size: slices):
        evaluate.main()


def test_two_runs_give_table_1_metrics_and_every_figure(monkeypatch, tmp_path, runs):
    cli(monkeypatch, *runs, "--data", "phantom", "--out", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fig2_3_psnr.png", "fig4_samples.png", "fig6_8_uapi.png", "fig7_9_scatter.png",
                                                          "metrics.json", "table1.csv", "table1.md"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["runs"]) == ["uapi", "pi"] and metrics["runs"]["pi"]["pcc_image"] is None
    slices = tiny_slices()
    x, truth = (torch.from_numpy(v).double().unsqueeze(1) for v in (slices.evaluation_input, slices.evaluation_target))
    G, _ = evaluate.load_run(runs[0], "cpu")
    with torch.no_grad():
        image = 127.5 * (1 + G(x.float() / 127.5 - 1)[0]).double()
    assert metrics["runs"]["uapi"]["scenarios"]["GN0"]["psnr"] == pytest.approx(evaluate.psnr(image, truth).mean().item(), abs=1e-4)
    assert metrics["copy_input"]["GN0"]["ssim"] == pytest.approx(100 * evaluate.ssim(x, truth).mean().item(), abs=1e-3)
    rows = list(csv.reader(open(tmp_path / "table1.csv")))
    assert rows[0] == ["run", *evaluate.SCENARIOS] and [row[0] for row in rows[1:]] == ["uapi", "pi", "copy of the input"]
    cell = metrics["runs"]["pi"]["scenarios"]["IP10"]
    assert rows[2][7] == f"{cell['ssim']:.2f}/{cell['psnr']:.2f}"


def test_unpaired_data_are_drawn_and_not_scored(monkeypatch, tmp_path, runs):
    unpaired = tiny_slices()._replace(evaluation_target=np.zeros((0, 64, 64), np.uint8))
    data.write_h5(tmp_path / "unpaired.h5", unpaired._replace(names=unpaired.names | {"evaluation_target": []}))
    cli(monkeypatch, runs[0], "--data", tmp_path / "unpaired.h5", "--out", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["fig5_translations.png"]


def test_one_picture_keeps_its_own_size(monkeypatch, tmp_path, runs):
    Image.fromarray(grey_levels(50, 90).byte().numpy()).save(tmp_path / "slice.png")
    cli(monkeypatch, *runs, "--image", tmp_path / "slice.png", "--out", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "slice_pi_translation.png", "slice_uapi_scale.npy", "slice_uapi_scale.png", "slice_uapi_translation.png"]
    scale = np.load(tmp_path / "out" / "slice_uapi_scale.npy")
    assert scale.shape == (50, 90) and scale.min() > 0
    for name in ("slice_pi_translation.png", "slice_uapi_scale.png"):
        assert Image.open(tmp_path / "out" / name).size == (90, 50)


def test_a_picture_of_the_runs_size_is_translated_as_it_is(monkeypatch, tmp_path, runs):
    picture = tiny_slices().evaluation_input[0]
    Image.fromarray(picture).save(tmp_path / "slice.png")
    cli(monkeypatch, runs[0], "--image", tmp_path / "slice.png", "--out", tmp_path)
    G, _ = evaluate.load_run(runs[0], "cpu")
    image, _ = evaluate.translate(G, torch.from_numpy(picture).float()[None, None], "cpu")
    assert np.abs(np.asarray(Image.open(tmp_path / "slice_uapi_translation.png")) - image.squeeze().numpy()).max() <= 0.5001


def test_wrong_use_ends_in_one_sentence_and_code_2(monkeypatch, tmp_path, capsys, runs):
    (tmp_path / "text.png").write_text("not a picture")
    for words, sentence in (([runs[0]], "give either --data"), ([tmp_path, "--data", "phantom"], "no such checkpoint"),
                            ([runs[0], "--data", tmp_path / "none"], "no such folder"),
                            ([runs[0], "--data", tmp_path], "no readable image for evaluation_input"),
                            ([runs[0], runs[0], "--data", "phantom"], "same folder name"),
                            ([runs[0], "--image", tmp_path / "text.png", "--out", tmp_path / "out"], "cannot be read as an image")):
        with pytest.raises(SystemExit) as stop:
            cli(monkeypatch, *words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and sentence in error and error.startswith("error: ") and error.count("\n") == 1


# ---------------------------------------------------------------- what planted mistakes got past the tests above

def test_no_scenario_repeats_the_noise_of_another_nor_does_the_next_process_change_it():
    flat = np.full((2, 32, 32), 128, np.uint8)
    noise = torch.cat([evaluate.perturb_all(flat, s) for s in ("GN5", "GN10", "GN20")]).flatten(1) - 128
    assert (torch.corrcoef(noise) - torch.eye(6)).abs().max() < 0.2
    assert noise[0, :3].tolist() == pytest.approx(GN5, abs=1e-3)


GN5 = (-9.0020, -1.1453, 1.7863)  # so that two papers' worth of runs, months apart, meet the same noise


def toy(gain):
    """A translation that can be written down, and a scale that differs from it from pixel to pixel."""
    return lambda x: (gain * x, 0.2 + 0.1 * x ** 2 + 0.05 * x)


def toy_runs():
    return {"one": (toy(0.9), TINY), "two": (toy(-0.5), TINY), "three": (toy(0.2), TINY | {"method": "pi"})}


def judged_slices():
    """Five pairs of two patients, four and one."""
    s = tiny_slices()
    names = [f"p_{k}" for k in range(4)] + ["q_0"]
    return data.Slices(s.input[:0], s.target[:0], s.input[:5], s.target[:5], {"evaluation_input": names, "evaluation_target": names})


def test_translations_arrive_in_grey_levels_and_in_order():
    x = torch.from_numpy(tiny_slices().input[:5]).float().unsqueeze(1)
    with replaced.object(evaluate, "BATCH", 2):
        image, scale = evaluate.translate(toy(0.9), x, "cpu")
    u = x / 127.5 - 1
    assert torch.allclose(image, 127.5 * (0.9 * u + 1), atol=1e-3)
    assert torch.allclose(scale, 127.5 * toy(0.9)(u)[1], atol=1e-3)


def test_patients_count_alike_however_many_slices_they_have():
    truth = torch.zeros(4, 1, 16, 16, dtype=torch.float64)
    image = truth + torch.tensor([25.5, 2.55, 2.55, 2.55], dtype=torch.float64).view(4, 1, 1, 1)  # 20, 40, 40, 40 dB
    row = evaluate.score(image, truth, np.array(["a", "b", "b", "b"]))
    assert row["psnr"] == pytest.approx(35) and row["psnr_patients_mean"] == pytest.approx(30)
    row = evaluate.score(image, truth, np.array(["a", "a", "a", "b"]))
    assert row["psnr_patients_mean"] == pytest.approx((100 / 3 + 40) / 2)


def test_the_512_are_drawn_at_random_and_the_same_every_time():
    many = torch.arange(600.0).view(600, 1, 1, 1)
    one, again = (evaluate.correlate(many, many, torch.zeros_like(many))[1][0] for _ in range(2))
    assert one == again and len(set(one)) == 512 and max(one) > 550 and one != sorted(one)


@pytest.fixture
def judged(tmp_path):
    """Three toy runs judged -> metrics, and what every picture was given."""
    shown, plotted = {}, {}

    def plot(path, draw, size=None):
        plotted[path.name] = Figure().subplots()
        draw(plotted[path.name])

    with replaced.multiple(evaluate, picture_grid=lambda path, rows, titles: shown.update({path.name: (rows, titles)}), plot=plot):
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
            image, scale = evaluate.translate(G, x, "cpu")
            assert metrics["runs"][name]["scenarios"][scenario] == pytest.approx(evaluate.score(image, truth, patients))
            if scenario == "GN0":
                expected = evaluate.correlate(image, scale, truth)[0] if config["method"] == "uapi" else {"pcc_image": None, "pcc_pixel": None}
                assert metrics["runs"][name] == metrics["runs"][name] | expected | {"method": config["method"]}


def test_figures_show_what_their_titles_say(judged):
    metrics, shown, plotted = judged
    slices = judged_slices()
    x, truth = (torch.from_numpy(v).float().unsqueeze(1) for v in (slices.evaluation_input, slices.evaluation_target))
    images, scales = zip(*(evaluate.translate(G, x, "cpu") for G, _ in toy_runs().values()))
    places = [0, 1, 2, 2, 3, 4]  # six of five
    rows, titles = shown["fig4_samples.png"]
    assert titles == ["input", "one", "two", "three", "ground truth"]
    for cells, i in zip(rows, places, strict=True):
        for cell, expected in zip(cells, (x[i], *(image[i] for image in images), truth[i]), strict=True):
            assert np.allclose(np.asarray(cell).squeeze(), expected.squeeze(), atol=1e-3)
    assert {name for name in shown if name.startswith("fig6")} == {"fig6_8_one.png", "fig6_8_two.png"}
    rows, titles = shown["fig6_8_two.png"]
    assert titles == ["input", "ground truth", "prediction", "abs. residual [grey levels]", "scale [grey levels]"]
    residual, scale = (images[1] - truth).abs(), scales[1]
    for (a, b, c, (r, r_top), (s, s_top)), i in zip(rows, places, strict=True):
        for cell, expected in ((a, x), (b, truth), (c, images[1]), (r, residual), (s, scale)):
            assert torch.allclose(cell, expected[i], atol=1e-3)
        assert r_top == pytest.approx(residual[places].quantile(.999).item(), rel=1e-4) and s_top == pytest.approx(scale[places].quantile(.999).item(), rel=1e-4)
    lines = {line.get_label(): line.get_ydata() for line in plotted["fig2_3_psnr.png"].lines}
    for name, scenarios in [("copy of the input", metrics["copy_input"])] + [(n, r["scenarios"]) for n, r in metrics["runs"].items()]:
        assert list(lines[name]) == [scenarios[s]["psnr"] for s in evaluate.SCENARIOS]
    line = plotted["fig7_9_scatter.png"].lines[1]
    expected = evaluate.correlate(images[1], scale, truth)[1]
    assert line.get_label().startswith("two") and list(line.get_xdata()) == pytest.approx(expected[0]) and list(line.get_ydata()) == pytest.approx(expected[1])


def test_table_1_says_the_same_in_markdown_and_csv(judged, tmp_path):
    rows = evaluate.table(judged[0])
    markdown = evaluate.write_table(rows, tmp_path)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    assert cells[:1] + cells[2:] == rows == list(csv.reader(open(tmp_path / "table1.csv"))) and len(rows) == 5
    assert (tmp_path / "table1.md").read_text() == markdown


def test_unpaired_translations_stand_beside_their_own_input(tmp_path):
    shown, slices = {}, judged_slices()
    with replaced.object(evaluate, "picture_grid", lambda path, rows, titles: shown.update({path.name: (rows, titles)})):
        evaluate.draw_translations(tmp_path / "fig5.png", toy_runs(), slices, "cpu")
    rows, titles = shown["fig5.png"]
    assert titles == ["input", "one", "two", "three"]
    for (x, one, two, _), i in zip(rows, [0, 1, 2, 2, 3, 4], strict=True):
        u = torch.from_numpy(slices.evaluation_input[i]).float() / 127.5 - 1
        assert torch.allclose(x[0], 127.5 * (u + 1), atol=1e-3)
        assert torch.allclose(one[0], 127.5 * (.9 * u + 1), atol=1e-3) and torch.allclose(two[0], 127.5 * (1 - .5 * u), atol=1e-3)


def test_a_run_is_loaded_with_its_own_width_and_weights(tmp_path):
    G = nets.UNet(width=2)
    train.save(tmp_path, {"config": TINY | {"width": 2, "critic_width": 3}, "G": G.state_dict()})
    loaded, config = evaluate.load_run(tmp_path, "cpu")
    assert same(weights(G), weights(loaded)) and config["width"] == 2 and not loaded.training


def test_one_picture_comes_back_in_its_own_place_and_scale(tmp_path):
    picture = tiny_slices().input[0][10:42]  # 32x64: padded above and below, never resized
    Image.fromarray(picture).save(tmp_path / "a.png")
    evaluate.translate_picture(tmp_path / "a.png", {"same": (toy(1.0), TINY)}, tmp_path, "cpu")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a_same_translation.png")), picture)
    u = picture / 127.5 - 1
    scale = 127.5 * (0.2 + 0.1 * u ** 2 + 0.05 * u)
    assert np.allclose(np.load(tmp_path / "a_same_scale.npy"), scale, atol=1e-3)
    assert np.abs(np.asarray(Image.open(tmp_path / "a_same_scale.png")) - 255 * scale / scale.max()).max() <= 0.501


def test_growing_back_never_wraps_from_white_to_black(tmp_path):
    edge = np.zeros((128, 128), np.uint8)
    edge[:, 64:] = 255
    Image.fromarray(edge).save(tmp_path / "a.png")
    evaluate.translate_picture(tmp_path / "a.png", {"same": (toy(1.0), TINY)}, tmp_path, "cpu")
    out = np.asarray(Image.open(tmp_path / "a_same_translation.png")).astype(int)
    assert (np.diff(out, axis=1) >= 0).all()


def test_runs_of_two_sizes_are_not_compared(monkeypatch, tmp_path, capsys):
    for size in (64, 96):
        (tmp_path / f"run{size}").mkdir()
        train.save(tmp_path / f"run{size}", {"config": TINY | {"size": size}, "G": nets.UNet(width=1).state_dict()})
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(tmp_path / "run64"), str(tmp_path / "run96"), "--data", "phantom", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        evaluate.main()
    assert stop.value.code == 2 and "different sizes, [64, 96]" in capsys.readouterr().err


def test_ssim_of_opposite_contrasts_is_negative():
    a = grey_levels(1, 1, 16, 16, seed=9)
    b = 255 - a
    expected = naive_ssim(a[0, 0].tolist(), b[0, 0].tolist(), 255.0)
    assert expected < -0.5 and abs(evaluate.ssim(a, b).item() - expected) < 1e-9


def test_both_correlations_are_printed(monkeypatch, tmp_path, capsys):
    slices = judged_slices()
    monkeypatch.setattr("sys.argv", ["evaluate.py", "run", "--data", "phantom", "--out", str(tmp_path)])
    with replaced.multiple(evaluate, load=lambda *_: slices, load_run=lambda *_: (toy(0.9), TINY)):
        evaluate.main()
    run = json.loads((tmp_path / "metrics.json").read_text())["runs"]["run"]
    assert f"{run['pcc_image']:.2f} per image, {run['pcc_pixel']:.2f} per pixel" in capsys.readouterr().out
    assert f"{run['pcc_image']:.2f}" != f"{run['pcc_pixel']:.2f}"
