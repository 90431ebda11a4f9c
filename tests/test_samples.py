"""The picture that train.py draws of Eq. 6 and 9: the right images in the right columns."""
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import data
import train
from patch_op import Phi, patch

WORDS = ["input", "P(x)", "translation", "a = P(G(x))", "b = G(P(x))", "truth", "|a - b|", "scale"]


def nonlinear(x):
    """A generator for which patch invariance does not hold."""
    return x ** 3, 0.1 + x ** 2


def of_ugac(x):
    return *nonlinear(x), 1 + 0 * x


def sampled(G, slices, with_scale):
    """What plot_samples() hands to picture_grid(), by name, its columns as arrays."""
    shown = {}

    def grid(path, columns, maps=0, caption="", square=None, labels=()):
        columns = [(title, np.stack([np.asarray(cell).squeeze() for cell in cells]))
                   for title, cells in columns]
        shown.update(path=path, columns=columns, maps=maps, caption=caption, square=square)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new", "a.png")
        with mock.patch.object(train, "picture_grid", grid):
            train.plot_samples(path, G, slices, "cpu", with_scale)
        assert path.parent.is_dir() and shown["path"] == path
    return shown


def without_truth(slices):
    nothing = np.zeros((0, *slices.input.shape[1:]), np.uint8)
    return slices._replace(evaluation_target=nothing)


def test_samples_show_both_sides_of_patch_invariance_their_residual_and_the_scale():
    slices = data.phantom_slices(64, subjects=1, slices=6)
    chosen = [1, 3, 5]
    x = data.to_unit(torch.from_numpy(slices.evaluation_input[chosen]).unsqueeze(1))
    phi = Phi(*(torch.full((3,), value) for value in (44, 10, 10)))  # 0.7 of 64, in the middle
    a, (b, scale) = patch(x ** 3, phi), nonlinear(patch(x, phi))
    grey = [127.5 * (v + 1) for v in (x, patch(x, phi), x ** 3, a, b)]
    truth = torch.from_numpy(slices.evaluation_target[chosen]).unsqueeze(1)
    for G, asked in ((nonlinear, True), (nonlinear, False), (of_ugac, False)):
        shown = sampled(G, slices, asked)
        expected = [*grey, truth, 127.5 * (a - b).abs(), 127.5 * scale][:8 if asked else 7]
        for (title, column), word, values in zip(shown["columns"], WORDS[:len(expected)], expected,
                                                 strict=True):
            assert word in title
            assert np.allclose(column, values.squeeze(1), atol=1e-3), title
        # drawn on x and G(x)
        assert shown["maps"] == 1 + asked and shown["square"] == ((0, 2), 10, 44)
        assert ("scale" in shown["caption"]) == asked and "orange square" in shown["caption"]


def test_samples_show_no_truth_where_there_is_none():
    slices = without_truth(data.phantom_slices(64, subjects=1, slices=6))
    titles = [title for title, _ in sampled(nonlinear, slices, True)["columns"]]
    for title, word in zip(titles, [word for word in WORDS if word != "truth"], strict=True):
        assert word in title


def test_samples_without_evaluation_are_three_inputs():
    slices = data.phantom_slices(64, subjects=2, slices=6)
    nothing = slices.input[:0]
    slices = slices._replace(evaluation_input=nothing, evaluation_target=nothing)
    (title, column), *_ = sampled(nonlinear, slices, False)["columns"]
    assert "input" in title and np.allclose(column, slices.input[[2, 6, 10]], atol=1e-3)
    one = slices._replace(input=slices.input[:1])  # fewer than three are shown more than once
    assert len(sampled(nonlinear, one, False)["columns"][0][1]) == 3


def test_samples_are_drawn_without_gradient_and_leave_random_numbers_and_slices_alone():
    slices = data.phantom_slices(64, subjects=1, slices=6)
    before, state = [images.copy() for images in slices[:4]], torch.get_rng_state()
    weight, outputs = torch.ones((), requires_grad=True), []

    def G(x):
        outputs.append(weight * x)
        return outputs[-1], outputs[-1].abs() + 1
    sampled(G, slices, True)
    assert len(outputs) == 2 and not any(out.requires_grad for out in outputs)
    assert torch.equal(state, torch.get_rng_state())
    assert all(np.array_equal(u, v) for u, v in zip(slices[:4], before))


def test_the_picture_has_its_squares_titles_and_one_colour_bar():
    slices, figures = data.phantom_slices(64, subjects=1, slices=6), []
    for with_scale in (True, False):
        with (tempfile.TemporaryDirectory() as folder,
              mock.patch.object(data, "save_figure", lambda *drawn: figures.append(drawn))):
            train.plot_samples(Path(folder, "a.png"), nonlinear, slices, "cpu", with_scale)
    for (_, figure, _), n in zip(figures, (8, 7)):
        axes = [ax for ax in figure.axes if ax.images]
        assert len(axes) == 3 * n and len(figure.axes) == 3 * n + 1
        for k, ax in enumerate(axes):
            assert bool(ax.get_title()) == (k < n)
            squares = [square.get_bbox().bounds for square in ax.patches]
            assert squares == ([(9.5, 9.5, 44, 44)] if k % n in (0, 2) else [])
        assert axes[0].patches[0].get_edgecolor()[:3] == (1.0, 165 / 255, 0.0)  # orange
        names = [ax.images[0].get_cmap().name for ax in axes[:n]]
        assert names == ["gray"] * 6 + ["inferno"] * (n - 6)


def test_the_picture_is_written_as_a_png():
    slices = data.phantom_slices(64, subjects=1, slices=6)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "samples", "000001.png")
        train.plot_samples(path, nonlinear, slices, "cpu", True)
        assert path.read_bytes().startswith(b"\x89PNG") and [*path.parent.iterdir()] == [path]
