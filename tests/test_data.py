"""Sec. 4.1: every layout and file kind arrives as the same grey levels, pairs stay pairs."""
import contextlib
import errno
import io
import os
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from unittest.mock import patch as replaced

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import data
from toys import refused

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


# ---------------------------------------------------------------- one image

def test_8_bit_files_arrive_as_they_are(tmp_path):
    for name in ("a.png", "a.tif", "a.tiff", "a.npy"):
        write(tmp_path / name)
        assert np.array_equal(data.read_grey(tmp_path / name), RAMP)
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    write(tmp_path / "a.jpg", smooth, quality=95)
    assert np.abs(data.read_grey(tmp_path / "a.jpg").astype(int) - smooth).max() <= 3


def test_a_palette_is_looked_up(tmp_path):
    picture = Image.fromarray(np.full((64, 64), 3, np.uint8), "P")
    picture.putpalette([0, 0, 0, 50, 50, 50, 90, 90, 90, 200, 200, 200])
    picture.save(tmp_path / "a.png")
    assert (data.read_grey(tmp_path / "a.png") == 200).all()


def test_16_bit_and_float_are_scaled_from_their_own_smallest_to_their_largest_value(tmp_path,
                                                                                    capsys):
    data.say_once.cache_clear()
    wide = np.linspace(1000, 5080, 64 * 64).reshape(64, 64)
    expected = np.rint((wide - 1000) / 16).astype(np.uint8)
    for name, values in (("a.png", wide.astype(np.uint16)), ("a.tif", wide.astype(np.float32)),
                         ("a.npy", wide), ("b.npy", -wide[::-1, ::-1])):
        write(tmp_path / name, values)
        assert np.abs(data.read_grey(tmp_path / name).astype(int) - expected).max() <= 1
    assert capsys.readouterr().err.count("scaled one by one") == 1  # stated once
    write(tmp_path / "flat.npy", np.full((64, 64), 7.0))
    assert (data.read_grey(tmp_path / "flat.npy") == 0).all()


def test_masks_and_signed_bytes_are_scaled_as_all_that_is_not_8_bit_grey():
    for values in (np.eye(4, dtype=bool), np.eye(4, dtype=np.int8) * 7 - 3):
        found = data.to_grey_levels(values, "x.npy")
        assert found.dtype == np.uint8 and set(found.flat) == {0, 255}, \
            f"Sec. 4.1: two values of {values.dtype} become {set(found.flat)}, asked for 0 and 255"


def test_scaling_rounds_to_the_nearest_grey_level(tmp_path):
    write(tmp_path / "a.npy", np.array([[0.0, 0.6], [254.4, 255.0]]))
    assert data.read_grey(tmp_path / "a.npy").tolist() == [[0, 1], [254, 255]]


def test_colour_becomes_grey_by_its_luminance_and_says_so_once(tmp_path, capsys):
    data.say_once.cache_clear()
    colour = np.zeros((64, 64, 3), np.uint8)
    colour[..., 1] = 200
    for name in ("a.png", "b.png"):
        write(tmp_path / name, colour)
        assert (data.read_grey(tmp_path / name) == round(0.587 * 200)).all()
    write(tmp_path / "grey.png")
    data.read_grey(tmp_path / "grey.png")
    assert capsys.readouterr().err.count("colour") == 1


def test_padding_is_centred_and_uses_the_images_own_minimum():
    image = np.full((10, 20), 50, np.uint8)
    image[0, 0] = 7
    square = data.to_square(image, 20)
    assert (square[5:15] == image).all() and (square[:5] == 7).all() and (square[15:] == 7).all()
    assert (data.to_square(image.T, 20)[:, 5:15] == image.T).all()


def test_of_an_odd_padding_the_larger_half_lies_below_and_on_the_right():
    image = np.full((64, 33), 200, np.uint8)
    image[0, 0] = 7
    for name, padded in (("columns", data.to_square(image, 64)),
                         ("rows", data.to_square(image.T, 64).T)):
        seen = np.flatnonzero((padded == 200).any(axis=0))
        assert (seen[0], seen[-1]) == (15, 47), \
            f"Sec. 4.1: 33 {name} in 64 lie at {seen[0]} to {seen[-1]}, asked for 15 to 47"


def test_shrinking_averages_boxes_and_growing_is_pillows_bicubic():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 128)).astype(np.uint8)
    boxes = image.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert np.abs(data.to_square(image, 64) - boxes).max() <= 1  # Pillow rounds after either axis
    grown = Image.fromarray(image).resize((192, 192), Image.Resampling.BICUBIC)
    assert np.array_equal(data.to_square(image, 192), np.asarray(grown))
    assert np.array_equal(data.to_square(image, 128), image)


# ---------------------------------------------------------------- data sets

def test_the_authors_layout(tmp_path, capsys):
    slices = data.load(authors_folder(tmp_path), 64)
    assert [len(images) for images in slices[:4]] == [3, 3, 3, 3]
    for k in range(3):
        for images, offset in zip(slices[:4], (0, 10, 20, 30)):
            assert np.array_equal(images[k], RAMP + offset + k)
    assert slices.names["input"][1] == "A1_000_t1"
    assert slices.names["evaluation_target"][2] == "C2_000"
    printed = capsys.readouterr().out
    assert "3 slices of    3 patients" in printed and "range 0..255" in printed


