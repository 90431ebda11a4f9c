"""Sec. 4.1: every layout and file kind arrives as the same grey levels, pairs stay pairs, batches are drawn honestly."""
import os
from pathlib import Path
from unittest.mock import patch as replaced

import numpy as np
import pytest
import torch
from PIL import Image

import data

SLICES = os.environ.get("IXI_SLICES")
RAMP = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)


def write(path, values=RAMP, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path, **options)


def authors_folder(root, n=3):
    for k in range(n):
        write(root / "input" / f"A{k}_000_t1.png", RAMP + k)
        write(root / "target" / f"B{k}_000_t2.png", RAMP + 10 + k)
        write(root / "evaluation" / f"C{k}_000_input.png", RAMP + 20 + k)
        write(root / "evaluation" / f"C{k}_000_target.png", RAMP + 30 + k)
    return root


def failing(capsys, call, *arguments):
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.splitlines()[-1].startswith("error: ")
    return error


# ---------------------------------------------------------------- one image

def test_8_bit_files_arrive_as_they_are(tmp_path):
    for name in ("a.png", "a.tif", "a.tiff", "a.npy"):
        write(tmp_path / name)
        assert np.array_equal(data.read_grey(tmp_path / name), RAMP)
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    write(tmp_path / "a.jpg", smooth, quality=95)
    assert np.abs(data.read_grey(tmp_path / "a.jpg").astype(int) - smooth).max() <= 3


def test_16_bit_and_float_are_scaled_from_their_own_smallest_to_their_largest_value(tmp_path, capsys):
    data.say_once.cache_clear()
    wide = np.linspace(1000, 5080, 64 * 64).reshape(64, 64)
    expected = np.rint((wide - 1000) / 16).astype(np.uint8)
    for name, values in (("a.png", wide.astype(np.uint16)), ("a.tif", wide.astype(np.float32)), ("a.npy", wide), ("b.npy", -wide[::-1, ::-1])):
        write(tmp_path / name, values)
        assert np.abs(data.read_grey(tmp_path / name).astype(int) - expected).max() <= 1
    assert capsys.readouterr().err.count("scaled one by one") == 1  # stated once
    write(tmp_path / "flat.npy", np.full((64, 64), 7.0))
    assert (data.read_grey(tmp_path / "flat.npy") == 0).all()


def test_colour_becomes_grey_by_its_luminance(tmp_path):
    colour = np.zeros((64, 64, 3), np.uint8)
    colour[..., 1] = 200
    write(tmp_path / "a.png", colour)
    assert (data.read_grey(tmp_path / "a.png") == round(0.587 * 200)).all()


def test_what_is_not_one_finite_grey_image_is_refused_by_name(tmp_path):
    nan = np.zeros((64, 64))
    nan[3, 3] = np.nan
    write(tmp_path / "nan.npy", nan)
    write(tmp_path / "volume.npy", np.zeros((4, 64, 64)))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    write(tmp_path / "rgba.png", np.zeros((64, 64, 4), np.uint8))
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    write(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    Image.fromarray(RAMP).save(tmp_path / "frames.tif", save_all=True, append_images=[Image.fromarray(RAMP)])
    for name in ("nan.npy", "volume.npy", "object.npy", "rgba.png", "text.png", "empty.jpg", "half.jpg", "frames.tif"):
        with pytest.raises(ValueError, match=name):
            data.read_grey(tmp_path / name)


def test_padding_is_centred_and_uses_the_images_own_minimum():
    image = np.full((10, 20), 50, np.uint8)
    image[0, 0] = 7
    square = data.fit(image, 20)
    assert (square[5:15] == image).all() and (square[:5] == 7).all() and (square[15:] == 7).all()
    assert (data.fit(image.T, 20)[:, 5:15] == image.T).all()


def test_shrinking_averages_boxes_and_growing_is_pillows_bicubic():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 128)).astype(np.uint8)
    boxes = image.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert np.abs(data.fit(image, 64) - boxes).max() <= 1  # Pillow rounds after either axis
    assert np.array_equal(data.fit(image, 192), np.asarray(Image.fromarray(image).resize((192, 192), Image.Resampling.BICUBIC)))
    assert np.array_equal(data.fit(image, 128), image)


# ---------------------------------------------------------------- data sets

