"""Eq. 4: the patch operator against a naive loop, TensorFlow's own crops, a case worked by hand, and what it must not change."""
import math
from pathlib import Path
from unittest.mock import patch as replaced

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

import patch_op


def phi_of(*settings):
    return patch_op.Phi(*torch.tensor(settings).T)


def naive_patch(x, phi):
    """Eq. 4 pixel by pixel in plain Python floats: [b,c,d,d] float64 -> [b,c,d,d]."""
    def kernel(t):
        t = abs(t)
        if t <= 1:
            return 1.5 * t ** 3 - 2.5 * t ** 2 + 1
        return -0.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2 if t < 2 else 0.0

    def taps(i, size, d):
        centre = (i + 0.5) * size / d - 0.5
        inside = [k for k in range(math.floor(centre) - 1, math.floor(centre) + 3) if 0 <= k < size]
        total = sum(kernel(centre - k) for k in inside)
        return [(k, kernel(centre - k) / total) for k in inside]

    out = torch.zeros_like(x)
    d = x.shape[-1]
    for n, (size, j1, j2) in enumerate(zip(*(v.tolist() for v in phi))):
        for c in range(x.shape[1]):
            for row in range(d):
                for column in range(d):
                    out[n, c, row, column] = sum(wr * wc * x[n, c, j1 + kr, j2 + kc].item()
                                                 for kr, wr in taps(row, size, d) for kc, wc in taps(column, size, d))
    return out


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_a_naive_float64_loop_on_odd_shapes():
    x, phi = noise(3, 2, 7, 7), phi_of((5, 2, 0), (6, 0, 1), (4, 1, 3))
    assert (patch_op.patch(x, phi) - naive_patch(x, phi)).abs().max() < 1e-12


def test_two_pixels_stretched_to_four_by_hand():
    # Crop (0, 1) of one line, d = 4: centres at -1/4, 1/4, 3/4, 5/4; k(1/4) = 111/128, k(3/4) = 29/128, k(5/4) = -9/128.
    line = torch.tensor([[9., 0, 1, 9]], dtype=torch.float64).repeat(4, 1)[None, None]
    expected = torch.tensor([-9 / 102, 29 / 140, 111 / 140, 111 / 102], dtype=torch.float64)
    assert torch.allclose(patch_op.patch(line, phi_of((2, 0, 1)))[0, 0], expected.expand(4, 4), atol=1e-14)


def test_equals_tensorflow_values_and_gradients():
    golden = {name: torch.from_numpy(v) for name, v in np.load(Path(__file__).with_name("tf_bicubic_64.npz")).items()}
    x, y, w, grad = (golden[name].permute(0, 3, 1, 2) for name in ("x", "y", "w", "grad"))
    x = x.clone().requires_grad_()
    out = patch_op.patch(x, patch_op.Phi(*golden["crops"].long().T))
    assert (out - y).abs().max() < 3e-6
    gradient, = torch.autograd.grad((out * w).sum(), x)
    assert (gradient - grad).abs().max() < 2e-5


def test_gradient_is_the_transpose_to_second_order():
    x, phi = noise(2, 1, 5, 5).requires_grad_(), phi_of((4, 0, 1), (5, 0, 0))
    assert torch.autograd.gradcheck(lambda x: patch_op.patch(x, phi), x)
    assert torch.autograd.gradgradcheck(lambda x: patch_op.patch(x, phi).square(), x)


def test_a_constant_stays_constant_up_to_the_border():
    phi = patch_op.sample_phi(8, 64, torch.Generator().manual_seed(1))
    assert (patch_op.patch(torch.full((8, 1, 64, 64), 0.7, dtype=torch.float64), phi) - 0.7).abs().max() < 1e-12


def test_the_full_size_box_is_the_identity():
    x = noise(2, 3, 9, 9)
    assert torch.equal(patch_op.patch(x, phi_of((9, 0, 0), (9, 0, 0))), x)


def test_rows_go_with_j1_and_columns_with_j2():
    x, phi = noise(1, 1, 8, 8), phi_of((6, 2, 0))
    outside = x.clone()
    outside[..., :2, :] = 99
    outside[..., :, 6:] = 99
    assert torch.equal(patch_op.patch(x, phi), patch_op.patch(outside, phi))
    turned = patch_op.patch(x.transpose(-1, -2), phi_of((6, 0, 2)))
    assert torch.allclose(turned.transpose(-1, -2), patch_op.patch(x, phi), atol=1e-13)


