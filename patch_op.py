"""The patch operator P_phi (Eq. 4): cut a random square of 70-100 % of the side, zoom it back to full size.

    python patch_op.py [IMAGE]    draws a slice, three random patches and their resampled versions: patch_op.png

Bicubic resampling is linear and separable, so P_phi is two small matrices, one for the rows and one for the columns:

    P_phi(x) = A x B^T,    A, B [b,d,d] built from phi

One batched product thus cuts another square out of every image, on any device, differentiable to any order.
"""
import argparse
from typing import NamedTuple

import torch


class Phi(NamedTuple):
    """Patch settings phi = (rho, j1, j2) of Sec. 3.2, one per image, in whole pixels; each an int64 tensor [b]."""
    size: torch.Tensor  # floor(rho * d), the side of the square
    j1: torch.Tensor    # its first row,    0 <= j1 <= d - size
    j2: torch.Tensor    # its first column, 0 <= j2 <= d - size


def sample_phi(b, d, generator=None):
    """Draws one patch setting for each image of a batch (Sec. 3.2).

    rho ~ U[0.7,1],  size = floor(rho d),  j1, j2 uniform over the whole numbers 0 .. d - size, both ends included.

    b images of d x d pixels -> Phi of int64 [b], on the generator's device (the CPU without one).
    The paper lets j1, j2 be real; a crop starts at a pixel, so whole numbers are drawn. size = d, rho = 1, has
    probability 0. The released code draws one phi for a whole batch and never the last offset. Source: Sec. 3.2.
    """
    device = generator.device if generator is not None else None
    # Three columns of U[0,1). In float64 neither floor() below can round up past its range.
    u0, u1, u2 = torch.rand(3, b, generator=generator, dtype=torch.float64, device=device)
    rho = 0.7 + 0.3 * u0
    size = (rho * d).floor().long()
    return Phi(size, (u1 * (d - size + 1)).floor().long(), (u2 * (d - size + 1)).floor().long())


def keys(t):
    """Keys' cubic convolution kernel with a = -0.5, the one behind tf.image.resize(method="bicubic").

    k(t) = 1.5|t|^3 - 2.5|t|^2 + 1  for |t| <= 1,   -0.5|t|^3 + 2.5|t|^2 - 4|t| + 2  for 1 < |t| < 2,   0 beyond.

    t: distances in source pixels, any shape -> weights, same shape. torch's own bicubic has a = -0.75: off by
    0.2 and more on noise in [-1,1]. Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def resampling_matrix(size, start, d, dtype):
    """The matrix that cuts pixels start .. start+size-1 out of a line of d pixels and stretches them to d.

    A[i,k] = keys(u_i - (k - start)) for start <= k < start + size, else 0, each row divided by its sum,
    with u_i = (i + 1/2) size/d - 1/2, the place of output pixel i in the crop (pixel centres lie at half numbers).

    size, start: int64 [b]; d: pixels -> [b,d,d] of dtype. Taps outside the crop are dropped and the rest renormalised,
    as TensorFlow does; so a constant stays constant, and size = d gives the identity.
    """
    i = torch.arange(d, device=size.device).view(1, d, 1)
    k = torch.arange(d, device=size.device).view(1, 1, d) - start.view(-1, 1, 1)
    size = size.view(-1, 1, 1)
    # u_i - k over the common denominator 2d: whole numbers, so the only rounding is that of one division.
    distance = ((2 * i + 1) * size - (2 * k + 1) * d).to(dtype) / (2 * d)
    weight = torch.where((k >= 0) & (k < size), keys(distance), torch.zeros_like(distance))
    return weight / weight.sum(dim=2, keepdim=True)


def patch(x, phi):
    """The patch operator: every image's own crop, resampled to full size.

    P(rho, j1, j2)(x) = R_{d x d x c}( x[j1 : j1 + rho d, j2 : j2 + rho d, :] )                              (4)

    x [b,c,d,d] of any float type and range; phi: Phi of [b] -> same shape and dtype. Bicubic overshoot is kept: values
    can leave x's range by some per cent at edges. Linear in x. The released code clips the result to [-1,1].
    Raises ValueError where x is not square or phi does not hold one setting per image.
    """
    b, d = x.shape[0], x.shape[-1]
    if x.shape[-2] != d or len(phi.size) != b:
        raise ValueError(f"patch: wants square images and one phi each, got {tuple(x.shape)} and {len(phi.size)} phi.")
    size, j1, j2 = (v.to(x.device) for v in phi)
    A = resampling_matrix(size, j1, d, x.dtype).unsqueeze(1)
    B = resampling_matrix(size, j2, d, x.dtype).unsqueeze(1)
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 weights would blur by more than a grey level
        return A @ x @ B.transpose(-1, -2)


def main():
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    import run
    from data import fit, phantoms, read_grey

    parser = argparse.ArgumentParser(description="Draw a slice, three random patches and their resampled versions.")
    parser.add_argument("image", nargs="?", help="a slice, PNG, JPEG, TIFF or .npy; without it a phantom (Sec. 3.2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of phi (Sec. 3.2: random)")
    parser.error = run.fail
    args = parser.parse_args()

    d = 256
    try:
        picture = fit(read_grey(args.image), d) if args.image else phantoms(d, subjects=1).input[0]
    except ValueError as error:
        run.fail(f"{error}.")
    x = torch.from_numpy(picture).float()[None, None].repeat(3, 1, 1, 1)
    phi = sample_phi(3, d, torch.Generator().manual_seed(args.seed))
    zoomed = patch(x, phi).clip(0, 255)
    figure = Figure(figsize=(9, 9.6), layout="constrained")
    axes = figure.subplots(3, 3)
    for row, (size, j1, j2, out) in enumerate(zip(*phi, zoomed)):
        crop = x[row, 0, j1:j1 + size, j2:j2 + size]
        axes[row, 0].add_patch(Rectangle((j2 - .5, j1 - .5), size, size, fill=False, edgecolor="orange", linewidth=2))
        for ax, picture, title in zip(axes[row], (x[row, 0], crop, out[0]), (
                f"x, square at ({j1}, {j2})", f"crop, {size} x {size}", f"$P_\\phi(x)$, {d} x {d}")):
            ax.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=255)
            ax.set(title=title, xticks=[], yticks=[])
    figure.savefig("patch_op.png", dpi=100)
    print("wrote patch_op.png")


if __name__ == "__main__":
    main()