def test_the_authors_layout(tmp_path, capsys):
    slices = data.load(authors_folder(tmp_path), 64)
    assert [len(images) for images in slices[:4]] == [3, 3, 3, 3]
    for k in range(3):
        for images, offset in zip(slices[:4], (0, 10, 20, 30)):
            assert np.array_equal(images[k], RAMP + offset + k)
    assert slices.names["input"][1] == "A1_000_t1" and slices.names["evaluation_target"][2] == "C2_000"
    printed = capsys.readouterr().out
    assert "3 slices of    3 patients" in printed and "range 0..255" in printed


def test_cyclegans_layout_pairs_by_name(tmp_path):
    for k in range(2):
        write(tmp_path / "trainA" / f"a{k}.png")
        write(tmp_path / "trainB" / f"b{k}.png")
    for name, k in (("p", 1), ("q", 2), ("only_a", 3)):
        write(tmp_path / "testA" / f"{name}.png", RAMP + k)
    for name, k in (("q", 12), ("p", 11), ("only_b", 13)):
        write(tmp_path / "testB" / f"{name}.jpg" if name == "only_b" else tmp_path / "testB" / f"{name}.png", RAMP + k)
    slices = data.load(tmp_path, 64)
    assert slices.names["evaluation_input"] == slices.names["evaluation_target"] == ["p", "q"]
    assert np.array_equal(slices.evaluation_target - slices.evaluation_input, np.full((2, 64, 64), 10, np.uint8))


def test_cyclegans_layout_without_equal_names_is_unpaired(tmp_path):
    for folder in ("trainA", "trainB", "testA"):
        write(tmp_path / folder / "x.png")
    assert len(data.load(tmp_path, 64).evaluation_target) == 0
    write(tmp_path / "testB" / "y.png")
    slices = data.load(tmp_path, 64)
    assert len(slices.evaluation_target) == 0 and len(slices.evaluation_input) == 1


def test_h5_returns_what_was_written_whole(tmp_path):
    slices = data.load(authors_folder(tmp_path / "folder"), 64)
    data.write_h5(tmp_path / "all.h5", slices)
    again = data.load(tmp_path / "all.h5", 64)
    assert all(np.array_equal(one, other) for one, other in zip(slices[:4], again[:4])) and slices.names == again.names
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
    assert data.load(tmp_path / "all.h5", 128).input.shape == (3, 128, 128)


def test_evaluation_needs_no_training_slices(tmp_path):
    authors_folder(tmp_path)
    for folder in ("input", "target"):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
    slices = data.load(tmp_path, 64, ("evaluation_input", "evaluation_target"))
    assert len(slices.input) == 0 and len(slices.evaluation_input) == len(slices.evaluation_target) == 3


def test_unreadable_files_are_named_counted_and_left_out_with_their_partner(tmp_path, capsys):
    authors_folder(tmp_path)
    for name in ("input/A1_000_t1.png", "evaluation/C2_000_target.png"):
        (tmp_path / name).write_text("broken")
    slices = data.load(tmp_path, 64)
    assert [len(images) for images in slices[:4]] == [2, 3, 2, 2]
    assert slices.names["evaluation_input"] == ["C0_000", "C1_000"]
    error = capsys.readouterr().err
    assert "A1_000_t1.png" in error and "C2_000_target.png" in error and "skipped 2 of 9" in error


def test_a_patient_in_two_sets_is_warned_of(tmp_path, capsys):
    authors_folder(tmp_path)
    data.load(tmp_path, 64)
    assert "warning" not in capsys.readouterr().err
    write(tmp_path / "target" / "A1_005_t2.png")
    write(tmp_path / "input" / "C0_005_t1.png")
    data.load(tmp_path, 64)
    error = capsys.readouterr().err
    assert "both input and target, A1" in error and "both input and evaluation_input, C0" in error


def test_wrong_data_end_in_one_sentence(tmp_path, capsys):
    assert "no such folder" in failing(capsys, data.load, tmp_path / "none", 64)
    assert "no readable image for input" in failing(capsys, data.load, tmp_path, 64)
    authors_folder(tmp_path)
    (tmp_path / "evaluation" / "C1_000_target.png").unlink()
    assert "C1_000 first" in failing(capsys, data.load, tmp_path, 64)
    for path in (tmp_path / "target").iterdir():
        path.unlink()
    (tmp_path / "evaluation" / "C1_000_input.png").unlink()
    assert "no readable image for target" in failing(capsys, data.load, tmp_path, 64)
    (tmp_path / "text.h5").write_text("no")
    assert "is not an .h5 of slices" in failing(capsys, data.load, tmp_path / "text.h5", 64)