def test_endings_in_capitals_count_and_hidden_files_do_not(tmp_path):
    write(tmp_path / "A.PNG")
    write(tmp_path / "B.tif")
    (tmp_path / "._B.tif").write_text("left by another system")
    assert list(data.images_in(tmp_path)) == ["A", "B"]


def test_cyclegans_layout_pairs_by_name(tmp_path):
    for k in range(2):
        write(tmp_path / "trainA" / f"a{k}.png")
        write(tmp_path / "trainB" / f"b{k}.png")
    for name, k in (("p", 1), ("q", 2), ("only_a", 3)):
        write(tmp_path / "testA" / f"{name}.png", RAMP + k)
    for name, k in (("q", 12), ("p", 11), ("only_b", 13)):
        write(tmp_path / "testB" / (name + (".jpg" if name == "only_b" else ".png")), RAMP + k)
    slices = data.load(tmp_path, 64)
    assert slices.names["evaluation_input"] == slices.names["evaluation_target"] == ["p", "q"]
    assert np.array_equal(slices.evaluation_target - slices.evaluation_input,
                          np.full((2, 64, 64), 10, np.uint8))


def test_cyclegans_layout_without_equal_names_is_unpaired_and_says_so(tmp_path, capsys):
    for folder in ("trainA", "trainB", "testA"):
        write(tmp_path / folder / "x.png")
    assert len(data.load(tmp_path, 64).evaluation_target) == 0
    write(tmp_path / "testB" / "y.png")
    slices = data.load(tmp_path, 64)
    assert len(slices.evaluation_target) == 0 and len(slices.evaluation_input) == 1
    assert "share no name, so there are no pairs" in capsys.readouterr().err


def test_h5_returns_what_was_written_whole(tmp_path):
    slices = data.load(authors_folder(tmp_path / "folder"), 64)
    data.write_h5(tmp_path / "all.h5", slices)
    again = data.load(tmp_path / "all.h5", 64)
    assert all(np.array_equal(one, other) for one, other in zip(slices[:4], again[:4]))
    assert slices.names == again.names
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
    assert data.load(tmp_path / "all.h5", 128).input.shape == (3, 128, 128)


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


def test_evaluation_needs_no_training_slices(tmp_path):
    authors_folder(tmp_path)
    for folder in ("input", "target"):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
    slices = data.load(tmp_path, 64, ("evaluation_input", "evaluation_target"))
    assert len(slices.input) == 0
    assert len(slices.evaluation_input) == len(slices.evaluation_target) == 3


def test_a_patient_in_two_sets_is_warned_of(tmp_path, capsys):
    authors_folder(tmp_path)
    data.load(tmp_path, 64)
    assert "warning" not in capsys.readouterr().err
    write(tmp_path / "target" / "A1_005_t2.png")
    write(tmp_path / "input" / "C0_005_t1.png")
    data.load(tmp_path, 64)
    error = capsys.readouterr().err
    assert "both input and target, A1" in error and "both input and evaluation_input, C0" in error
    assert "a file's name up to its first underscore is taken for the patient" in error


def test_a_target_patient_in_the_evaluation_is_warned_of(tmp_path, capsys):
    write(authors_folder(tmp_path) / "target" / "C1_005_t2.png")
    data.load(tmp_path, 64)
    assert "both target and evaluation_input, C1" in capsys.readouterr().err


@pytest.mark.skipif(not SLICES,
                    reason="IXI_SLICES is not set: the place of the authors' sample slices")
def test_the_authors_slices_have_disjoint_patients_and_one_size(capsys):
    slices = data.load(Path(SLICES), 64)
    people = {s: {data.patient(name) for name in slices.names[s]} for s in data.SETS}
    assert people["evaluation_input"] == people["evaluation_target"]
    assert not people["input"] & people["target"]
    assert not (people["input"] | people["target"]) & people["evaluation_input"]
    assert "warning" not in capsys.readouterr().err and min(map(len, slices[:4])) > 0


# ---------------------------------------------------------------- wrong use: one sentence each

def claim(path, side):
    """A small PNG whose header says side x side pixels."""
    write(path)
    whole, header = path.read_bytes(), b"IHDR" + struct.pack(">II", side, side)
    header += whole[24:29]
    path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])


def cut_short(path, values, keep):
    write(path, values)
    path.write_bytes(path.read_bytes()[:keep])


def several(path, mode="L", **options):
    Image.fromarray(RAMP).convert(mode).save(path, save_all=True,
                                             append_images=[Image.fromarray(RAMP.T).convert(mode)],
                                             **options)


