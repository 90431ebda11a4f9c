"""What nobody thought of: the same promises over shapes, values and bytes that a machine chooses,
the same ones every time."""
import io
from functools import cache
from tempfile import TemporaryDirectory
from pathlib import Path

import h5py
import numpy as np
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

import data
from evaluate import SCENARIOS, perturb, psnr, ssim
from oracles import naive_patch
from patch_op import Phi, patch, sample_phi
from uncertainty import pearson

some = settings(derandomize=True, deadline=None, max_examples=40, database=None)
seeds = st.integers(0, 2 ** 32 - 1)
TYPES = st.sampled_from((torch.float32, torch.float64))


def noise(shape, seed, dtype=torch.float64):
    stream = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(shape, generator=stream, dtype=torch.float64) - 1).to(dtype)


@st.composite
def batches(draw, dtype=TYPES, sides=st.integers(8, 40)):
    """Images [b,c,d,d] and phi from the whole of its range, all its ends among them."""
    b, c, d = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(sides)
    sizes = [draw(st.integers(int(0.7 * d), d)) for _ in range(b)]
    offsets = [[draw(st.integers(0, d - size)) for size in sizes] for _ in range(2)]
    x = noise((b, c, d, d), draw(seeds), draw(dtype))
    return x, Phi(*map(torch.tensor, (sizes, *offsets)))


def close(one, other):
    """Equal up to the rounding of some hundred sums of numbers about 1."""
    assert one.dtype == other.dtype and one.shape == other.shape
    assert (one - other).abs().max() < (1e-4 if one.dtype == torch.float32 else 1e-12)


# ---------------------------------------------------------------- the patch operator

@some
@given(batches(sides=st.integers(2, 9)))
def test_any_patch_equals_the_naive_loop(batch):
    x, phi = batch
    close(patch(x, phi), naive_patch(x.double(), phi).to(x.dtype))


@some
@given(batches())
def test_every_gradient_is_finite_and_stays_within_the_crop(batch):
    x, phi = batch
    x.requires_grad_()
    patch(x, phi).square().sum().backward()
    for grad, size, j1, j2 in zip(x.grad, *phi):
        assert grad.isfinite().all()
        grad[:, j1:j1 + size, j2:j2 + size] = 0
        assert not grad.any()


@some
@given(st.integers(1, 50), st.integers(1, 600), seeds)
def test_every_phi_lies_within_its_image(b, d, seed):
    size, j1, j2 = sample_phi(b, d, torch.Generator().manual_seed(seed))
    assert (int(0.7 * d + 1e-9) <= size).all() and (size <= d).all()
    for j in (j1, j2):
        assert (0 <= j).all() and (j <= d - size).all()


# ---------------------------------------------------------------- files

RAMP = np.arange(12 * 12, dtype=np.uint8).reshape(12, 12)


@cache
def real_files():
    """[(ending, bytes)]: one of every kind that data.py reads."""
    files = []
    for ending, options in ((".png", {}), (".jpg", {}), (".tif", {}),
                            (".tif", {"compression": "tiff_lzw"}), (".png", {"bits": 4})):
        for mode in ("L", "RGB", "P"):
            if (ending, mode) != (".jpg", "P"):
                file = io.BytesIO()
                kind = Image.registered_extensions()[ending]
                Image.fromarray(RAMP).convert(mode).save(file, kind, **options)
                files.append((ending, file.getvalue()))
    for values in (RAMP, 99 * RAMP.astype(np.uint16), RAMP.astype(np.int32), RAMP / np.float32(9)):
        for options in ({}, {"compression": "tiff_lzw"}):
            for tags in ({274: 6}, {262: 0}):  # turned; white is 0
                if 262 not in tags or values.dtype != np.int32:
                    file = io.BytesIO()
                    Image.fromarray(values).save(file, "TIFF", tiffinfo=tags, **options)
                    files.append((".tif", file.getvalue()))
    for values in (RAMP, RAMP.astype(np.float32), np.asfortranarray(RAMP.astype(">i2"))):
        file = io.BytesIO()
        np.save(file, values)
        files.append((".npy", file.getvalue()))
    return files


@cache
def real_h5s():
    plain, packed = io.BytesIO(), io.BytesIO()
    checked = {"compression": "gzip", "fletcher32": True}
    for place, options, names in ((plain, {}, ["a_1", "b_2"]),
                                  (packed, checked, np.array([b"a_1", b"b_2"]))):
        with h5py.File(place, "w") as file:
            for which in data.SETS:
                file.create_dataset(which, data=np.stack([RAMP] * 2), **options)
                file.create_dataset(f"{which}_names", data=names)
    return [(".h5", plain.getvalue()), (".h5", packed.getvalue())]


@st.composite
def damaged(draw, files):
    """A real file with some bytes changed, cut out or doubled, and perhaps without its end."""
    ending, content = draw(st.sampled_from(files()))
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1) | st.integers(0, min(150, len(content) - 1)))
        length = draw(st.sampled_from((1, 1, 2, 4, 8)))
        changed = st.binary(min_size=length, max_size=length)
        content[at:at + length] = draw(changed | st.sampled_from((b"", b"\xff" * 4, bytes(8))))
    return ending, bytes(content[:draw(st.just(None) | st.integers(0, len(content)))])


foreign = st.tuples(st.sampled_from(data.ENDINGS), st.binary(max_size=60))
HEADS = ((".png", b"\x89PNG\r\n\x1a\n"), (".jpg", b"\xff\xd8\xff"),
         (".tif", b"II*\0\x08\0\0\0"), (".npy", b"\x93NUMPY\x01\0"))