def test_the_order_of_files_on_disk_does_not_matter(tmp_path):
    for k in reversed(range(5)):
        write(tmp_path / "input" / f"A{k}_000.png", RAMP + k)
        write(tmp_path / "target" / f"B{k}_000.png", RAMP + k)
    assert [image[0, 0] for image in data.load(tmp_path, 64).input] == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not SLICES, reason="IXI_SLICES is not set: the place of the authors' sample slices")
def test_the_authors_slices_have_disjoint_patients_and_one_size(capsys):
    slices = data.load(Path(SLICES), 64)
    people = {s: {data.patient(name) for name in slices.names[s]} for s in data.SETS}
    assert people["evaluation_input"] == people["evaluation_target"]
    assert not people["input"] & people["target"] and not (people["input"] | people["target"]) & people["evaluation_input"]
    assert "warning" not in capsys.readouterr().err and min(map(len, slices[:4])) > 0


# ---------------------------------------------------------------- batches

def test_grey_levels_map_onto_minus_one_to_one():
    assert data.to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == [-1.0, pytest.approx(-0.6), 1.0]


def test_draws_are_with_replacement_uniform_and_from_the_generator_alone():
    piles = data.to_device(np.arange(10, dtype=np.uint8)[:, None, None].repeat(64, 1).repeat(64, 2), "cpu")
    state = torch.get_rng_state()
    one, again = (data.draw(piles, 4000, torch.Generator().manual_seed(3), "cpu") for _ in range(2))
    assert one.shape == (4000, 1, 64, 64) and one.dtype == torch.float32 and torch.equal(one, again)
    counts = torch.bincount(((one[:, 0, 0, 0] + 1) * 127.5).round().long(), minlength=10)
    assert (counts / 4000 - 0.1).abs().max() < 0.02 and torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------- phantoms

def test_phantoms_are_the_same_every_time_with_disjoint_people():
    one, again, other = (data.phantoms(64, subjects=5, slices=2, seed=s) for s in (0, 0, 1))
    assert all(np.array_equal(u, v) for u, v in zip(one[:4], again[:4])) and not np.array_equal(one.input, other.input)
    assert [len(images) for images in one[:4]] == [10, 10, 2, 2]
    people = [{data.patient(n) for n in one.names[s]} for s in ("input", "target", "evaluation_input")]
    assert len(set.union(*people)) == sum(map(len, people)) == 11


def test_a_phantom_looks_the_same_at_every_size():
    small, large = (data.phantoms(size, subjects=1, slices=2).evaluation_input[1].astype(float) for size in (64, 128))
    shrunk = large.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert np.corrcoef(small.flatten(), shrunk.flatten())[0, 1] > 0.97


class Silent(np.random.Generator):
    """A generator whose Laplace noise is drawn, so that all else stays the same, and then left out."""

    def laplace(self, loc, scale):
        return 0 * super().laplace(loc, scale)


def test_phantom_noise_has_the_scale_that_is_given_with_it():
    _, noisy, scale = data.phantom_subject(3, 64, 4, seed=0)
    with replaced.object(np.random, "default_rng", lambda seed: Silent(np.random.PCG64(seed))):
        _, clean, _ = data.phantom_subject(3, 64, 4, seed=0)
    for low, high in ((0.5, 1), (2, 4), (6, 9), (12, 16)):
        here = (scale >= low) & (scale < high)
        assert here.sum() > 100
        assert np.abs(noisy - clean)[here].mean() == pytest.approx(scale[here].mean(), rel=0.12)  # E|Laplace(0,s)| = s


def test_phantom_contrasts_invert_white_matter_and_fluid():
    slices = data.phantoms(64, subjects=2, slices=3)
    x, y = slices.evaluation_input.astype(float), slices.evaluation_target.astype(float)
    assert np.corrcoef(x.flatten(), y.flatten())[0, 1] < 0.8
    assert y[(x > 30) & (x < 60)].mean() > 120  # the fluid, dark in T1, is bright in T2