def test_a_mirrored_crop_is_the_mirrored_result():
    # Fails for align_corners, and for anything else that is off by a fraction of a pixel.
    x = noise(1, 1, 8, 8)
    mirrored = patch_op.patch(x.flip(-1), phi_of((5, 1, 8 - 5 - 2)))
    assert torch.allclose(mirrored.flip(-1), patch_op.patch(x, phi_of((5, 1, 2))), atol=1e-13)


def test_every_image_has_its_own_crop():
    x, phi = noise(1, 1, 8, 8).repeat(3, 1, 1, 1), phi_of((6, 0, 0), (6, 2, 1), (7, 1, 0))
    together = patch_op.patch(x, phi)
    for n in range(3):
        alone = patch_op.patch(x[n:n + 1], patch_op.Phi(*(v[n:n + 1] for v in phi)))
        assert torch.allclose(together[n:n + 1], alone, atol=1e-14)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_shape_and_dtype_are_kept_and_wrong_shapes_refused():
    phi = phi_of((5, 0, 0))
    assert patch_op.patch(torch.rand(1, 3, 6, 6), phi).dtype == torch.float32
    for wrong in (torch.rand(1, 1, 6, 7), torch.rand(2, 1, 6, 6)):
        try:
            patch_op.patch(wrong, phi)
        except ValueError as error:
            assert "square images and one phi each" in str(error)
        else:
            raise AssertionError(f"{tuple(wrong.shape)} was taken")


def test_phi_stays_in_the_image_and_reaches_both_ends():
    d = 64
    size, j1, j2 = patch_op.sample_phi(40_000, d, torch.Generator().manual_seed(0))
    assert size.dtype == j1.dtype == j2.dtype == torch.int64
    assert size.min() == 44 and size.max() == 63  # floor(0.7 * 64) and floor(rho * 64) with rho < 1
    for j in (j1, j2):
        assert j.min() == 0 and (j + size <= d).all()
        assert (j + size == d).any(), "the last offset must be drawn, too"


def test_phi_is_uniform_and_its_parts_are_independent():
    d = 64
    size, j1, j2 = (v.double() for v in patch_op.sample_phi(40_000, d, torch.Generator().manual_seed(0)))
    counts = torch.bincount(size.long() - 44, minlength=20)[1:]  # 45 .. 63 are full bins of rho; 44 is a part of one
    assert (counts / 40_000 - 1 / (0.3 * d)).abs().max() < 0.006
    at_50 = size == 50
    assert (torch.bincount(j1[at_50].long(), minlength=15) / at_50.sum() - 1 / 15).abs().max() < 0.03
    # (j + 1/2) / (d - size + 1) is uniform whatever the size: no correlation is left between the three parts.
    parts = torch.stack([size, (j1 + .5) / (d - size + 1), (j2 + .5) / (d - size + 1)])
    assert (torch.corrcoef(parts) - torch.eye(3)).abs().max() < 0.02


def test_phi_differs_within_a_batch_and_comes_from_the_generator_alone():
    state = torch.get_rng_state()
    one, again = (patch_op.sample_phi(8, 256, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(u, v) for u, v in zip(one, again))
    assert len(set(one.size.tolist())) > 1 and len(set(one.j1.tolist())) > 1
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------- what planted mistakes got past the tests above

def test_the_drawing_shows_the_square_that_was_cut(monkeypatch, tmp_path):
    figures, image = [], np.add.outer(3 * np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    for seed in (0, 1):
        monkeypatch.setattr("sys.argv", ["patch_op.py", str(tmp_path / "a.png"), "--seed", str(seed)])
        with replaced.object(Figure, "savefig", lambda figure, *_, **__: figures.append(figure)):
            patch_op.main()
        sizes, j1s, j2s = (v.tolist() for v in patch_op.sample_phi(3, 256, torch.Generator().manual_seed(seed)))
        axes = np.array(figures[-1].axes).reshape(3, 3)
        for (whole, crop, zoomed), size, j1, j2 in zip(axes, sizes, j1s, j2s):
            x = whole.images[0].get_array()
            assert whole.patches[0].get_xy() == (j2 - .5, j1 - .5) and whole.patches[0].get_width() == size
            assert np.array_equal(crop.images[0].get_array(), x[j1:j1 + size, j2:j2 + size])
            assert zoomed.images[0].get_array().shape == (256, 256)
