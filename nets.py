"""The two networks (Sec. 3.4): a U-Net generator with two heads and a DCGAN critic.

    python nets.py [--size 256]    prints every layer with its output shape, parameters and FLOPs

                x [b,c_in,d,d]                                        width   side
    down 0      2 x conv -------------------------------- skip 0      16      d
    down 1      max-pool, 2 x conv ---------------------- skip 1      32      d/2
    down 2      max-pool, 2 x conv ---------------------- skip 2      64      d/4
    down 3      max-pool, 2 x conv ---------------------- skip 3      128     d/8
    down 4      max-pool, 2 x conv ---------------------- skip 4      256     d/16
    down 5      max-pool, 2 x conv                                    512     d/32
    up 0..3     nearest up, conv, join skip 4..1, 2 x conv            256 ... 32, d/16 ... d/2
    image_up    nearest up, conv, join skip 0, 2 x conv               16      d
    image_out   conv3, tanh                                           c_out   d       G^I(x)
    scale_up    as image_up, with its own weights                     16      d
    scale_out   conv3, softplus + floor                               c_out   d       G^sigma(x)

conv is conv3, the 3x3 convolution below, then instance norm and LeakyReLU. The paper splits G after
the last upsampling. Nearest up has no weights, so here each head begins with it. Widths are chosen
to meet the paper's parameter counts, 8.7 and 2.8 million; the released code builds 10.7 and 4.7
million. At a first reading, skip what stands below "Details".
"""
import torch
from torch import nn
from torch.nn import functional as F

import run

ONE_GREY_LEVEL = 1 / 127.5  # one step of an 8-bit image that was scaled to [-1,1]


def conv3(c_in, c_out):
    # Zeros would frame the image in mid-grey, 0 in [-1,1]: a crop would wear that frame where the
    # whole image has anatomy. Reflection lets a border look like what lies beside it.
    return nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode="reflect")


def conv_norm_relu(c_in, c_out):
    # The norm's mean cancels the bias; it stays, since a plain convolution has one.
    return nn.Sequential(conv3(c_in, c_out), instance_norm(c_out), nn.LeakyReLU(0.2, inplace=True))


def double_conv(c_in, c_out):
    return nn.Sequential(conv_norm_relu(c_in, c_out), conv_norm_relu(c_out, c_out))


class Up(nn.Module):
    """This is one level of the decoder: [b,2c,h,w] and its skip [b,c,2h,2w] -> [b,c,2h,2w]."""

    def __init__(self, c):
        super().__init__()
        self.halve = conv_norm_relu(2 * c, c)
        self.merge = double_conv(2 * c, c)

    def forward(self, h, skip):
        h = self.halve(F.interpolate(h, scale_factor=2, mode="nearest"))      # [b,c,2h,2w]
        return self.merge(torch.cat([skip, h], dim=1))


class UNet(nn.Module):
    """The generator G takes one image and gives its translation and a scale per pixel.

    G(x) = [G^I(x), G^sigma(x)],   G^I = tanh(.),   G^sigma = softplus(.) + floor    (Sec. 3.3, 3.4)

    x [b,c_in,d,d] in [-1,1] -> image [b,c_out,d,d] in [-1,1], and scale [b,c_out,d,d] >= floor in
    the units of image. The floor is not in the paper: without it Eq. 9 has no lower bound. Where
    the residual is 0, as in the background, it falls without end as scale -> 0. The floor is one
    grey level: a residual below it carries no information. ValueError unless d is a multiple of 32
    from 64 up.
    """

    def __init__(self, c_in=1, c_out=1, width=16, floor=ONE_GREY_LEVEL):
        super().__init__()
        w = [width * 2 ** level for level in range(6)]                        # 16, 32, ..., 512
        self.floor = floor
        self.down = nn.ModuleList(double_conv(i, o) for i, o in zip([c_in] + w, w))
        self.up = nn.ModuleList(Up(c) for c in (w[4], w[3], w[2], w[1]))
        self.image_up, self.image_out = Up(w[0]), conv3(w[0], c_out)
        self.scale_up, self.scale_out = Up(w[0]), conv3(w[0], c_out)
        he_init(self)

    def encode(self, x, stages=6):
        """Returns the encoder's first stages: [b,w,d,d], [b,2w,d/2,d/2], ..., [b,32w,d/32,d/32]."""
        check_size(x.shape[-1])
        x = with_speck(x)  # changes constant images alone, whose gradients would explode
        levels = [self.down[0](x)]
        for block in self.down[1:stages]:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        return levels

    def trunk(self, x):
        """Returns what both heads share: [b,2w,d/2,d/2] and the finest skip [b,w,d,d]."""
        *skips, h = self.encode(x)
        for up in self.up:
            h = up(h, skips.pop())
        return h, skips.pop()

    def image(self, x):
        """Returns G^I(x) alone, in x's dtype: the critic's updates never need the scale."""
        return torch.tanh(self.image_out(self.image_up(*self.trunk(x))).to(x.dtype))

    def forward(self, x):
        shared = self.trunk(x)
        image = torch.tanh(self.image_out(self.image_up(*shared)).to(x.dtype))
        scale = F.softplus(self.scale_out(self.scale_up(*shared)).to(x.dtype)) + self.floor
        return image, scale


