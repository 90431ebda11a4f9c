"""Pictures that Pillow alone would read wrongly: turned, with white for 0, of many kinds of number.

Pillow writes most of these files. TIFFs that it cannot write are written here, by write_tiff().
"""
import contextlib
import io
import itertools
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

import data

RNG = np.random.default_rng
UPRIGHT = {1: lambda v: v, 2: np.fliplr, 3: lambda v: v[::-1, ::-1], 4: np.flipud,
           5: lambda v: v.T, 6: lambda v: np.rot90(v, -1), 7: lambda v: v[::-1, ::-1].T,
           8: lambda v: np.rot90(v, 1)}  # EXIF's and TIFF's Orientation, tag 274
KINDS = {"u": 1, "i": 2, "f": 3}  # TIFF's SampleFormat, tag 339


def write_tiff(path, values, strips=1, big=False, packed=False, bits=None, planes=False, **tags):
    """A TIFF of numbers [h,w] or [h,w,c], little-endian or big, in strips of rows or a plane each,
    plain or packed by Deflate. tags: t262=[0] sets a tag or, as None, leaves it out."""
    order, (h, w), n = ">" if big else "<", values.shape[:2], values[0, 0].size
    rows = -(-h // strips)
    parts = ([values[..., k] for k in range(n)] if planes
             else [values[top:top + rows] for top in range(0, h, rows)])
    blobs = [np.packbits(part.astype(bool), axis=1).tobytes() if bits == 1
             else part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    blobs = [zlib.compress(blob) for blob in blobs] if packed else blobs
    bits = bits or 8 * values.dtype.itemsize
    entries = {256: [w], 257: [h], 258: [bits] * n, 259: [8 if packed else 1], 262: [1],
               273: [0] * len(blobs), 277: [n], 278: [rows], 279: [len(blob) for blob in blobs],
               284: [2 if planes else 1], 339: [KINDS[values.dtype.kind]] * n}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    entries = {tag: value for tag, value in sorted(entries.items()) if value is not None}

    def directory():
        short, long, start = b"", b"", 8 + 2 + 12 * len(entries) + 4
        for tag, value in entries.items():
            kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
            content = struct.pack(f"{order}{len(value)}{letter}", *value)
            if len(content) > 4:
                content, long = (struct.pack(f"{order}I", start + len(long)), long + content)
            short += struct.pack(f"{order}HHI", tag, kind, len(value)) + content.ljust(4, b"\0")
        return struct.pack(f"{order}H", len(entries)) + short + bytes(4) + long
    lengths = [len(blob) for blob in blobs]
    first = 8 + len(directory())
    entries[273] = [first + sum(lengths[:k]) for k in range(len(blobs))]
    path.write_bytes((b"MM" if big else b"II") + struct.pack(f"{order}HI", 42, 8) + directory()
                     + b"".join(blobs))


def write_png(path, values, colour):
    """A PNG of 16 bits, which Pillow writes in grey only; colour: its header's number for it."""
    def chunk(name, content):
        return (struct.pack(">I", len(content)) + name + content
                + struct.pack(">I", zlib.crc32(name + content)))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def numbers(dtype, shape=(5, 9), seed=0):
    """Numbers over all of a type's range; of floats, some about 0 that float32 holds exactly."""
    dtype, rng = np.dtype(dtype), RNG(seed)
    if dtype.kind == "f":
        return (rng.integers(-2 ** 20, 2 ** 20, shape) / 2 ** 10).astype(dtype)
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def scaled(values):
    """8-bit as it is, all else from its own smallest to its largest value."""
    if values.dtype == np.uint8:
        return values
    values = values.astype(float)
    return np.rint((values - values.min()) * (255 / np.ptp(values))).astype(np.uint8)


@contextlib.contextmanager
def place(name):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        yield Path(folder, name)


def equal(path, expected, what):
    """A path as users give it, Path or str, both read to these grey levels."""
    for given in (path, str(path)):
        found = data.read_grey(given)
        assert found.dtype == np.uint8 and found.shape == expected.shape, (what, found.shape)
        assert np.array_equal(found, expected), (what, found.tolist(), expected.tolist())


def refusal(path):
    """Why read_grey() refuses: one sentence that begins with the path."""
    try:
        found = data.read_grey(path)
    except ValueError as error:
        sentence = str(error)
    else:
        raise AssertionError(f"{path} was read: {found.tolist()}")
    assert sentence.startswith(f"{path}: cannot be read as an image (") and "\n" not in sentence
    return sentence


# ---------------------------------------------------------------- turned pictures

def test_plain_tiffs_of_all_orientations_come_out_upright():
    with place("a.tif") as path:
        for dtype, turn, strips, big in itertools.product(("u1", "u2", "i2", "f4"), UPRIGHT,
                                                          (1, 2, 5), (False, True)):
            values = numbers(dtype, seed=turn)
            write_tiff(path, values, strips, big, t274=[turn])
            equal(path, UPRIGHT[turn](scaled(values)), (dtype, turn, strips, big))
        for turn, strips in itertools.product(UPRIGHT, (1, 3)):
            values = RNG(turn).integers(0, 2, (5, 9))
            write_tiff(path, values, strips, bits=1, t274=[turn], t339=None)
            equal(path, UPRIGHT[turn](255 * values.astype(np.uint8)), ("1 bit", turn, strips))


def test_pillows_own_tiffs_of_all_orientations_come_out_upright():
    with place("a.tiff") as path:
        for dtype, packing, turn in itertools.product(
                ("u1", "u2", "i4", "f4"), (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"),
                UPRIGHT):
            values = numbers(dtype, (5, 9), seed=turn)
            Image.fromarray(values).save(path, compression=packing, tiffinfo={274: turn})
            equal(path, UPRIGHT[turn](scaled(values)), (dtype, packing, turn))
        for turn, packing in itertools.product(UPRIGHT, (None, "tiff_lzw")):  # in colour
            values = RNG(turn).integers(0, 256, (5, 9)).astype(np.uint8)
            colour = Image.fromarray(values.repeat(3, 1).reshape(5, 9, 3))
            colour.save(path, compression=packing, tiffinfo={274: turn})
            equal(path, UPRIGHT[turn](values), ("colour", packing, turn))


def test_tiffs_of_more_than_one_lzw_strip_come_out_upright():
    with place("a.tif") as path:
        for turn in UPRIGHT:
            values = numbers("u2", (40, 9), seed=turn)
            Image.fromarray(values).save(path, compression="tiff_lzw", tiffinfo={274: turn},
                                         strip_size=200)
            with Image.open(path) as picture:
                assert len(picture.tag_v2[273]) > 1
            equal(path, UPRIGHT[turn](scaled(values)), turn)


def test_jpeg_and_png_obey_their_exif_orientation_as_tiff_does():
    smooth = np.add.outer(6 * np.arange(24), 3 * np.arange(32)).astype(np.uint8)
    with place("a.tif") as path:
        for turn in UPRIGHT:
            exif = Image.Exif()
            exif[274] = turn
            for name in ("a.jpg", "a.png"):
                for mode in ("L", "RGB"):
                    picture = Image.fromarray(smooth).convert(mode)
                    picture.save(path.with_name(name), exif=exif, **(
                        dict(quality=98) if name == "a.jpg" else {}))
                    found = data.read_grey(path.with_name(name)).astype(int)
                    expected = UPRIGHT[turn](smooth)
                    assert found.shape == expected.shape, (name, mode, turn)
                    most = 4 if name == "a.jpg" else 0
                    assert np.abs(found - expected).max() <= most, (name, mode, turn)
            wide = numbers("u2", seed=turn)
            Image.fromarray(wide).save(path.with_name("b.png"), exif=exif)
            equal(path.with_name("b.png"), UPRIGHT[turn](scaled(wide)), ("16 bits", turn))


def test_an_orientation_that_does_not_exist_turns_nothing():
    values = numbers("u1")
    with place("a.tif") as path:
        for turn in (0, 9):
            write_tiff(path, values, t274=[turn])
            equal(path, values, turn)


# ---------------------------------------------------------------- white as 0

def test_a_tiff_with_white_as_0_shows_what_the_same_picture_with_black_as_0_shows():
    with place("white.tif") as white:
        black = white.with_name("black.tif")
        for dtype, strips, turn in itertools.product(("u1", "u2", "f4"), (1, 2), (1, 2, 6)):
            values = numbers(dtype)
            other = -values if dtype == "f4" else np.iinfo(dtype).max - values
            for packed in (False, True):
                write_tiff(white, other, strips, packed=packed, t262=[0], t274=[turn])
                write_tiff(black, values, strips, packed=packed, t262=[1], t274=[turn])
                expected = UPRIGHT[turn](scaled(values))
                equal(black, expected, ("black", dtype, strips, turn, packed))
                equal(white, expected, ("white", dtype, strips, turn, packed))
        values = RNG(0).integers(0, 2, (5, 9))
        for zero, turn in itertools.product((0, 1), (1, 2, 6)):
            stored = values if zero else 1 - values
            write_tiff(white, stored, bits=1, t262=[zero], t339=None, t274=[turn])
            equal(white, UPRIGHT[turn](255 * values.astype(np.uint8)), ("1 bit", zero, turn))


def test_white_as_0_of_lzw_and_of_pillows_own_making():
    values = numbers("u1")
    with place("a.tif") as path:
        for packing in (None, "tiff_lzw", "packbits"):
            # Pillow turns the values itself as it writes
            Image.fromarray(values).save(path, compression=packing, tiffinfo={262: 0})
            with Image.open(path) as picture:
                assert picture.tag_v2[262] == 0
            equal(path, values, packing)


def test_fewer_bits_of_grey_fill_the_range():
    with place("a.tif") as path:
        for bits, zero in itertools.product((2, 4), (0, 1)):
            most = 2 ** bits - 1
            values = RNG(bits).integers(0, most + 1, (5, 8)).astype(np.uint8)
            wide = (values[..., None] >> np.arange(bits)[::-1]) & 1
            rows = np.packbits(wide.reshape(5, -1), axis=1)
            write_tiff(path, rows, t256=[8], t258=[bits], t262=[zero])
            shown = values if zero else most - values
            equal(path, shown * np.uint8(255 // most), (bits, zero))


def test_a_tiff_that_does_not_say_what_0_means_is_refused():
    with place("a.tif") as path:
        for dtype in ("u1", "u2"):
            write_tiff(path, numbers(dtype), t262=None)
            assert "without tag 262" in refusal(path)


# ---------------------------------------------------------------- kinds of number

def test_every_kind_of_number_in_a_tiff_is_read_right_or_refused():
    """Both orders of bytes, packed and plain, white as 0 and black: whatever Pillow makes of it."""
    read = set()
    with place("a.tif") as path:
        for dtype, big, packed, zero in itertools.product(
                "u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8".split(), (False, True), (False, True), (1, 0)):
            values = numbers(dtype, seed=5)
            write_tiff(path, values, 2, big, packed, t262=[zero])
            expected = scaled(values)
            if zero == 0:
                expected = 255 - values if dtype == "u1" else scaled(-values.astype(float))
            try:
                found = data.read_grey(path)
            except ValueError as error:
                assert "npy" in str(error), (dtype, big, packed, zero)
            else:
                assert np.array_equal(found, expected), (dtype, big, packed, zero)
                read.add((dtype, big, packed, zero))
    usual = {(dtype, False, packed, 1) for dtype in "u1 u2 i2 u4 i4 f4".split()
             for packed in (False, True)}
    usual |= {(dtype, True, False, 1) for dtype in "u1 u2 i2 i4 f4".split()}  # ImageJ's
    usual |= {(dtype, False, False, 0) for dtype in ("u1", "u2", "f4")}
    assert usual <= read, f"no longer read: {usual - read}"


def test_integers_of_16_and_32_bits_keep_their_signs_and_values_above_2_to_the_31():
    cases = {"u4": [0, 2 ** 31 - 1, 2 ** 31 + 5, 2 ** 32 - 1], "u2": [0, 2 ** 15, 40000, 65535],
             "i4": [-2 ** 31, -5, 7, 2 ** 31 - 1], "i2": [-2 ** 15, -5, 7, 2 ** 15 - 1]}
    with place("a.tif") as path:
        for dtype, row in cases.items():
            values = np.array([row, row[::-1]], dtype)
            write_tiff(path, values)
            equal(path, scaled(values), dtype)
            assert data.read_grey(path)[0, 0] == 0 and data.read_grey(path)[0, 3] == 255
        values = np.array([cases["u4"], cases["u4"][::-1]], "u4")
        write_tiff(path, values, t339=None)  # without its kind: whole numbers without sign
        equal(path, scaled(values), "u4, kind not given")


def test_8_bit_numbers_with_signs_are_refused():
    with place("a.tif") as path:
        for packed, big in itertools.product((False, True), repeat=2):
            write_tiff(path, numbers("i1"), packed=packed, big=big)
            assert "signed bytes" in refusal(path)


def test_packed_big_endian_numbers_whose_bytes_pillow_swaps_twice_are_refused():
    with place("a.tif") as path:
        for dtype in ("i2", "i4", "f4"):
            write_tiff(path, numbers(dtype), packed=True, big=True)
            assert "packed big-endian" in refusal(path)
        for dtype in ("u1", "u2"):  # these it reads right
            write_tiff(path, numbers(dtype), packed=True, big=True)
            equal(path, scaled(numbers(dtype)), dtype)


def test_float64_and_other_kinds_that_pillow_does_not_know_are_sent_to_npy():
    with place("a.tif") as path:
        for dtype in ("f8", "f2", "u8", "i8"):
            write_tiff(path, numbers(dtype))
            assert refusal(path).endswith("; .npy takes numbers of any type")
            np.save(path.with_suffix(".npy"), numbers(dtype))
            equal(path.with_suffix(".npy"), scaled(numbers(dtype)), dtype)


def test_12_bits_in_16_are_scaled_per_image():
    values = RNG(0).integers(0, 4096, (5, 9)).astype(np.uint16)
    with place("a.png") as path:
        for name in ("a.png", "a.tif"):
            for shown in (values, values // 2):
                Image.fromarray(shown).save(path.with_name(name))
                equal(path.with_name(name), scaled(shown), name)
        write_png(path, values, 0)
        equal(path, scaled(values), "another writer's")


# ---------------------------------------------------------------- colour, channels

def test_colour_of_16_bits_is_refused_and_of_8_bits_read():
    with place("a.tif") as path:
        for planes, packed, big in itertools.product((False, True), repeat=3):
            values = numbers("u2", (5, 9, 3))
            write_tiff(path, values, planes=planes, packed=packed, big=big, t262=[2])
            assert "colour of 16 bits" in refusal(path), (planes, packed, big)
            values = numbers("u1", (5, 9, 3))
            write_tiff(path, values, planes=planes, packed=packed, big=big, t262=[2])
            equal(path, np.asarray(Image.fromarray(values).convert("L")), (planes, packed, big))
        write_png(path.with_suffix(".png"), numbers("u2", (5, 9, 3)), 2)
        assert "colour of 16 bits" in refusal(path.with_suffix(".png"))


def test_transparency_of_8_and_16_bits_is_refused():
    with place("a.png") as path:
        for colour, n, mode in ((4, 2, "LA"), (6, 4, "RGBA")):
            write_png(path, numbers("u2", (5, 9, n)), colour)
            assert "no transparency" in refusal(path)
            Image.fromarray(numbers("u1", (5, 9, n)), mode).save(path)
            assert "no transparency" in refusal(path)
        path = path.with_suffix(".tif")
        for dtype, n, kind in itertools.product(("u1", "u2"), (2, 4), (1, 2)):
            write_tiff(path, numbers(dtype, (5, 9, n)), t262=[1 if n == 2 else 2], t338=[kind])
            # Pillow knows no grey with transparency of 16 bits
            expected = "cannot identify" if (dtype, n) == ("u2", 2) else "no transparency"
            assert expected in refusal(path), (dtype, n, kind)


def test_a_channel_that_nobody_explains_is_not_dropped_without_a_word():
    with place("a.tif") as path:
        for n, zero in ((2, 1), (4, 2)):
            write_tiff(path, numbers("u1", (5, 9, n)), t262=[zero], t338=[0])
            assert "further channel" in refusal(path)
        write_tiff(path, numbers("u1", (5, 9, 4)), t262=[5])
        assert "CMYK" in refusal(path)
