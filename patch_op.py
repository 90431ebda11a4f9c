"""The patch operator P_phi (Eq. 4): cut a square of 70-100 % of the side, zoom it to full size.

    python patch_op.py [IMAGE]    draws a slice and three of its patches: patch_op.png

Bicubic resampling is linear and separable, so P_phi is two small matrices, for rows and columns:

    P_phi(x) = A x B^T,    A, B [b,d,d] built from phi

One batched product thus cuts another square out of every image, on any device, differentiable to
any order.
"""
from typing import NamedTuple

import torch


class Phi(NamedTuple):
    """Holds phi = (rho, j1, j2) of Sec. 3.2, one setting per image, in whole pixels; int64 [b]."""
    size: torch.Tensor  # floor(rho * d), the side of the square
    j1: torch.Tensor    # its first row,    0 <= j1 <= d - size
    j2: torch.Tensor    # its first column, 0 <= j2 <= d - size


def sample_phi(b, d, generator=None):
    """Draws one patch setting for each image of a batch (Sec. 3.2).

    rho ~ U[0.7,1],  size = floor(rho d),  j1, j2 uniform over 0 .. d - size, both ends included.

    b images of d x d pixels -> Phi of int64 [b], on the generator's device (the CPU without one).
    The paper says "randomly", and lets j1, j2 be real; the laws are ours, and a crop starts at a
    pixel. rho = 1 is never drawn. floor() can make a square up to one pixel smaller than 0.7 d.
    The released code never draws the last offset.
    """
    device = generator.device if generator is not None else None
    # Three rows of U[0,1), a number for each image. In float32 rho could round up to 1.
    u0, u1, u2 = torch.rand(3, b, generator=generator, dtype=torch.float64, device=device)
    rho = 0.7 + 0.3 * u0
    size = (rho * d).floor().long()
    j1 = (u1 * (d - size + 1)).floor().long()
    j2 = (u2 * (d - size + 1)).floor().long()
    return Phi(size, j1, j2)


def cubic(t):
    """Keys' kernel with a = -0.5 weighs pixels, as in tf.image.resize(method="bicubic").

    k(t) = 1.5|t|^3 - 2.5|t|^2 + 1 for |t| <= 1,  -0.5|t|^3 + 2.5|t|^2 - 4|t| + 2 for 1 < |t| < 2

    and 0 beyond. t: distances in source pixels, any shape -> weights, same shape. torch's own
    bicubic has a = -0.75, off by some 0.2 on noise in [-1,1]. Source: Keys, "Cubic convolution
    interpolation for digital image processing", 1981.
    """
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, 0))


def resampling_matrix(size, start, d, dtype):
    """Returns the matrix that cuts pixels start .. start+size-1 out of d and stretches them to d.

    A[i,start+k] = cubic(u_i - k) / sum_l cubic(u_i - l) for 0 <= k, l < size, else 0

    with u_i = (i + 1/2) size/d - 1/2, where output pixel i lies between the crop's pixels 0, 1, ...
    size, start: int64 [b]; d: pixels -> [b,d,d] of dtype. The sum is 1 but near the crop's border:
    pixels beyond it do not count, as in TensorFlow. A constant stays constant, and size = d gives
    the identity.
    """
    i = torch.arange(d, device=size.device).view(1, d, 1)                            # output
    k = torch.arange(d, device=size.device).view(1, 1, d) - start.view(-1, 1, 1)     # input
    size = size.view(-1, 1, 1)
    # u_i - k over the common denominator 2d: the only rounding is that of one division.
    distance = ((2 * i + 1) * size - (2 * k + 1) * d).to(dtype) / (2 * d)            # [b,d,d]
    weight = cubic(distance) * ((k >= 0) & (k < size))
    return weight / weight.sum(dim=2, keepdim=True)


def patch(x, phi):
    """The patch operator cuts every image's own crop out and resamples it to full size.

    (4)  P(rho, j1, j2)(x) = R_{d x d x c}( x[j1 : j1 + rho d, j2 : j2 + rho d, :] )

    x [b,c,d,d] in float32 or float64, any range; phi: Phi of [b] -> same shape and dtype. Bicubic
    overshoot is kept: at edges values leave x's range by some per cent. The released code clips
    P(G(x)) inside its patch loss. P is linear in x. ValueError where x is not square or phi does
    not hold one setting per image.
    """
    b, d = x.shape[0], x.shape[-1]
    if x.shape[-2] != d or len(phi.size) != b:
        raise ValueError("patch: wants square images and one phi each, "
                         f"got {tuple(x.shape)} and {len(phi.size)} phi.")
    size, j1, j2 = (v.to(x.device) for v in phi)
    A = resampling_matrix(size, j1, d, x.dtype).unsqueeze(1)                         # [b,1,d,d]
    B = resampling_matrix(size, j2, d, x.dtype).unsqueeze(1)
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would be a grey level off
        return A @ x @ B.transpose(-1, -2)


def main():
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    import run
    from data import read_grey, to_square
    from phantoms import phantoms

    parser = run.make_parser(__doc__)
    parser.add_argument("image", nargs="?", help="PNG, JPEG, TIFF or .npy; without it a phantom")
    args = parser.parse_args()
    d = 256
    try:
        picture = to_square(read_grey(args.image), d) if args.image else phantoms(1, d)[0][0]
    except ValueError as error:
        run.fail(str(error))
    x = torch.from_numpy(picture).float()[None, None].expand(3, 1, d, d)
    size = torch.tensor([int(rho * d) for rho in (0.7, 0.85, 1)])
    phi = Phi(size, (d - size) // 3, (d - size) // 2)
    figure = Figure(figsize=(9, 9.6), layout="constrained")
    axes = figure.subplots(3, 3)
    for row, (rho, size, j1, j2, out) in enumerate(zip((0.7, 0.85, 1), *phi, patch(x, phi))):
        crop = x[row, 0, j1:j1 + size, j2:j2 + size]
        square = Rectangle((j2, j1), size, size, fill=False, edgecolor="orange", linewidth=3)
        axes[row, 0].add_patch(square)
        for ax, image, title in zip(axes[row], (x[row, 0], crop, out[0]), (
                f"x, square at ({j1}, {j2})", f"crop, {size} x {size}: rho = {rho}",
                f"P(x), {d} x {d}")):
            h, w = image.shape
            ax.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255, extent=(0, w, h, 0))
            ax.set(title=title, xlim=(0, d), ylim=(d, 0), xticks=[], yticks=[])
    run.save_png("patch_op.png", figure)
    print("wrote patch_op.png")


if __name__ == "__main__":
    import run
    run.start(main)
