"""Artificial heads in T1 and T2, for a first look and for tests: arrays only, made from a seed.

    python phantoms.py    draws T1 and T2 of three subjects: phantoms.png

They have skull, CSF, folded grey and white matter and ventricles. T1 and T2 of a slice are drawn
from one map of its tissues.
"""
import numpy as np
from PIL import Image

from run import make_parser, progress, save_png, start

#             air  scalp skull  CSF  grey  white     (grey levels / 255)
T1 = np.array([.02, .88, .10, .28, .50, .74])
T2 = np.array([.02, .75, .07, .92, .60, .38])
NOISE = np.array([.003, .02, .008, .06, .03, .012])  # Laplace scale of T2's noise


def smooth_field(rng, cells, side):
    """Draws a random field [side,side] that varies over side/cells pixels, zero mean, unit
    deviation. The draws do not depend on side, so that one subject looks the same at every size."""
    grid = Image.fromarray(rng.standard_normal((cells + 3, cells + 3)).astype(np.float32))
    box = 1, 1, cells + 2, cells + 2
    field = np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC, box=box))
    return (field - field.mean()) / field.std()


def head(z, side, fields):
    """Draws tissues [side,side] of an axial slice at height z in [0,1], numbered as above."""
    bend_y, bend_x, folds_a, folds_b, (tilt, long, wide, ventricle) = fields
    v, u = (np.mgrid[:side, :side] + .5) / side * 2 - 1
    v, u = v + .018 * bend_y, u + .018 * bend_x
    v, u = v * np.cos(tilt) - u * np.sin(tilt), v * np.sin(tilt) + u * np.cos(tilt)
    shrink = 1 - .22 * z ** 2
    radius = np.hypot(v / (long * shrink), u / (wide * shrink) * (1 + .10 * v))
    folds = np.abs(np.cos(2 * z) * folds_a + np.sin(2 * z) * folds_b)  # small along the sulci
    depth = np.clip((radius - .38) / .42, 0, 1)  # 0 deep inside, 1 at the cortex
    label = np.zeros((side, side), np.int64)
    for tissue, edge in ((1, 1.00), (2, .89), (3, .79), (5, .74)):
        label[radius < edge] = tissue
    label[(radius < .74) & ((folds < .80 * depth) | (radius > .68))] = 4
    label[(radius < .74) & (folds < .15 * depth)] = 3
    label[(np.abs(u) < .012) & (radius < .74) & (np.abs(v) > .30)] = 3  # between the hemispheres
    w = np.abs(u)  # mirror images: left and right
    label[np.hypot((v + .02) / .17, (w - .17) / .085) < 1.1 - .8 * z] = 4  # thalami
    label[np.hypot((v + .27) / .12, (w - .16) / .05) < 1.2 - .9 * z] = 4   # caudate heads
    horn = v + .02  # the ventricles: two bows, wider at both ends
    bow = ventricle * (1.1 - z) * np.sqrt(np.clip(1 - (horn / .3) ** 2, 0, 1))
    label[np.abs(w - .05 - 1.1 * horn ** 2) < bow] = 3
    return label


def subject_slices(subject, size, slices, seed):
    """Draws T1, T2 of one subject in grey levels, each [slices,size,size]. T1 has Gaussian noise of
    1 % of the range, T2 Laplace noise whose scale depends on the tissue; each has a smooth bias
    field of its own. They are drawn at twice the size, so that pixels at a border mix tissues."""
    rng = np.random.default_rng([seed, subject])
    side = 2 * size
    fields = [smooth_field(rng, cells, side) for cells in (4, 4, 17, 17)]  # bends, then folds
    shape = rng.normal(0, .06), rng.uniform(.82, .92), rng.uniform(.66, .76), rng.uniform(.03, .065)
    contrasts = [contrast * rng.normal(1, .03, 6) for contrast in (T1, T2)]
    bias = [1 + .06 * smooth_field(rng, 2, size) for _ in range(2)]
    out = np.zeros((2, slices, size, size))
    for k, z in enumerate(np.linspace(.05, .75, slices) + rng.uniform(-.04, .04)):
        label = head(z, side, (*fields, shape))
        quarters = [label[i::2, j::2] for i in (0, 1) for j in (0, 1)]
        t1, t2, scale = (255 * np.mean([table[quarter] for quarter in quarters], axis=0)
                         for table in (*contrasts, NOISE))
        t1 = t1 * bias[0] + rng.normal(0, 2.55, t1.shape)
        out[:, k] = t1, t2 * bias[1] + rng.laplace(0, scale)
    return out


def phantoms(subjects, size, slices=6, seed=0):
    """Draws T1, T2 of so many subjects -> two uint8 [subjects * slices, size, size], one subject's
    slices in a row. The same size and seed always give the same arrays."""
    people = []
    for subject in range(subjects):
        images = subject_slices(subject, size, slices, seed).clip(0, 255)
        people.append(np.rint(images).astype(np.uint8))
        progress(subject + 1, subjects, "drawing phantom")
    return [*np.concatenate(people, axis=1)]


def main():
    from matplotlib.figure import Figure
    make_parser(__doc__).parse_args()
    size, shown = 256, 3
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    for row, images, title in zip(figure.subplots(2, 3), phantoms(3, size), ("T1", "T2")):
        for subject, ax in enumerate(row):
            ax.imshow(images[6 * subject + shown], cmap="gray", vmin=0, vmax=255)
            ax.set(title=f"{title} of subject {subject}", xticks=[], yticks=[])
    save_png("phantoms.png", figure)
    print("wrote phantoms.png")


if __name__ == "__main__":
    start(main)