def npy(path, descr="'|u1'", shape="(64, 64)"):
    """An .npy that ends after its header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


def archive(path):
    with open(path, "wb") as file:
        np.savez(file, a=RAMP)


def see_through(path, mode):
    Image.fromarray(RAMP).convert(mode).save(path, transparency=3)


def unreadable(path):
    write(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")


def with_one(value, rest=0.0):
    values = np.full((64, 64), rest)
    values[3, 3] = value
    return values


POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
BAD_FILES = {  # what it is: its name, what makes it, what must be said of it
    "text": ("a.png", lambda p: p.write_text("hello"), "cannot be read"),
    "PostScript, which Pillow would run": ("a.png", lambda p: p.write_text(POSTSCRIPT),
                                           "cannot identify"),
    "a JPEG cut short": ("a.jpg", lambda p: cut_short(p, RAMP, 900), "truncated"),
    "a TIFF cut short": ("a.tif", lambda p: cut_short(p, RAMP, 900), "cannot be read"),
    "no bytes": ("a.png", lambda p: p.write_bytes(b""), "cannot be read"),
    "no bytes, .npy": ("a.npy", lambda p: p.write_bytes(b""), "cannot be read"),
    "an animated PNG": ("a.png", several, "2 frames, L"),
    "a TIFF of two pages": ("a.tif", several, "2 frames, L"),
    "a GIF": ("a.png", lambda p: several(p, format="GIF"), "cannot identify"),
    "RGBA": ("a.png", lambda p: write(p, np.zeros((64, 64, 4), np.uint8)), "transparency"),
    "grey, one level transparent": ("a.png", lambda p: see_through(p, "L"), "transparency"),
    "a palette, one entry transparent": ("a.png", lambda p: see_through(p, "P"), "transparency"),
    "CMYK": ("a.jpg", lambda p: Image.fromarray(RAMP).convert("CMYK").save(p), "CMYK"),
    "one pixel": ("a.png", lambda p: write(p, RAMP[:1, :1]), "(1, 1)"),
    "a line": ("a.npy", lambda p: write(p, RAMP[:1]), "(1, 64)"),
    "a strip that padding would blow up": ("a.png",
                                           lambda p: write(p, np.zeros((2, 60000), np.uint8)),
                                           "(2, 60000)"),
    "a bomb that Pillow warns of": ("a.png", lambda p: claim(p, 10_000), "exceeds limit"),
    "a bomb that Pillow refuses": ("a.png", lambda p: claim(p, 30_000), "bomb"),
    "an .npy bomb": ("a.npy", lambda p: npy(p, shape="(4000000000, 4000000000)"), "cannot be read"),
    "NaN": ("a.npy", lambda p: write(p, with_one(np.nan)), "NaN"),
    "infinity": ("a.npy", lambda p: write(p, with_one(np.inf)), "infinity"),
    "infinity in a TIFF": ("a.tif", lambda p: write(p, with_one(-np.inf).astype(np.float32)),
                           "infinity"),
    "a range that overflows": ("a.npy", lambda p: write(p, with_one(1e308, -1e308)), "too large"),
    "a range that underflows": ("a.npy", lambda p: write(p, with_one(5e-324)), "too small"),
    "objects": ("a.npy", lambda p: np.save(p, np.array([[{}, {}]] * 2), allow_pickle=True),
                "cannot be read"),
    "complex numbers": ("a.npy", lambda p: write(p, RAMP * 1j), "complex128"),
    "strings": ("a.npy", lambda p: write(p, np.full((64, 64), "a")), "<U1"),
    "a volume": ("a.npy", lambda p: write(p, np.zeros((4, 64, 64))), "(4, 64, 64)"),
    "a number": ("a.npy", lambda p: write(p, np.array(3)), "()"),
    "nothing": ("a.npy", lambda p: write(p, RAMP[:0]), "skipped"),
    "a header cut short": ("a.npy", lambda p: cut_short(p, RAMP, 60), "cannot be read"),
    "values cut short": ("a.npy", lambda p: npy(p), "cannot be read"),
    "a header that is no dictionary": ("a.npy", lambda p: npy(p, descr="'(("), "cannot be read"),
    "a header without a type": ("a.npy", lambda p: npy(p, descr="()"), "cannot be read"),
    "an archive": ("a.npy", archive, "cannot be read"),
    "a folder": ("a.png", Path.mkdir, "no file"),
    "a link to itself": ("a.png", lambda p: p.symlink_to(p), "no file"),
    "a link to nothing": ("a.png", lambda p: p.symlink_to("none.png"), "no file"),
    "a pipe": ("a.npy", os.mkfifo, "no file"),
    "no permission": ("a.png", unreadable, "Permission denied"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_named_counted_and_left_out_and_an_error_where_none_is_left(tmp_path, capsys,
                                                                                  what):
    name, make, reason = BAD_FILES[what]
    make(authors_folder(tmp_path) / "input" / name)
    slices = data.load(tmp_path, 64)
    assert [len(images) for images in slices[:4]] == [3, 3, 3, 3]
    assert np.array_equal(slices.input[0], RAMP)
    skipped, counted = capsys.readouterr().err.splitlines()
    assert skipped.startswith("skipped") and repr(name)[1:-1] in skipped and reason in skipped
    assert skipped.count("a.") <= 2
    assert counted == "skipped 1 of 10 slices or pairs in all."
    for path in (tmp_path / "input").glob("A*"):
        path.unlink()
    assert "no readable image for input" in refused(data.load, tmp_path, 64, warned=True)


def test_a_pair_is_left_out_as_a_whole(tmp_path, capsys):
    (authors_folder(tmp_path) / "evaluation" / "C2_000_target.png").write_text("broken")
    slices = data.load(tmp_path, 64)
    for which in ("evaluation_input", "evaluation_target"):
        assert slices.names[which] == ["C0_000", "C1_000"]
    assert [len(images) for images in slices[:4]] == [3, 3, 2, 2]
    assert "skipped 1 of 9" in capsys.readouterr().err


def test_a_slice_without_partner_is_left_out_named_and_counted_in_both_layouts():
    """Without fixtures: the mutants have it as an auditor."""
    with tempfile.TemporaryDirectory() as folder:
        leave_partners_out(Path(folder))


def leave_partners_out(tmp_path):
    authors = authors_folder(tmp_path / "authors")
    (authors / "evaluation" / "C1_000_target.png").unlink()
    write(authors / "evaluation" / "D9_000.png")
    for k in range(3):
        write(tmp_path / "cyclegan" / "trainA" / f"a{k}.png")
        write(tmp_path / "cyclegan" / "trainB" / f"b{k}.png")
        write(tmp_path / "cyclegan" / "testA" / f"C{k}_000.png", RAMP + 20 + k)
        write(tmp_path / "cyclegan" / "testB" / f"C{k}_000.png", RAMP + 30 + k)
    for place, alone in (("testA", "E5_000.png"), ("testB", "F6_000.png")):
        folder = tmp_path / "cyclegan" / place
        (folder / "C1_000.png").rename(folder / alone)
    for layout, alone in (("authors", "D9_000.png"), ("cyclegan", "E5_000.png")):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            slices = data.load(tmp_path / layout, 64)
        for which in ("evaluation_input", "evaluation_target"):
            assert slices.names[which] == ["C0_000", "C2_000"]
        assert [images[0, 0] for images in slices.evaluation_target] == [30, 32]
        counted = f"2 files for evaluation have no partner and are left out, '{alone}' first"
        assert counted in said.getvalue(), f"{layout}: {said.getvalue()!r} names and counts nothing"


def test_a_wrong_layout_is_told_what_is_wanted_and_what_was_found(tmp_path):
    for name in ("src", "dst"):
        write(tmp_path / "data" / name / "a.png")
    error = refused(data.load, tmp_path / "data", 64)
    assert "wants input/ and target/, or trainA/ and trainB/, inside; found: dst, src" in error
    error = refused(data.load, tmp_path / "data", 64,
                    ("evaluation_input", "evaluation_target"))
    assert "wants evaluation/NAME_input.png" in error and "or testA/" in error
    assert "found: dst, src" in error
    for k in range(20):
        write(tmp_path / "flat" / f"{k:02d}.png")
    error = refused(data.load, tmp_path / "flat", 64)
    assert "found: 00.png, 01.png, 02.png, 03.png, 04.png, 05.png and 14 more" in error


def without(*patterns):
    def remove(root):
        for path in [path for pattern in patterns for path in authors_folder(root).glob(pattern)]:
            path.unlink()
    return remove


WRONG_PLACES = {
    "no folder": (".", lambda p: p.rmdir(), "no such folder or file"),
    "an empty folder": (".", lambda p: None, "no readable image for input"),
    "a name too long for any file": ("x" * 5000, lambda p: None, "no such folder or file"),
    "a link to itself": ("loop", lambda p: (p / "loop").symlink_to("loop"),
                         "no such folder or file"),
    "a pipe": ("pipe", lambda p: os.mkfifo(p / "pipe"), "no such folder or file"),
    "a picture": ("a.png", lambda p: write(p / "a.png"), "is not an .h5 of slices"),
    "one domain": (".", without("target/*"), "no readable image for target"),
    "targets alone": (".", without("evaluation/*_input.png"), "no NAME_input has its NAME_target"),
    "no pairs although there are targets": (
        ".", without("evaluation/C[01]_000_target.png", "evaluation/C2_000_input.png"),
        "no NAME_input has its NAME_target"),
}


@pytest.mark.parametrize("what", WRONG_PLACES)
def test_a_wrong_place_ends_in_one_sentence(tmp_path, what):
    name, make, reason = WRONG_PLACES[what]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    assert reason in refused(data.load, tmp_path / "data" / name, 64)


def test_what_no_layout_provides_for_is_counted_and_left_out(tmp_path, capsys):
    authors_folder(tmp_path)
    for place in ("input/A0_000_t1.bmp", "target/B1_000_t2.jpg", "target/more/B7_000_t2.png",
                  "evaluation/C\n_input.bmp", os.fsdecode(b"evaluation/\xff_input.bmp")):
        write(tmp_path / place)
    assert [len(images) for images in data.load(tmp_path, 64)[:4]] == [3, 3, 3, 3]
    error = capsys.readouterr().err
    for place, left in (("input", "1 left out, 'A0_000_t1.bmp'"),
                        ("target", "2 left out, 'B1_000_t2.jpg'"),
                        ("evaluation", "2 left out, 'C\\n_input.bmp'")):
        assert f"{tmp_path}/{place}: {left} first" in error


def test_a_folder_whose_name_is_not_utf_8_can_be_used(tmp_path, capsys):
    data.load(authors_folder(tmp_path / os.fsdecode(b"d\xff")), 64)
    assert "d\\udcff: slices of 64x64" in capsys.readouterr().out


def put(key, values=None, **options):
    """Replaces one data set of an .h5."""
    def change(file, folder):
        del file[key]
        file.create_dataset(key, data=values, **options)
    return change


def link(key, target):
    def change(file, folder):
        with h5py.File(folder / "other.h5", "w") as other:
            other[key] = file[key][:]
        (folder / "raw").write_bytes(bytes(3 * 64 * 64))
        del file[key]
        target(file, folder, key)
    return change


def virtual(file, folder, key):
    layout = h5py.VirtualLayout((3, 64, 64), "u1")
    layout[:] = h5py.VirtualSource(folder / "other.h5", key, (3, 64, 64))
    file.create_virtual_dataset(key, layout)


def soft(file, folder, key):
    file["elsewhere"] = np.zeros((3, 64, 64), np.uint8)
    file[key] = h5py.SoftLink("/elsewhere")


def outside(file, folder, key):
    file[key] = h5py.ExternalLink("other.h5", key)


TEXT = h5py.string_dtype()
BAD_H5 = {
    "a set is missing": (lambda f, _: f.__delitem__("target"), "target"),
    "names are missing": (lambda f, _: f.__delitem__("target_names"), "target_names"),
    "a group": (lambda f, _: (f.__delitem__("input"), f.create_group("input")),
                "input is missing, has not 3 dimensions, or leads"),
    "an external link": (link("input", outside), "input is missing"),
    "an external link among the names": (link("input_names", outside), "input_names is missing"),
    "a soft link": (link("input", soft), "input is missing"),
    "external storage": (link("input", lambda f, folder, key: f.create_dataset(
        key, (3, 64, 64), "u1", external=[(str(folder / "raw"), 0, 3 * 64 * 64)])),
        "leads to another key or file"),
    "a virtual data set": (link("input", virtual), "leads to another key or file"),
    "a bomb": (put("input", shape=(10 ** 9, 64, 64), dtype="u1", chunks=(1, 64, 64),
                   compression="gzip"), "more than this file can hold"),
    "a bomb of names": (put("input_names", shape=(10 ** 12,), dtype=TEXT, chunks=(1000,)),
                        "more than this file can hold"),
    "slices wider than any": (put("input", shape=(1, 2, 8193), dtype="u1"), "(2, 8193)"),
    "one image": (put("input", RAMP), "3 dimensions"),
    "nothing": (put("input", h5py.Empty("u1")), "3 dimensions"),
    "complex numbers": (put("input", np.zeros((3, 64, 64), complex)), "complex128"),
    "NaN": (put("input", np.full((3, 64, 64), np.nan)), "NaN"),
    "strings": (put("input", [[["a"] * 2] * 2] * 3, dtype=TEXT), "object"),
    "names that are numbers": (put("input_names", [1, 2, 3]), "string"),
    "names that are not UTF-8": (put("input_names", [b"A0", b"A1", b"A\xff"], dtype=TEXT), "utf-8"),
    "halves of pairs in another order": (
        put("evaluation_target_names", ["C1", "C0", "C2"], dtype=TEXT), "two names differ"),
    "too few names": (put("input_names", ["A0", "A1"], dtype=TEXT), "differ in number"),
    "an input without its target": (
        lambda f, _: (put("evaluation_target", np.zeros((2, 64, 64), "u1"))(f, _),
                      put("evaluation_target_names", ["C0", "C1"], dtype=TEXT)(f, _)),
        "two names differ"),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    data.write_h5(folder / "all.h5", data.load(authors_folder(folder / "folder"), 64))
    return (folder / "all.h5").read_bytes()


@pytest.mark.parametrize("what", BAD_H5)
def test_an_h5_of_another_layout_or_that_reads_other_files_ends_in_one_sentence(tmp_path, packed, what):
    change, reason = BAD_H5[what]
    path = tmp_path / "bad.h5"
    path.write_bytes(packed)
    with h5py.File(path, "r+") as file:
        change(file, tmp_path)
    error = refused(data.load, path, 64)
    assert str(path) in error and reason in error and error.count("\n") == 1


@pytest.mark.parametrize("content", (b"", b"text", "half", "a header of nothing"))
def test_a_broken_h5_ends_in_one_sentence(tmp_path, packed, content):
    content = {"half": packed[:len(packed) // 2],
               "a header of nothing": packed[:96] + bytes(len(packed) - 96)}.get(content, content)
    (tmp_path / "bad.h5").write_bytes(content)
    error = refused(data.load, tmp_path / "bad.h5", 64)
    assert error.startswith(f"error: {tmp_path}/bad.h5: is not an .h5 of slices")


def test_the_program_itself_says_it_in_one_line_and_exits_with_2(tmp_path, packed):
    """Warnings of Pillow and numpy and HDF5's own messages would stand here alone."""
    claim(authors_folder(tmp_path / "folder") / "target" / "bomb.png", 10_000)
    (tmp_path / "all.h5").write_bytes(packed)
    # as good as a full disk
    half = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(packed) // 2,) * 2)
    ran = subprocess.run([sys.executable, Path(data.__file__).resolve(), "folder", "--size", "64",
                          "--h5", "all.h5"],
                         capture_output=True, text=True, cwd=tmp_path, preexec_fn=half)
    *skipped, last = ran.stderr.splitlines()
    assert ran.returncode == 2, ran.stderr
    assert last.startswith("error: all.h5: cannot be written (File too large); make room")
    assert len(skipped) == 2 and all(line.startswith("skipped") for line in skipped)
    assert (tmp_path / "all.h5").read_bytes() == packed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.h5", "folder"]


