"""Mistakes that people really made, and the likely ones of this paper, each as a small change of ours.

    python tests/mutants.py                  lists them
    python tests/mutants.py plant NAME       plants one in the file it belongs to: an exercise. Hunt it with the tests

A mutant is (name, file, the text as it is, the text as it would be, where the mistake was seen: public issues on GitHub). test_mutants.py plants
each in memory and asserts that the project's own tests notice.
"""
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    name: str
    file: str
    line: str
    wrong: str
    seen: str


LIKELY = "a likely slip"
RELEASED = "the authors' released code"

PENALTY = "(critic_slope(f, y, fake, eps) - 1).clamp(min=0).square().mean()"
Y_TILDE = "y_tilde = (eps * fake + (1 - eps) * y).requires_grad_()"
SLOPE = "torch.linalg.vector_norm(gradient, dim=(1, 2, 3))"
BATCHES = "f(torch.cat([fake, y, patch(fake, phi), patch(y, phi)]))"
SIGNS_5 = "(f_fake - f_y + f_fake_patch - f_y_patch).mean() + p * gradient_penalty(f, y, fake, eps)"
SIGNS_6 = "return adversarial + adversarial_patch + lam * l_patch,"
LAPLACE = "(((b - a).abs() / scale + (2 * scale).log()).sum(dim=(1, 2, 3)) / d ** 2).mean()"
L1 = "((b - a).abs().sum(dim=(1, 2, 3)) / d ** 2).mean()"
ADVERSARIAL = "wasserstein_generator_loss(f, image), wasserstein_generator_loss(f, a)"

