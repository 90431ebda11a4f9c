"""Eq. 4 and Sec. 3.2: the patch operator against a naive loop, TensorFlow's own crops, a case
worked by hand, and what it must not change; patch settings phi that reach every end."""
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import patch_op
from oracles import agree, naive_patch, noise, phi_of
from phantoms import phantoms
from toys import refused

EQ4 = "Eq. 4: P(x) = R(x[j1 : j1 + rho d, j2 : j2 + rho d]), R bicubic (Keys, a = -0.5)"


# ---------------------------------------------------------------- Sec. 3.2: patch settings phi

def test_phi_stays_in_the_image_and_reaches_both_ends():
    d = 64
    size, j1, j2 = patch_op.sample_phi(40_000, d, torch.Generator().manual_seed(0))
    assert size.dtype == j1.dtype == j2.dtype == torch.int64
    ends = (size.min().item(), size.max().item())
    agree(ends, (44, 63), "Sec. 3.2: size = floor(rho d), rho ~ U[0.7,1], d = 64: 44 .. 63", 0)
    many = patch_op.sample_phi(40_000, 1000, torch.Generator().manual_seed(0)).size
    agree((many.min(), many.max()), (700, 999), "Sec. 3.2: rho ~ U[0.7,1], d = 1000: 700 .. 999", 0)
    for name, j in (("j1", j1), ("j2", j2)):
        agree(j.min(), 0, f"Sec. 3.2: 0 <= {name}, and 0 is drawn", 0)
        agree((j + size).max(), d, f"Sec. 3.2: {name} <= d - size, and d - size is drawn", 0)


def test_phi_is_uniform_and_its_parts_are_independent():
    d = 64
    phi = patch_op.sample_phi(40_000, d, torch.Generator().manual_seed(0))
    size, j1, j2 = (v.double() for v in phi)
    # 45 .. 63 are full bins of rho; 44 is a part of one
    counts = torch.bincount(size.long() - 44, minlength=20)[1:]
    assert (counts / 40_000 - 1 / (0.3 * d)).abs().max() < 0.006, "Sec. 3.2: rho is uniform"
    for name, j in (("j1", j1), ("j2", j2)):
        shares = torch.bincount(j[size == 50].long(), minlength=15) / (size == 50).sum()
        off = (shares - 1 / 15).abs().max()
        assert off < 0.02, f"Sec. 3.2: {name} is uniform over 0 .. d - size; off by {off:.3f}"
    # (j + 1/2) / (d - size + 1) is uniform whatever the size: nothing correlates.
    parts = torch.stack([size, (j1 + .5) / (d - size + 1), (j2 + .5) / (d - size + 1)])
    assert (torch.corrcoef(parts) - torch.eye(3)).abs().max() < 0.02