def raising(error):
    def write_half(place):
        Path(place).write_text("half")
        raise error
    return write_half


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error, said",
                         ((FULL, "No space left on device"),
                          (RuntimeError("unexpected pos 704 vs 598"), "unexpected pos"),
                                         (OSError("no number"), "no number")))
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, error, said):
    (tmp_path / "all.h5").write_text("old")
    assert said in refused(data.replace_file, tmp_path / "all.h5", raising(error))
    assert "it is a folder" in refused(data.replace_file, tmp_path, Path.touch)
    assert "no such" in refused(data.replace_file, tmp_path / "none" / "a",
                                Path.touch).lower()
    # not the user's to mend: passed on, yet nothing is left behind
    for bug in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(bug):
            data.replace_file(tmp_path / "all.h5", raising(bug()))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("all.h5", "old")]


@pytest.mark.parametrize("place, broken",
                         (("data.png", "Figure.savefig"), ("all.h5", "Path.write_bytes")))
def test_data_py_on_a_full_disk_leaves_no_half_file(monkeypatch, tmp_path, place, broken):
    def full(*_, **__):
        raise FULL
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"data.{broken}", full)
    monkeypatch.setattr("sys.argv", ["data.py", str(authors_folder(tmp_path / "folder")), "--size",
                                     "64", "--h5", "all.h5"])
    assert f"{place}: cannot be written (No space left on device)" in refused(data.main)
    assert {p.name for p in tmp_path.iterdir()} <= {"folder", "all.h5"}
    assert (place == "data.png") == Path("all.h5").exists()


