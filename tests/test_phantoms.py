"""The artificial heads: the same every time, one anatomy in two contrasts, other people each."""
import os
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import data
import phantoms
from data import phantom_slices


def grey(images):
    return np.rint(images.clip(0, 255)).astype(np.uint8)


def alike(one, other):
    return np.corrcoef(one.flatten(), other.flatten())[0, 1]


# ---------------------------------------------------------------- arrays

def test_phantoms_are_the_same_every_time_and_others_with_another_seed():
    one, again, other = (phantoms.phantoms(2, 32, slices=2, seed=seed) for seed in (0, 0, 1))
    for contrast in (0, 1):
        assert one[contrast].dtype == np.uint8 and one[contrast].shape == (4, 32, 32)
        assert np.array_equal(one[contrast], again[contrast])
        assert all((u != v).mean() > 0.2 for u, v in zip(one[contrast], other[contrast]))


def test_phantoms_touch_no_random_numbers_of_others():
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    phantoms.phantoms(1, 32, slices=1)
    assert np.array_equal(np.random.random(4), expected)


def test_a_subject_is_the_same_in_a_crowd_and_its_slices_stand_in_a_row():
    t1, t2 = phantoms.phantoms(3, 32, slices=2, seed=5)
    for subject in range(3):
        alone = phantoms.subject_slices(subject, 32, 2, seed=5)
        assert alone.shape == (2, 2, 32, 32)
        rows = slice(2 * subject, 2 * subject + 2)
        assert np.array_equal(t1[rows], grey(alone[0])) and np.array_equal(t2[rows], grey(alone[1]))


def test_values_beyond_the_grey_levels_are_clipped_and_others_rounded():
    values = np.array([-3., .4, .6, 254.6, 300]).reshape(1, 1, 5).repeat(2, 0)[:, None]
    with mock.patch.object(phantoms, "subject_slices", lambda *_: values):
        for images in phantoms.phantoms(1, 32, slices=1):
            assert images.flatten().tolist() == [0, 0, 1, 255, 255]


def test_people_differ_and_so_do_the_slices_of_one():
    t1, _ = phantoms.phantoms(4, 64, slices=1, seed=0)
    for k in range(4):
        for other in range(k):
            assert (np.abs(t1[k].astype(int) - t1[other]) > 20).mean() > 0.1
    t1, _ = phantoms.phantoms(1, 64, slices=6, seed=0)
    assert all((np.abs(u.astype(int) - v) > 20).mean() > 0.05 for u, v in zip(t1, t1[1:]))