MUTANTS = [
    # Eq. 2: the penalty
    Mutant("penalty_two_sided", "losses.py", PENALTY, PENALTY.replace(".clamp(min=0)", ""), "Gulrajani et al., 2017: the original formula, not this paper's"),
    Mutant("penalty_not_squared", "losses.py", PENALTY, PENALTY.replace(".square()", ""), LIKELY),
    Mutant("penalty_around_0", "losses.py", PENALTY, PENALTY.replace(" - 1)", ")"), LIKELY),
    Mutant("penalty_summed_over_batch", "losses.py", PENALTY, PENALTY.replace(".mean()", ".sum()"), LIKELY),
    Mutant("eps_per_pixel", "losses.py", Y_TILDE, "eps = eps * torch.rand_like(y)\n    " + Y_TILDE, "eriklindernoren/PyTorch-GAN issue 5"),
    Mutant("eps_fixed_at_1", "losses.py", Y_TILDE, Y_TILDE.replace("(eps * fake + (1 - eps) * y)", "(fake + 0 * y)"), "public WGAN-GP code"),
    Mutant("eps_at_real_images", "losses.py", Y_TILDE, Y_TILDE.replace("(eps * fake + (1 - eps) * y)", "(0 * fake + y)"), "DRAGAN read as WGAN-GP"),
    Mutant("eps_sides_swapped", "losses.py", Y_TILDE, Y_TILDE.replace("eps * fake + (1 - eps) * y", "eps * y + (1 - eps) * fake"), LIKELY),
    Mutant("eps_one_for_the_batch", "losses.py", Y_TILDE, Y_TILDE.replace("eps * fake + (1 - eps) * y", "eps[:1] * fake + (1 - eps[:1]) * y"), LIKELY),
    Mutant("norm_over_channels_only", "losses.py", SLOPE, "torch.linalg.vector_norm(gradient, dim=1).mean(dim=(1, 2))", "caogang/wgan-gp issue 27, eriklindernoren/PyTorch-GAN issue 20"),
    Mutant("norm_over_whole_batch", "losses.py", SLOPE, "torch.linalg.vector_norm(gradient).expand(len(y))", LIKELY),
    Mutant("norm_of_mean_square", "losses.py", SLOPE, "gradient.square().mean(dim=(1, 2, 3)).sqrt()", LIKELY),
    Mutant("norm_by_sqrt_of_sum", "losses.py", SLOPE, "gradient.square().sum(dim=(1, 2, 3)).sqrt()", "keras-team/keras-io issue 624: NaN at slope 0"),
    Mutant("gradient_of_the_mean", "losses.py", "f(y_tilde).sum()", "f(y_tilde).mean()", LIKELY),
    Mutant("no_create_graph", "losses.py", "create_graph=True", "retain_graph=True", "ooples/AiDotNet issue 1844"),
    # Eq. 2, 3, 5: the critic's risk
    Mutant("penalty_never_added", "losses.py", SIGNS_5, SIGNS_5.split(" + p *")[0], "junyanz/pytorch-CycleGAN-and-pix2pix issue 1201"),
    Mutant("penalty_subtracted", "losses.py", SIGNS_5, SIGNS_5.replace("+ p", "- p"), LIKELY),
    Mutant("penalty_without_p", "losses.py", SIGNS_5, SIGNS_5.replace("p * ", ""), LIKELY),
    Mutant("penalty_on_patches", "losses.py", SIGNS_5, SIGNS_5.replace("f, y, fake, eps", "f, patch(y, phi), patch(fake, phi), eps"), RELEASED),
    Mutant("critic_sign_flipped", "losses.py", SIGNS_5, SIGNS_5.replace("f_fake - f_y +", "f_y - f_fake +"), LIKELY),
    Mutant("critic_patch_sign_flipped", "losses.py", SIGNS_5, SIGNS_5.replace("f_fake_patch - f_y_patch", "f_y_patch - f_fake_patch"), LIKELY),
    Mutant("critic_without_patches", "losses.py", SIGNS_5, SIGNS_5.replace(" + f_fake_patch - f_y_patch", ""), LIKELY),
    Mutant("critic_half_weights", "losses.py", SIGNS_5, SIGNS_5.replace("+ f_fake_patch - f_y_patch", "+ 0.5 * (f_fake_patch - f_y_patch)"), RELEASED),
    Mutant("critic_batches_swapped", "losses.py", BATCHES, BATCHES.replace("patch(fake, phi), patch(y, phi)", "patch(y, phi), patch(fake, phi)"), LIKELY),
    Mutant("critic_patches_real_only", "losses.py", BATCHES, BATCHES.replace("patch(fake, phi)", "fake"), LIKELY),
    Mutant("critic_other_phi_for_real", "losses.py", BATCHES, BATCHES.replace("patch(y, phi)", "patch(y, type(phi)(phi.size, phi.j2, phi.j1))"), LIKELY),
    Mutant("drift_penalty", "losses.py", SIGNS_5, SIGNS_5 + " + 5e-4 * (f_y ** 2 + f_fake ** 2).mean()", RELEASED),
    Mutant("eq3_sign_flipped", "losses.py", "return -f(fake).mean()", "return f(fake).mean()", LIKELY),
    Mutant("eq2_with_p_1", "losses.py", "def wasserstein_critic_loss(f, y, fake, eps, p=10.0)", "def wasserstein_critic_loss(f, y, fake, eps, p=1.0)", LIKELY),
    Mutant("eq2_sign_flipped", "losses.py", "(f(fake) - f(y)).mean()", "(f(y) - f(fake)).mean()", LIKELY),
    # Eq. 6, 9: the generator's risk
    Mutant("zoom_first_in_eq6", "losses.py", "a = patch(image, phi)", "a = G(patch(x, phi))[0]", RELEASED),
    Mutant("adversarial_patch_of_g_of_p", "losses.py", ADVERSARIAL, ADVERSARIAL.replace("(f, a)", "(f, b)"), RELEASED),
    Mutant("adversarial_patch_missing", "losses.py", SIGNS_6, SIGNS_6.replace(" + adversarial_patch", ""), LIKELY),
    Mutant("adversarial_half_weights", "losses.py", SIGNS_6, "return (adversarial + adversarial_patch) / 2 + lam * l_patch,", RELEASED),
    Mutant("adversarial_sign_flipped", "losses.py", SIGNS_6, SIGNS_6.replace("adversarial +", "-adversarial +"), LIKELY),
    Mutant("patch_sign_flipped", "losses.py", SIGNS_6, SIGNS_6.replace("+ lam", "- lam"), LIKELY),
    Mutant("lam_ignored", "losses.py", SIGNS_6, SIGNS_6.replace("lam * ", ""), LIKELY),
    Mutant("other_phi_on_each_side", "losses.py", "a = patch(image, phi)", "a = patch(image, type(phi)(phi.size, phi.j2, phi.j1))", LIKELY),
    Mutant("scale_of_the_wrong_image", "losses.py", "image, _ = G(x)\n    b, scale = G(patch(x, phi))", "image, scale = G(x)\n    b, _ = G(patch(x, phi))", LIKELY),
    Mutant("patch_of_the_scale", "losses.py", "image, _ = G(x)\n    b, scale = G(patch(x, phi))", "image, scale = G(x)\n    scale = patch(scale, phi)\n    b, _ = G(patch(x, phi))", RELEASED),
    Mutant("gradient_stopped_at_p_of_g", "losses.py", "a = patch(image, phi)", "a = patch(image, phi).detach()", "habit from distillation and self-training"),
    Mutant("gradient_stopped_at_g_of_p", "losses.py", "b, scale = G(patch(x, phi))", "b, scale = G(patch(x, phi))\n    b = b.detach()", "habit from distillation and self-training"),
    Mutant("gradient_stopped_at_the_scale", "losses.py", "b, scale = G(patch(x, phi))", "b, scale = G(patch(x, phi))\n    scale = scale.detach()", LIKELY),
    Mutant("residual_clipped", "losses.py", "a = patch(image, phi)", "a = patch(image, phi).clamp(-1, 1)", RELEASED),
    Mutant("uncertainty_inverted", "losses.py", "if uncertainty else", "if not uncertainty else", LIKELY),
    Mutant("log_term_dropped", "losses.py", LAPLACE, LAPLACE.replace(" + (2 * scale).log()", ""), LIKELY),
    Mutant("log_without_2", "losses.py", LAPLACE, LAPLACE.replace("(2 * scale).log()", "scale.log()"), "Kendall and Gal's Gaussian form"),
    Mutant("log_of_1_plus_2s", "losses.py", LAPLACE, LAPLACE.replace("(2 * scale).log()", "(1 + 2 * scale).log()"), RELEASED),
    Mutant("residual_squared", "losses.py", LAPLACE, LAPLACE.replace("(b - a).abs() / scale", "(b - a).square() / scale"), "a Gaussian likelihood"),
    Mutant("residual_times_scale", "losses.py", LAPLACE, LAPLACE.replace(".abs() / scale", ".abs() * scale"), "read as a precision"),
    Mutant("laplace_mean_over_channels", "losses.py", LAPLACE, "((b - a).abs() / scale + (2 * scale).log()).mean()", LIKELY),
    Mutant("l1_squared", "losses.py", "return " + L1, "return " + L1.replace(".abs()", ".square()"), LIKELY),
    Mutant("l1_summed", "losses.py", "return " + L1, "return (b - a).abs().sum()", LIKELY),
    # Eq. 4: the patch operator
    Mutant("kernel_of_torch", "patch_op.py", "near = (1.5 * t - 2.5) * t * t + 1\n    far = ((-0.5 * t + 2.5) * t - 4) * t + 2",
           "near = (1.25 * t - 2.25) * t * t + 1\n    far = ((-0.75 * t + 3.75) * t - 6) * t + 3", "torch's own bicubic, a = -0.75"),
    Mutant("kernel_linear", "patch_op.py", "far = ((-0.5 * t + 2.5) * t - 4) * t + 2", "far, near = 0 * t, 1 - t", "bilinear instead of bicubic"),
    Mutant("rows_and_columns_swapped", "patch_op.py", "return A @ x @ B.transpose(-1, -2)", "return B @ x @ A.transpose(-1, -2)", "x and y against rows and columns"),
    Mutant("align_corners", "patch_op.py", "((2 * i + 1) * size - (2 * k + 1) * d).to(dtype) / (2 * d)", "i * (size - 1).to(dtype) / (d - 1) - k", "align_corners=True"),
    Mutant("no_half_pixel", "patch_op.py", "((2 * i + 1) * size - (2 * k + 1) * d).to(dtype) / (2 * d)", "(i * size - k * d).to(dtype) / d", "half_pixel_centers=False"),
    Mutant("off_by_one", "patch_op.py", "- start.view(-1, 1, 1)", "- start.view(-1, 1, 1) - 1", LIKELY),
    Mutant("no_renormalisation", "patch_op.py", "return weight / weight.sum(dim=2, keepdim=True)", "return weight", LIKELY),
    Mutant("taps_beyond_the_crop", "patch_op.py", "(k >= 0) & (k < size)", "(k >= -9) & (k < size + 9)", LIKELY),
    Mutant("one_phi_for_the_batch", "patch_op.py", "torch.rand(3, b, generator=generator, dtype=torch.float64, device=device)",
           "torch.rand(3, 1, generator=generator, dtype=torch.float64, device=device).expand(3, b)", RELEASED),
    Mutant("size_rounded_up", "patch_op.py", "size = (rho * d).floor()", "size = (rho * d).ceil()", LIKELY),
    Mutant("last_offset_never_drawn", "patch_op.py", "(u1 * (d - size + 1)).floor()", "(u1 * (d - size)).floor()", RELEASED),
    Mutant("offset_past_the_end", "patch_op.py", "(u2 * (d - size + 1)).floor()", "(u2 * (d - size + 2)).floor()", LIKELY),
    Mutant("one_offset_for_both_axes", "patch_op.py", "(u2 * (d - size + 1)).floor()", "(u1 * (d - size + 1)).floor()", LIKELY),
    Mutant("rho_from_one_half", "patch_op.py", "0.7 + 0.3 * u0", "0.5 + 0.5 * u0", LIKELY),
    # Sec. 3.4: networks
    Mutant("heads_swapped", "nets.py", "return image, scale", "return scale, image", LIKELY),
    Mutant("softplus_missing", "nets.py", "scale = F.softplus(self.scale_out(self.scale_up(*shared))) + self.floor", "scale = self.scale_out(self.scale_up(*shared)) + self.floor", LIKELY),
    Mutant("floor_missing", "nets.py", "self.scale_up(*shared))) + self.floor", "self.scale_up(*shared)))", "the paper as printed"),
    Mutant("scale_from_the_image_head", "nets.py", "self.scale_out(self.scale_up(*shared))", "self.scale_out(self.image_up(*shared))", LIKELY),
    Mutant("tanh_missing", "nets.py", "image = torch.tanh(self.image_out(self.image_up(*shared)))\n        scale", "image = self.image_out(self.image_up(*shared))\n        scale", LIKELY),
    Mutant("zero_padding", "nets.py", ", padding_mode=\"reflect\"", "", "every framework's default"),
    Mutant("critic_map_summed", "nets.py", "return self.layers(y).mean(dim=(1, 2, 3))", "return self.layers(y).sum(dim=(1, 2, 3))", RELEASED),
    Mutant("critic_mean_over_batch", "nets.py", "return self.layers(y).mean(dim=(1, 2, 3))", "return self.layers(y).mean(dim=(0, 1, 2, 3)).expand(len(y))", LIKELY),
    Mutant("critic_with_batch_norm", "nets.py", "layers += [nn.Conv2d(i, o, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]",
           "layers += [nn.Conv2d(i, o, 4, stride=2, padding=1), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)]", "DCGAN's own critic"),
    # Sec. 3.4: the loop
    Mutant("fakes_not_detached", "train.py", "with torch.no_grad():\n                fake = G.image(x)", "if True:\n                fake = G.image(x)", LIKELY),
    Mutant("both_heads_in_critic_updates", "train.py", "fake = G.image(x)", "fake = G(x)[0]", LIKELY),
    Mutant("critic_zero_grad_missing", "train.py", "opt_f.zero_grad()\n", "pass\n", LIKELY),
    Mutant("generator_zero_grad_missing", "train.py", "opt_G.zero_grad()\n", "pass\n", LIKELY),
    Mutant("critic_moves_in_the_generators_step", "train.py", "opt_G.step() ", "opt_G.step(); opt_f.step() ", LIKELY),
    Mutant("generator_moves_in_the_critics_step", "train.py", "opt_f.step() ", "opt_f.step(); opt_G.step() ", LIKELY),
    Mutant("critic_collects_the_generators_gradient", "train.py", "f.requires_grad_(False)", "f.requires_grad_(True)", LIKELY),
    Mutant("critic_stays_frozen", "train.py", "f.requires_grad_(True)\n        step", "step", LIKELY),
    Mutant("betas_of_torch", "train.py", "opt_f = torch.optim.Adam(f.parameters(), lr=config[\"lr_c\"], betas=(0.0, 0.9))", "opt_f = torch.optim.Adam(f.parameters(), lr=config[\"lr_c\"])", LIKELY),
    Mutant("learning_rates_swapped", "train.py", "lr=config[\"lr_g\"]", "lr=config[\"lr_c\"]", LIKELY),
    Mutant("optimiser_of_the_wrong_network", "train.py", "torch.optim.Adam(G.parameters()", "torch.optim.Adam(f.parameters()", LIKELY),
    Mutant("eps_normal", "train.py", "torch.rand(b, 1, 1, 1,", "torch.randn(b, 1, 1, 1,", "keras-team/keras-io issue 415"),
    Mutant("eps_drawn_per_pixel", "train.py", "torch.rand(b, 1, 1, 1,", "torch.rand(b, 1, d, d,", "hwalsuklee/tensorflow-generative-model-collections issue 33"),
    Mutant("phi_kept_from_the_critic", "train.py", "phi = sample_phi(b, d, streams[\"phi\"])                                         # (8)", "# (8)", RELEASED),
    Mutant("batch_kept_from_the_critic", "train.py", "x = draw(X, b, streams[\"x\"], device)                                           # (7)", "# (7)", RELEASED),
    Mutant("x_and_y_from_one_stream", "train.py", "draw(Y, b, streams[\"y\"], device)", "draw(Y, b, streams[\"x\"], device)", LIKELY),
    Mutant("x_and_y_seeded_alike", "train.py", "manual_seed(1000 * config[\"seed\"] + k)", "manual_seed(1000 * config[\"seed\"])", LIKELY),
    Mutant("real_images_from_the_input", "train.py", "y = draw(X, b, streams[\"x\"], device), draw(Y,", "y = draw(X, b, streams[\"x\"], device), draw(X,", LIKELY),
    Mutant("pi_and_uapi_swapped", "train.py", "config[\"method\"] == \"uapi\")", "config[\"method\"] == \"pi\")", LIKELY),
    Mutant("one_critic_update_too_many", "train.py", "in range(config[\"critic_steps\"])", "in range(config[\"critic_steps\"] + 1)", LIKELY),
    Mutant("critic_width_ignored", "train.py", "Critic(width=config[\"critic_width\"])", "Critic(width=config[\"width\"])", LIKELY),
    Mutant("seed_ignored_by_the_weights", "train.py", "torch.manual_seed(config[\"seed\"])", "torch.manual_seed(0)", LIKELY),
    Mutant("seed_ignored_by_the_streams", "train.py", "manual_seed(1000 * config[\"seed\"] + k)", "manual_seed(k)", LIKELY),
    # Sec. 4.2: metrics and scenarios
    Mutant("psnr_pooled_over_images", "evaluate.py", "(a - b).square().mean(dim=(1, 2, 3)))", "(a - b).square().mean().expand(len(a)))", RELEASED),
    Mutant("psnr_with_log_e", "evaluate.py", "torch.log10(data_range ** 2", "torch.log(data_range ** 2", LIKELY),
    Mutant("psnr_range_not_squared", "evaluate.py", "torch.log10(data_range ** 2", "torch.log10(data_range", LIKELY),
    Mutant("ssim_across_images", "evaluate.py", "return similarity.mean(dim=(1, 2, 3))", "return similarity.mean().expand(len(a))", RELEASED),
    Mutant("ssim_with_the_wrong_range", "evaluate.py", "C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2", "C1, C2 = 0.01 ** 2, 0.03 ** 2", "images in [0,255] with data_range = 1"),
    Mutant("ssim_uniform_window", "evaluate.py", "window = torch.exp(-t ** 2 / (2 * 1.5 ** 2))", "window = torch.ones_like(t)", LIKELY),
    Mutant("ssim_sample_covariance", "evaluate.py", "(2 * cov + C2)", "(2 * cov * 121 / 120 + C2)", "skimage's default"),
    Mutant("perturbed_on_minus_1_to_1", "evaluate.py", "k / 100 * 255 * noise", "k / 100 * noise", LIKELY),
    Mutant("noise_not_clipped", "evaluate.py", "255 * noise).clamp(0, 255)", "255 * noise)", LIKELY),
    Mutant("noise_variance_for_deviation", "evaluate.py", "k / 100 * 255 * noise", "(k / 100 * 255) ** 0.5 * noise", LIKELY),
    Mutant("impulses_black_and_white", "evaluate.py", "255 * value, x)", "255 * value.round(), x)", "salt-and-pepper noise"),
    Mutant("impulses_tenfold", "evaluate.py", "hit < k / 100", "hit < k / 10", LIKELY),
    Mutant("one_noise_for_all_images", "evaluate.py", "+ i for i in range(len(x))", "for i in range(len(x))", LIKELY),
    Mutant("pearson_without_centring", "evaluate.py", "u, v = u - u.mean(), v - v.mean()", "u, v = u, v", LIKELY),
]


def plant(mutant, source):
    """The source with the mutant in it. The line must stand there exactly once, or nobody knows what was planted."""
    if source.count(mutant.line) != 1:
        raise ValueError(f"{mutant.name}: its line stands {source.count(mutant.line)} times in {mutant.file}: {mutant.line}")
    return source.replace(mutant.line, mutant.wrong)


def main():
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    if sys.argv[1:2] == ["plant"] and len(sys.argv) == 3 and sys.argv[2] in by_name:
        mutant = by_name[sys.argv[2]]
        path = ROOT / mutant.file
        path.write_text(plant(mutant, path.read_text()))
        print(f"planted in {mutant.file}; hunt it: python -m pytest -q tests; take it out: git checkout {mutant.file}")
    elif not sys.argv[1:]:
        for mutant in MUTANTS:
            print(f"{mutant.name:<42}{mutant.file:<13}{mutant.seen}")
    else:
        raise SystemExit("usage: python tests/mutants.py [plant NAME], NAME being one that the list shows")


if __name__ == "__main__":
    main()