def test_data_py_without_memory_ends_in_one_sentence(monkeypatch):
    def large(*_):
        raise MemoryError
    monkeypatch.setattr("data.load", large)
    monkeypatch.setattr("sys.argv", ["data.py", "all.h5"])
    assert "out of memory: choose a smaller --size" in refused(data.main)


def test_a_folder_that_cannot_be_made_ends_in_one_sentence(monkeypatch, tmp_path):
    write(tmp_path / "file.png")
    monkeypatch.setattr("sys.argv", ["data.py", "phantom", "--size", "8", "--h5",
                                     str(tmp_path / "file.png" / "deep" / "all.h5")])
    assert "file.png/deep: cannot be made into a folder" in refused(data.main)


# ---------------------------------------------------------------- batches

def test_grey_levels_map_onto_minus_one_to_one():
    unit = data.to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert unit.tolist() == [-1.0, pytest.approx(-0.6), 1.0]


def test_draws_are_with_replacement_uniform_and_from_the_generator_alone():
    piles = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 64, 64)
    state = torch.get_rng_state()
    one, again = (data.draw(piles, 4000, torch.Generator().manual_seed(3), "cpu") for _ in range(2))
    assert one.shape == (4000, 1, 64, 64) and one.dtype == torch.float32 and torch.equal(one, again)
    counts = torch.bincount(((one[:, 0, 0, 0] + 1) * 127.5).round().long(), minlength=10)
    assert (counts / 4000 - 0.1).abs().max() < 0.02 and torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------- pictures