# ---------------------------------------------------------------- what planted mistakes got past the tests above

def test_scaling_rounds_to_the_nearest_grey_level(tmp_path):
    write(tmp_path / "a.npy", np.array([[0.0, 0.6], [254.4, 255.0]]))
    assert data.read_grey(tmp_path / "a.npy").tolist() == [[0, 1], [254, 255]]


def test_a_palette_is_looked_up(tmp_path):
    picture = Image.fromarray(np.full((64, 64), 3, np.uint8), "P")
    picture.putpalette([0, 0, 0, 50, 50, 50, 90, 90, 90, 200, 200, 200])
    picture.save(tmp_path / "a.png")
    assert (data.read_grey(tmp_path / "a.png") == 200).all()


def test_endings_in_capitals_count_and_hidden_files_do_not(tmp_path):
    write(tmp_path / "A.PNG")
    write(tmp_path / "B.tif")
    (tmp_path / "._B.tif").write_text("left by another system")
    assert list(data.images_in(tmp_path)) == ["A", "B"]


def test_a_target_patient_in_the_evaluation_is_warned_of(tmp_path, capsys):
    write(authors_folder(tmp_path) / "target" / "C1_005_t2.png")
    data.load(tmp_path, 64)
    assert "both target and evaluation_input, C1" in capsys.readouterr().err


def test_an_h5_of_16_bit_slices_is_scaled_as_files_are(tmp_path):
    slices = data.load(authors_folder(tmp_path / "folder"), 64)
    data.write_h5(tmp_path / "wide.h5", slices._replace(input=256 * slices.input.astype(np.uint16)))
    again = data.load(tmp_path / "wide.h5", 64)
    assert np.array_equal(again.input, slices.input) and np.array_equal(again.target, slices.target)


def test_data_py_packs_the_sets_as_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(authors_folder(tmp_path / "folder"))
    monkeypatch.setattr("sys.argv", ["data.py", ".", "--size", "64", "--h5", "../all.h5"])
    data.main()
    one, other = data.load(tmp_path / "folder", 64), data.load(tmp_path / "all.h5", 64)
    assert all(np.array_equal(u, v) for u, v in zip(one[:4], other[:4]))


def test_phantoms_hand_out_their_subjects_in_order_with_the_noise_of_the_evaluation():
    slices = data.phantoms(64, subjects=2, slices=2)
    subjects = [data.phantom_subject(k, 64, 2, seed=0) for k in range(5)]
    grey = lambda who, which: np.concatenate([np.rint(subjects[k][which].clip(0, 255)).astype(np.uint8) for k in who])
    assert np.array_equal(slices.input, grey((0, 1), 0)) and np.array_equal(slices.target, grey((2, 3), 1))
    assert np.array_equal(slices.evaluation_input, grey((4,), 0)) and np.array_equal(slices.evaluation_target, grey((4,), 1))
    assert np.array_equal(slices.noise, subjects[4][2].astype(np.float32))


def test_each_contrast_of_a_phantom_has_its_own_bias_field():
    with replaced.multiple(data, T1=np.ones(6) / 2, T2=np.ones(6) / 2, NOISE=np.zeros(6)), replaced.object(data, "head", lambda *_: np.zeros((128, 128), int)):
        for subject in range(3):
            t1, t2, _ = data.phantom_subject(subject, 64, 1, seed=0)
            assert np.corrcoef(t1.flatten(), t2.flatten())[0, 1] < 0.9


def test_a_grid_shows_grey_levels_the_right_way_up():
    figures, image = [], np.full((64, 64), 100, np.uint8)
    with replaced.object(data.Figure, "savefig", lambda figure, *_, **__: figures.append(figure)):
        data.picture_grid("nowhere.png", [[image, (image, 50.0)]] * 1 + [[image, (image, 60.0)]], ["one", "map"])
    axes = [ax for ax in figures[0].axes if ax.images]
    shown = [ax.images[0] for ax in axes]
    assert [s.get_clim() for s in shown] == [(0, 255), (0, 50), (0, 255), (0, 60)] and {s.origin for s in shown} == {"upper"}
    assert [ax.get_title() for ax in axes] == ["one", "map", "", ""]