class Critic(nn.Module):
    """The Wasserstein critic f has five 4x4 convolutions of stride 2, one of stride 1 (Sec. 3.4).

    y [b,c,d,d] -> f(y) [b], any real number; d as for UNet, else ValueError. The last
    convolution's map (7x7 at d = 256) is averaged here, before anybody differentiates: f(y) is one
    number, as Eq. 2 has it. The released critic returns a 5x5 map, which its losses average and
    its penalty sums. There is no norm: with DCGAN's batch norm f(y) would depend on other images.
    """

    def __init__(self, c=1, width=32):
        super().__init__()
        w = [width * 2 ** level for level in range(5)]                        # 32, 64, ..., 512
        self.down = nn.ModuleList(nn.Conv2d(i, o, 4, 2, padding=1) for i, o in zip([c] + w, w))
        self.last = nn.Conv2d(w[-1], 1, 4, padding=1)
        he_init(self)

    def forward(self, y):
        check_size(y.shape[-1])
        h = y
        for conv in self.down:
            h = leaky(conv(h))                                                # d/2, ..., d/32
        return self.last(h).to(y.dtype).mean(dim=(1, 2, 3))                   # [b]


# ---------------------------------------------------------------- Details

def he_init(network, slope=0.2):
    """Draws He's initial weights (2015): w ~ N(0, 2 / ((1 + slope^2) fan_in)), biases 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=slope, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)


def instance_norm(c):
    return nn.GroupNorm(c, c)  # a group for each channel, without nn.InstanceNorm2d's copies


def leaky(h, slope=0.2):
    """Computes LeakyReLU as a product with 1 or slope. torch's own brings a second derivative,
    zero everywhere, which would cost the penalty half its FLOPs again and change no number."""
    return h * torch.where(h > 0, h.new_ones(()), h.new_full((), slope))


def with_speck(x):
    """Raises the middle pixel of constant images [b,c,d,d] by one grey level. Without variance
    each of the 27 norms before a head multiplies the gradient by 1/sqrt(1e-5) = 316, and one black
    slice would end a run. An image is constant if its values span less than half a grey level: P(x)
    of a constant varies by 2e-7."""
    spread = x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)
    speck = torch.zeros_like(x[:1])
    speck[..., x.shape[-1] // 2, x.shape[-1] // 2] = ONE_GREY_LEVEL
    return x + (spread < ONE_GREY_LEVEL / 2) * speck


def check_size(d):
    """Raises ValueError where the networks cannot take d x d images: there are five halvings, and a
    1x1 bottom has no variance for the instance norm to divide by."""
    if d < 64 or d % 32:
        raise ValueError(f"the image size must be a multiple of 32 from 64 up, not {d}; try 128")


def layer_table(network, c, d):
    """Lists (name, output shape, parameters, FLOPs) of layers, for one c x d x d image. On the
    meta device nothing is computed. A convolution costs 2 FLOPs per weight and output pixel."""
    network, rows = network.to("meta"), []

    def note(name, layer, shape):
        parameters = sum(w.numel() for w in layer.parameters())
        convolution = isinstance(layer, nn.Conv2d)
        flops = 2 * layer.weight.numel() * shape[-2] * shape[-1] if convolution else 0
        rows.append((name, tuple(shape[1:]), parameters, flops))

    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.GroupNorm)):
            layer.register_forward_hook(lambda l, _, out, name=name: note(name, l, out.shape))
    network(torch.empty(1, c, d, d, device="meta"))
    return rows


def main():
    parser = run.make_parser(__doc__)
    parser.add_argument("--size", type=run.bounded(int, 1, 4096, check_size), default=256,
                        help="side d of the image (Sec. 4.1: 256)")
    d = parser.parse_args().size
    for title, network in (("G, the U-Net with two heads", UNet()), ("f, the critic", Critic())):
        rows = layer_table(network, 1, d)
        rows.append(("total", (), sum(row[2] for row in rows), sum(row[3] for row in rows)))
        print(f"\n{title}, one {d}x{d} image")
        print(f"{'layer':<22}{'output':<18}{'parameters':>12}{'MFLOP':>10}")
        for name, shape, parameters, flops in rows:
            print(f"{name:<22}{'x'.join(map(str, shape)):<18}{parameters:>12,}{flops / 1e6:>10.1f}")


if __name__ == "__main__":
    run.start(main)