def drawn_grid(columns, *words, **options):
    """The figure and caption that picture_grid() would have written."""
    figures = []
    with replaced.object(data, "save_figure", lambda *drawn: figures.append(drawn)):
        data.picture_grid("nowhere.png", columns, *words, **options)
    (path, figure, caption), = figures
    assert path == "nowhere.png"
    return figure, caption


def test_a_grid_shows_grey_levels_the_right_way_up_and_maps_on_one_colour_bar():
    image = np.full((64, 64), 100, np.uint8)
    low, high = np.full((64, 64), 3.0), np.full((64, 64), 60.0)
    columns = {"one": [image, image], "residual": [low, high], "scale": [high, low]}
    for pairs in (columns.items(), list(columns.items())):
        figure, caption = drawn_grid(pairs, 2, "words", ((0,), 10, 44))
        axes = [ax for ax in figure.axes if ax.images]
        shown = [ax.images[0] for ax in axes]
        assert [s.get_clim() for s in shown] == [(0, 255), (0, 60), (0, 60)] * 2
        assert {s.origin for s in shown} == {"upper"}
        assert [s.get_cmap().name for s in shown[:3]] == ["gray", "inferno", "inferno"]
        assert [ax.get_title() for ax in axes] == ["one", "residual", "scale", "", "", ""]
        assert caption == "words"
        assert len(figure.axes) == 7  # one colour bar for all four maps
        square, = axes[0].patches
        assert square.get_bbox().bounds == (9.5, 9.5, 44, 44) and not axes[1].patches
        assert not any(ax.texts for ax in axes)