headed = st.sampled_from(HEADS).flatmap(
    lambda kind: st.binary(max_size=60).map(lambda rest: (kind[0], kind[1] + rest)))


@settings(some, max_examples=400)
@given(foreign | headed | damaged(real_files))
def test_any_bytes_are_an_image_or_refused_in_one_sentence(file):
    ending, content = file
    with TemporaryDirectory() as folder:
        path = Path(folder, f"x{ending}")
        path.write_bytes(content)
        try:
            grey = data.read_grey(path)
        except ValueError as refusal:
            assert str(refusal).startswith(f"{path}: ")
        else:
            assert type(grey) is np.ndarray and grey.dtype == np.uint8 and grey.ndim == 2
            assert 2 <= min(grey.shape) <= max(grey.shape) <= 8192


@settings(some, max_examples=150)
@given(st.tuples(st.just(".h5"), st.binary(max_size=60)) | damaged(real_h5s))
def test_any_h5_is_a_set_of_images_or_refused_with_exit_code_2(file):
    with TemporaryDirectory() as folder:
        path = Path(folder, "x.h5")
        path.write_bytes(file[1])
        try:
            images, names = data.read_h5(path, 8, data.SETS)
        except SystemExit as end:
            assert end.code == 2
        else:
            assert all(len(images[s]) == len(names[s]) for s in data.SETS)
            for image in (image for s in data.SETS for image in images[s]):
                assert image.shape == (8, 8) and image.dtype == np.uint8


@some
@given(st.sampled_from("? u1 >u2 u4 u8 i1 <i2 i4 >i8 f2 f4 >f8".split()), st.integers(2, 20),
       st.integers(2, 20), seeds, st.booleans())
def test_any_image_of_numbers_is_spread_over_all_grey_levels(dtype, h, w, seed, extreme):
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    bits = rng.integers(0, 256, h * w * dtype.itemsize, dtype=np.uint8).tobytes()
    values = rng.uniform(0, 99, (h, w)).astype(dtype)
    if extreme and dtype.kind != "b":
        values = np.frombuffer(bits, dtype).reshape(h, w)
    try:
        grey = data.to_grey_levels(values, "x")
    except ValueError as refusal:
        assert "NaN" in str(refusal) and extreme and dtype.kind == "f"
    else:
        assert grey.shape == (h, w) and grey.dtype == np.uint8
        if dtype == np.uint8:
            assert np.array_equal(grey, values)
        else:
            assert (grey.min(), grey.max()) == ((0, 255) if values.min() < values.max() else (0, 0))
            in_order = grey.flatten()[values.argsort(axis=None)].astype(int)
            assert (np.diff(in_order) >= 0).all()


@settings(some, max_examples=150)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 64), seeds, st.booleans())
def test_any_image_fits_any_size_without_wrapping_around(h, w, size, seed, harsh):
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.integers(0, 256, 2))
    grey = rng.integers(0, 2, (h, w)) * 255 if harsh else rng.integers(low, high + 1, (h, w))
    grey = grey.astype(np.uint8)
    out, side = data.to_square(grey, size), max(h, w)
    assert out.shape == (size, size) and out.dtype == np.uint8
    square = np.full((side, side), grey.min())
    square[(side - h) // 2:(side - h) // 2 + h, (side - w) // 2:(side - w) // 2 + w] = grey
    if size <= side:
        assert grey.min() <= out.min() and out.max() <= grey.max()  # means of boxes
    if size == side:
        assert np.array_equal(out, square)
    if size >= side:  # bicubic overshoots, but a wrapped 256 or -1 is far off what bilinear shows
        near = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
        near = np.asarray(near).astype(int)
        assert np.abs(out - near).max() <= 0.5 * (int(grey.max()) - int(grey.min())) + 1


# ---------------------------------------------------------------- metrics

@st.composite
def pairs(draw):
    n, dtype = draw(st.integers(1, 2)), draw(TYPES)
    h, w = draw(st.integers(11, 24)), draw(st.integers(11, 24))
    kind = st.sampled_from((lambda v: 127.5 * v + 127.5, lambda v: 255.0 * (v > 0),
                            lambda v: (v > 2) * 1.0, lambda v: 255 - v.abs()))
    return [draw(kind)(noise((n, 1, h, w), draw(seeds))).to(dtype) for _ in range(2)]


@some
@given(pairs())
def test_ssim_is_symmetric_within_one_and_one_for_equal_images(pair):
    a, b = pair
    assert (ssim(a, b).abs() <= 1 + 1e-5).all() and torch.allclose(ssim(a, b), ssim(b, a))
    assert torch.allclose(ssim(a, a), torch.ones_like(a[:, 0, 0, 0]))


@some
@given(pairs())
def test_psnr_is_symmetric_infinite_for_equal_images_and_0_at_worst(pair):
    a, b = pair
    assert torch.equal(psnr(a, b), psnr(b, a)) and (psnr(a, b) >= 0).all()
    assert psnr(a, a).isinf().all()


@some
@given(pairs(), st.sampled_from(SCENARIOS), seeds)
def test_perturbed_images_stay_in_range_and_come_from_the_generator_alone(pair, scenario, seed):
    x, before = pair[0], pair[0].clone()
    one, again = (perturb(x, scenario, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, again) and torch.equal(x, before)
    assert one.shape == x.shape and one.dtype == x.dtype
    assert (0 <= one).all() and (one <= 255).all()


@settings(some, max_examples=200)
@given(st.integers(2, 20).flatmap(lambda n: st.tuples(*[st.lists(
    st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=n, max_size=n)] * 2)))
def test_pearson_is_within_one_or_undefined(lists):
    value = pearson(*lists)
    assert value is None or -1 - 1e-9 <= value <= 1 + 1e-9