def test_t1_and_t2_of_a_slice_show_one_anatomy():
    """Whoever knows T1's tissue knows T2: its own T2 varies less where T1 is about constant than
    the T2 of another subject does. Both are drawn from one map of tissues, so that the borders of
    the one are borders of the other."""
    def left_over(x, y):
        """The part of y's variance that no function of x explains."""
        bins = (x // 12).flatten()
        sums, counts = np.bincount(bins, y.flatten()), np.maximum(np.bincount(bins), 1)
        return (y.flatten() - (sums / counts)[bins]).var() / y.var()
    t1, t2 = phantoms.phantoms(4, 64, slices=2, seed=0)
    for k in range(8):
        own = left_over(t1[k], t2[k].astype(float))
        strangers = [left_over(t1[k], t2[other].astype(float)) for other in range(8)
                     if other // 2 != k // 2]
        assert own < 0.5 * min(strangers), (own, strangers)
    labels = []

    def flat_head(z, side, fields):
        labels.append(np.zeros((side, side), int))
        labels[-1][:, side // 2:] = 3
        return labels[-1]
    with mock.patch.object(phantoms, "head", flat_head):
        t1, t2 = phantoms.phantoms(1, 64, slices=2)
    assert len(labels) == 2  # one map for both
    for images in (t1, t2):
        left, right = images[:, :, :32].astype(float), images[:, :, 32:].astype(float)
        assert left.max() < 30 < 50 < right[:, :, 1:].mean()


def test_a_phantom_looks_the_same_at_every_size():
    small, large = (phantoms.phantoms(3, size, slices=2) for size in (64, 128))
    for contrast in (0, 1):
        shrunk = large[contrast].astype(float).reshape(6, 64, 2, 64, 2).mean(axis=(2, 4))
        assert min(map(alike, small[contrast], shrunk)) > 0.97


def noise_and_scale(subject, size, slices):
    """The noise of a subject's T2, and the Laplace scale that it was drawn with: drawn a second
    time, so that all else stays the same, and left out."""
    scales = []

    class Silent(np.random.Generator):
        def laplace(self, loc, scale):
            scales.append(scale)
            return 0 * super().laplace(loc, scale)
    _, noisy = phantoms.subject_slices(subject, size, slices, seed=0)
    with mock.patch.object(np.random, "default_rng",
                           lambda seed: Silent(np.random.PCG64(seed))):
        _, clean = phantoms.subject_slices(subject, size, slices, seed=0)
    return noisy - clean, np.stack(scales)


def test_the_noise_of_t2_has_the_scale_of_its_tissue():
    difference, scale = noise_and_scale(3, 64, 4)
    assert scale.shape == difference.shape
    for low, high in ((0.5, 1), (2, 4), (6, 9), (12, 16)):
        here = (scale >= low) & (scale < high)
        assert here.sum() > 100
        # E|Laplace(0,s)| = s
        assert np.abs(difference)[here].mean() == pytest.approx(scale[here].mean(), rel=0.12)


def test_the_noise_of_t1_is_gaussian_with_one_per_cent_of_the_range():
    flat = dict(T1=np.ones(6) / 2, head=lambda *_: np.zeros((128, 128), int),
                smooth_field=lambda rng, cells, side: np.zeros((side, side)))
    with mock.patch.multiple(phantoms, **flat):
        t1, _ = phantoms.subject_slices(0, 64, 4, seed=0)
    assert t1.std() == pytest.approx(2.55, rel=0.05)
    centred = (t1 - t1.mean()) / t1.std()
    assert (centred ** 4).mean() == pytest.approx(3, abs=0.3)  # of a Laplace distribution: 6


def test_each_contrast_of_a_phantom_has_its_own_bias_field():
    flat = dict(T1=np.ones(6) / 2, T2=np.ones(6) / 2, NOISE=np.zeros(6))
    with mock.patch.multiple(phantoms, **flat, head=lambda *_: np.zeros((128, 128), int)):
        for subject in range(3):
            t1, t2 = phantoms.subject_slices(subject, 64, 1, seed=0)
            assert alike(t1, t2) < 0.9


def test_phantom_contrasts_invert_white_matter_and_fluid():
    x, y = (images[-3:].astype(float) for images in phantoms.phantoms(5, 64, slices=3))
    assert alike(x, y) < 0.8
    assert y[(x > 65) & (x < 75)].mean() > 120  # the fluid, dark in T1, is bright in T2


# ---------------------------------------------------------------- a data set of them

def test_phantom_slices_put_other_people_into_each_set():
    slices = phantom_slices(32, subjects=5, slices=2, seed=0)
    assert [images.shape for images in slices[:4]] == [(n, 32, 32) for n in (10, 10, 2, 2)]
    assert all(images.dtype == np.uint8 for images in slices[:4])
    assert [len(slices.names[s]) for s in data.SETS] == [10, 10, 2, 2]
    people = [{data.patient(name) for name in slices.names[s]}
              for s in ("input", "target", "evaluation_input")]
    assert [len(some) for some in people] == [5, 5, 1]
    assert len(set.union(*people)) == sum(map(len, people)) == 11
    assert slices.names["evaluation_input"] == slices.names["evaluation_target"]
    everybody = slices.names["input"] + slices.names["target"] + slices.names["evaluation_input"]
    assert everybody == [f"phantom{subject:03d}_{k:02d}" for subject in range(11) for k in (0, 1)]
    default = phantom_slices(8)
    assert [len(images) for images in default[:4]] == [240, 240, 48, 48]


def test_phantom_slices_hand_out_their_subjects_in_order():
    slices = phantom_slices(64, 3, 2)
    t1, t2 = phantoms.phantoms(7, 64, 2)
    for images, expected in zip(slices[:4], (t1[:6], t2[6:12], t1[12:], t2[12:]), strict=True):
        assert np.array_equal(images, expected)
    again, other = (phantom_slices(64, 3, 2, seed=seed) for seed in (0, 1))
    assert all(np.array_equal(u, v) for u, v in zip(slices[:4], again[:4]))
    assert not any(np.array_equal(u, v) for u, v in zip(slices[:4], other[:4]))


def test_the_word_phantom_is_a_data_set():
    made = []

    def few(size):
        made.append(phantom_slices(size, subjects=1, slices=1))
        return made[-1]
    with mock.patch.object(data, "phantom_slices", few):
        assert data.load("phantom", 16) is made[0] and made[0].input.shape == (1, 16, 16)


# ---------------------------------------------------------------- python phantoms.py

def test_the_program_draws_three_people_in_both_contrasts():
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            small = phantoms.phantoms(3, 16)
            with (mock.patch("sys.argv", ["phantoms.py"]),
                  mock.patch.object(phantoms, "phantoms", lambda *_: small)):
                phantoms.main()
            assert os.listdir() == ["phantoms.png"]
            assert min(Image.open(Path("phantoms.png")).size) > 300
        finally:
            os.chdir(before)