def test_phi_differs_within_a_batch_and_comes_from_the_generator_alone():
    state = torch.get_rng_state()
    one, again = (patch_op.sample_phi(8, 256, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(u, v) for u, v in zip(one, again))
    assert len(set(one.size.tolist())) > 1 and len(set(one.j1.tolist())) > 1
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------- Eq. 4: the patch operator

def test_equals_a_naive_float64_loop_on_odd_shapes():
    x, phi = noise(3, 2, 7, 7), phi_of((5, 2, 0), (6, 0, 1), (4, 1, 3))
    agree(patch_op.patch(x, phi), naive_patch(x, phi), EQ4, 1e-12)


def test_two_pixels_stretched_to_four_by_hand():
    # Crop (0, 1) of one line, d = 4: centres at -1/4, 1/4, 3/4, 5/4;
    # k(1/4) = 111/128, k(3/4) = 29/128, k(5/4) = -9/128.
    line = torch.tensor([[9., 0, 1, 9]], dtype=torch.float64).repeat(4, 1)[None, None]
    expected = torch.tensor([-9 / 102, 29 / 140, 111 / 140, 111 / 102], dtype=torch.float64)
    found = patch_op.patch(line, phi_of((2, 0, 1)))[0, 0]
    agree(found, expected.expand(4, 4), f"{EQ4}, here of the pixels 0, 1", 1e-14)


def test_equals_tensorflow_values_and_gradients():
    golden = np.load(Path(__file__).with_name("tf_bicubic_64.npz"))
    crops = torch.from_numpy(golden["crops"]).long()
    x, y, w, grad = (torch.from_numpy(golden[name]).permute(0, 3, 1, 2)
                     for name in ("x", "y", "w", "grad"))
    x = x.clone().requires_grad_()
    out = patch_op.patch(x, patch_op.Phi(*crops.T))
    agree(out, y, f"{EQ4}, as tf.image.resize has it", 3e-6)
    gradient, = torch.autograd.grad((out * w).sum(), x)
    agree(gradient, grad, f"d/dx of {EQ4}, as TensorFlow has it", 2e-5)


def test_gradient_is_the_transpose_to_second_order():
    x, phi = noise(2, 1, 5, 5).requires_grad_(), phi_of((4, 0, 1), (5, 0, 0))
    assert torch.autograd.gradcheck(lambda x: patch_op.patch(x, phi), x)
    assert torch.autograd.gradgradcheck(lambda x: patch_op.patch(x, phi).square(), x)


def test_a_constant_stays_constant_up_to_the_border():
    phi = patch_op.sample_phi(8, 64, torch.Generator().manual_seed(1))
    x = torch.full((8, 1, 64, 64), 0.7, dtype=torch.float64)
    agree(patch_op.patch(x, phi), x, f"{EQ4}, here of a constant", 1e-12)


def test_the_full_size_box_is_the_identity():
    x = noise(2, 3, 9, 9)
    agree(patch_op.patch(x, phi_of((9, 0, 0), (9, 0, 0))), x, f"{EQ4}, here rho = 1", 0)


def test_rows_go_with_j1_and_columns_with_j2():
    x, phi = noise(1, 1, 8, 8), phi_of((6, 2, 0))
    outside = x.clone()
    outside[..., :2, :] = 99
    outside[..., :, 6:] = 99
    found = patch_op.patch(x, phi)
    agree(patch_op.patch(outside, phi), found, "Eq. 4: j1 is the first row, j2 the first column", 0)
    turned = patch_op.patch(x.transpose(-1, -2), phi_of((6, 0, 2)))
    agree(turned.transpose(-1, -2), found, "Eq. 4: the transposed image, j1 and j2 swapped", 1e-13)


def test_a_mirrored_crop_is_the_mirrored_result():
    """Fails for align_corners, and for anything else that is off by a fraction of a pixel."""
    x = noise(1, 1, 8, 8)
    mirrored = patch_op.patch(x.flip(-1), phi_of((5, 1, 8 - 5 - 2)))
    agree(mirrored.flip(-1), patch_op.patch(x, phi_of((5, 1, 2))), EQ4, 1e-13)


def test_every_image_has_its_own_crop():
    x, phi = noise(1, 1, 8, 8).repeat(3, 1, 1, 1), phi_of((6, 0, 0), (6, 2, 1), (7, 1, 0))
    together = patch_op.patch(x, phi)
    for n in range(3):
        alone = patch_op.patch(x[n:n + 1], patch_op.Phi(*(v[n:n + 1] for v in phi)))
        agree(together[n:n + 1], alone, f"{EQ4}, here image {n} of the batch", 1e-14)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_shape_and_dtype_are_kept_and_wrong_shapes_refused():
    phi = phi_of((5, 0, 0))
    assert patch_op.patch(torch.rand(1, 3, 6, 6), phi).dtype == torch.float32
    for wrong in (torch.rand(1, 1, 6, 7), torch.rand(2, 1, 6, 6)):
        with pytest.raises(ValueError, match="square images and one phi each"):
            patch_op.patch(wrong, phi)


def test_patches_stay_float32_under_bfloat16():
    x, phi = noise(2, 1, 8, 8).float(), phi_of((6, 0, 2), (7, 1, 0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = patch_op.patch(x, phi)
    assert torch.equal(rough, patch_op.patch(x, phi)), f"{EQ4}, in float32 under autocast"


# ---------------------------------------------------------------- python patch_op.py

def test_the_drawing_shows_the_squares_that_were_cut(monkeypatch, tmp_path):
    image = np.add.outer(3 * np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["patch_op.py", "a.png"])
    figures = []
    with mock.patch.object(Figure, "savefig",
                           lambda figure, place, **_: figures.append(figure) or place.touch()):
        patch_op.main()
    rows = np.array(figures[0].axes).reshape(3, 3)
    for (whole, crop, zoomed), size in zip(rows, (179, 217, 256)):  # 70, 85 and 100 % of 256
        (left, top), square = whole.patches[0].get_xy(), whole.patches[0]
        assert square.get_width() == square.get_height() == size
        assert 0 <= left <= 256 - size and 0 <= top <= 256 - size
        x = np.asarray(whole.images[0].get_array())
        shown = np.asarray(crop.images[0].get_array())
        assert np.array_equal(shown, x[top:top + size, left:left + size])
        expected = patch_op.patch(torch.from_numpy(x)[None, None], phi_of((size, top, left)))
        agree(zoomed.images[0].get_array().data, expected[0, 0], f"{EQ4}, as drawn", 1e-4)


def drawn_by_main(*words):
    """The whole images that `python patch_op.py` draws, one a row."""
    figures = []
    with (mock.patch("sys.argv", ["patch_op.py", *words]),
          mock.patch("run.replace_file", lambda path, write: figures.append((path, write)))):
        patch_op.main()
    (path, write), = figures
    assert path == "patch_op.png"
    with mock.patch.object(Figure, "savefig", lambda figure, *_, **__: figures.append(figure)):
        write(path)
    rows = np.array(figures[1].axes).reshape(3, 3)
    return [np.asarray(row[0].images[0].get_array()) for row in rows]


def test_without_a_picture_the_drawing_shows_a_phantom_and_with_one_that():
    expected = phantoms(1, 256)[0][0]
    assert all(np.array_equal(image, expected) for image in drawn_by_main())
    with tempfile.TemporaryDirectory() as folder:
        wide = np.random.default_rng(0).integers(0, 256, (128, 256)).astype(np.uint8)
        Image.fromarray(wide).save(f"{folder}/a.png")
        for image in drawn_by_main(f"{folder}/a.png"):
            assert np.array_equal(image[64:192], wide)
            assert (image[:64] == wide.min()).all() and (image[192:] == wide.min()).all()


def test_a_picture_that_cannot_be_read_ends_in_one_sentence():
    with mock.patch("sys.argv", ["patch_op.py", "none.png"]):
        assert "none.png: cannot be read as an image (no file)" in refused(patch_op.main)