def test_a_grid_shows_each_picture_in_its_own_place_whatever_its_shape():
    pictures = [[np.full((8, 8), 10 * column + row) for row in range(3)] for column in range(2)]
    pictures[1] = [torch.from_numpy(cell)[None] for cell in pictures[1]]  # [1,h,w], as of batches
    figure, _ = drawn_grid([("one", pictures[0]), ("one", pictures[1])])  # titles may be the same
    values = [np.unique(ax.images[0].get_array()).tolist() for ax in figure.axes]
    assert values == [[0], [10], [1], [11], [2], [12]]


def test_the_labels_of_a_grid_stand_one_at_each_row():
    image = np.full((64, 64), 100, np.uint8)
    labels = ["GN0", "GN20\ntwo lines", "MC"]
    for columns in ({"one": [image] * 3}, {"one": [image] * 3, "other": [image] * 3}):
        figure, _ = drawn_grid(columns.items(), labels=labels)
        rows = np.array([ax for ax in figure.axes if ax.images]).reshape(3, len(columns))
        for row, label in zip(rows, labels, strict=True):
            text, = row[0].texts
            assert text.get_text() == label and text.get_position()[0] < 0  # left of the picture
            assert text.get_position()[1] == .5 and text.get_transform() == row[0].transAxes
            assert not any(ax.texts for ax in row[1:])


def test_six_indices_are_spread_from_the_first_to_the_last():
    assert data.six_indices(6).tolist() == [0, 1, 2, 3, 4, 5]
    assert data.six_indices(101).tolist() == [0, 20, 40, 60, 80, 100]
    assert data.six_indices(1).tolist() == [0] * 6


# ---------------------------------------------------------------- folders as they come

@contextlib.contextmanager
def quiet_folder():
    """A new folder; what is said inside goes nowhere."""
    with (tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()),
          contextlib.redirect_stdout(io.StringIO())):
        yield Path(folder)


# whatever splits words or lines elsewhere, steers a terminal, or is no text
STRANGE = ["IXI\u202f1", "IXI\u30001", "IXI\u20281", "IXI\x1b[31m1", "IXI\n1", "IXI\t1", "IXI\x851",
           "IXI 1", "IXI\u200b1", "IXI$1$", "\u202eIXI", os.fsdecode(b"IXI\xe9")]


def strange_folder(root):
    """The authors' layout, every name strange -> those that this file system can hold."""
    held = []
    for name in STRANGE:
        try:
            write(root / "input" / f"{name}_1.png", RAMP + np.uint8(len(held)))
        except (OSError, ValueError):
            continue
        held.append(name)
        write(root / "target" / f"{name}t_1.png")
        write(root / "evaluation" / f"{name}v_1_input.png")
        write(root / "evaluation" / f"{name}v_1_target.png")
    return held


def test_slices_with_strange_names_are_read():
    with quiet_folder() as root:
        held = strange_folder(root)
        assert len(held) >= 8
        slices = data.load(root, 64)
        assert sorted(slices.names["input"]) == sorted(f"{name}_1" for name in held)
        assert sorted(slices.names["evaluation_target"]) == sorted(f"{name}v_1" for name in held)
        assert [len(images) for images in slices[:4]] == [len(held)] * 4
        for name, image in zip(slices.names["input"], slices.input):
            assert np.array_equal(image, RAMP + held.index(name.removesuffix("_1")))


def test_strange_names_are_printed_escaped():
    """Of what cannot be read, of a patient in two sets, of the folder; and each on one line."""
    with tempfile.TemporaryDirectory() as folder:
        for name in STRANGE:
            root = Path(folder, name)
            try:
                write(root / "input" / f"{name}_1.png")
            except (OSError, ValueError):
                continue
            write(root / "target" / f"{name}_2.png")
            (root / "input" / f"{name}_3.png").write_text("no picture")
            (root / "input" / f"{name}_4.npy").symlink_to("nothing")
            np.save(root / "input" / f"{name}_5.npy", np.zeros((1, 64)))
            said = io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                slices = data.load(root, 64)
            assert slices.names["input"] == [f"{name}_1"]
            said.flush()
            text = said.buffer.getvalue().decode("utf-8")
            assert all(line.isprintable() for line in text.split("\n")), text
            shown = data.printable(name)
            assert shown.isprintable() and f"{shown}: slices of 64x64" in text
            assert text.count(f"skipped {folder}/{shown}/input/{shown}_") == 3
            assert f"both input and target, {shown} among them" in text


def test_the_program_prints_strange_names_where_only_ascii_can_be_printed(tmp_path):
    held = strange_folder(tmp_path / "folder")
    (tmp_path / "folder" / "input" / f"{held[-1]}_9.png").write_text("no picture")
    (tmp_path / "folder" / "input" / f"{held[-1]}_9.bmp").write_text("of no layout")
    ran = subprocess.run([sys.executable, Path(data.__file__).resolve(), "folder", "--size", "16"],
                         capture_output=True, cwd=tmp_path,
                         env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert ran.returncode == 0, ran.stderr
    assert all(line.decode("ascii").isprintable()
               for line in (ran.stdout + ran.stderr).split(b"\n"))
    assert f"{len(held)} slices of" in ran.stdout.decode()


@contextlib.contextmanager
def locked(*folders):
    """As if these folders were another user's, of mode 700; also for root."""
    folders = [str(folder) for folder in folders]

    def refusing(real):
        def look(place=".", *rest):
            if str(place) in folders:
                raise PermissionError(errno.EACCES, "Permission denied", str(place))
            return real(place, *rest)
        return look
    with (replaced.object(os, "listdir", refusing(os.listdir)),
          replaced.object(os, "scandir", refusing(os.scandir)),
          replaced.object(Path, "iterdir", refusing(Path.iterdir))):
        yield


def test_a_folder_that_may_not_be_read_ends_in_one_sentence():
    for layout in ("authors", "cyclegan"):
        with quiet_folder() as root:
            authors_folder(root)
            places = ("input", "target", "evaluation")
            if layout == "cyclegan":
                for old, new in zip(places, ("trainA", "trainB", "testA")):
                    (root / old).rename(root / new)
                places = ("trainA", "trainB", "testA")
            for place in (".", *places):
                with locked(root / place):
                    error = refused(data.load, root, 64)
                    assert f"error: {root / place}: cannot be read (Permission denied)" in error
            with locked(root / places[2]):  # and where nothing but the evaluation is read
                assert "cannot be read (Permission denied)" in refused(data.load, root, 64,
                                                                       data.SETS[2:])
            data.load(root, 64)


def test_folders_beside_the_layout_may_be_locked():
    with quiet_folder() as root:
        authors_folder(root)
        (root / "metrics").mkdir()
        with locked(root / "metrics"):
            assert [len(images) for images in data.load(root, 64)[:4]] == [3, 3, 3, 3]


def test_a_file_where_a_folder_is_expected_ends_in_one_sentence():
    for place in ("input", "target"):
        with quiet_folder() as root:
            for path in (authors_folder(root) / place).iterdir():
                path.unlink()
            (root / place).rmdir()
            (root / place).write_text("no folder")
            error = refused(data.load, root, 64)
            assert f"no readable image for {place}; wants input/ and target/" in error
            assert "found: evaluation, input, target" in error
    with quiet_folder() as root:
        authors_folder(root)
        for name in ("trainA", "testA"):
            (root / name).write_text("no folder")  # makes no CycleGAN's layout of it
        assert [len(images) for images in data.load(root, 64)[:4]] == [3, 3, 3, 3]


def test_hidden_files_are_passed_over_without_a_word():
    with quiet_folder() as root:
        authors_folder(root)
        for place in ("input", "target", "evaluation"):
            (root / place / ".DS_Store").write_text("left by another system")
            (root / place / "._A0_000_t1.png").write_text("left by another system")
            write(root / place / ".A7_000_t1.png")
        with contextlib.redirect_stderr(io.StringIO()) as said:
            slices = data.load(root, 64)
        assert [len(images) for images in slices[:4]] == [3, 3, 3, 3] and not said.getvalue()
    with quiet_folder() as root:
        (root / ".cache").mkdir()
        assert "found: nothing" in refused(data.load, root, 64)


def test_slices_come_in_the_order_of_their_names_whatever_the_order_on_disk():
    with quiet_folder() as root:
        authors_folder(root, 5)
        listdir, iterdir = os.listdir, Path.iterdir
        found = []
        for shuffle in (lambda paths: sorted(paths, key=str), reversed,
                        lambda paths: paths[::2] + paths[1::2]):
            def shuffled(real):
                return lambda *place: iter(list(shuffle(sorted(real(*place), key=str))))
            with (replaced.object(os, "listdir", lambda *p: list(shuffled(listdir)(*p))),
                  replaced.object(Path, "iterdir", shuffled(iterdir))):
                found.append(data.load(root, 64))
    assert found[0].names["input"] == [f"A{k}_000_t1" for k in range(5)]
    for slices in found:
        assert slices.names == found[0].names
        assert all(np.array_equal(u, v) for u, v in zip(slices[:4], found[0][:4]))
        assert [image[0, 0] for image in slices.input] == [0, 1, 2, 3, 4]


def test_a_folder_in_which_the_authors_code_has_run_is_read_as_before():
    with quiet_folder() as root:
        before = data.load(authors_folder(root), 64)
        for name in ("plots", "metrics", "generator_loss", "critic_loss", "generator_weights"):
            write(root / name / "A9_000_t1.png")
            write(root / name / "C0_000_input.png")
            (root / name / "0.csv").write_text("1,2")
            (root / name / "deeper").mkdir()
        (root / "config.json").write_text("{}")
        with (contextlib.redirect_stdout(io.StringIO()) as out,
              contextlib.redirect_stderr(io.StringIO()) as error):
            after = data.load(root, 64)
        assert after.names == before.names and not error.getvalue()
        assert all(np.array_equal(u, v) for u, v in zip(before[:4], after[:4]))
        assert out.getvalue().count("3 slices of    3 patients") == 4
        entries = data.find_images(root)
        assert len(entries) == 9 and {path.parent.name for _, paths in entries
                                      for path in paths.values()} == {"input", "target",
                                                                      "evaluation"}
