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
    Mutant("softplus_missing", "nets.py", "scale = F.softplus(self.scale_out(self.scale_up(*shared)).to(x.dtype)) + self.floor", "scale = self.scale_out(self.scale_up(*shared)) + self.floor", LIKELY),
    Mutant("floor_missing", "nets.py", "self.scale_up(*shared)).to(x.dtype)) + self.floor", "self.scale_up(*shared)).to(x.dtype))", "the paper as printed"),
    Mutant("scale_from_the_image_head", "nets.py", "self.scale_out(self.scale_up(*shared))", "self.scale_out(self.image_up(*shared))", LIKELY),
    Mutant("tanh_missing", "nets.py", "image = torch.tanh(self.image_out(self.image_up(*shared)).to(x.dtype))\n        scale", "image = self.image_out(self.image_up(*shared))\n        scale", LIKELY),
    Mutant("zero_padding", "nets.py", ", padding_mode=\"reflect\"", "", "every framework's default"),
    Mutant("critic_map_summed", "nets.py", "return self.last(h).to(y.dtype).mean(dim=(1, 2, 3))", "return self.last(h).sum(dim=(1, 2, 3))", RELEASED),
    Mutant("critic_mean_over_batch", "nets.py", "return self.last(h).to(y.dtype).mean(dim=(1, 2, 3))", "return self.last(h).mean(dim=(0, 1, 2, 3)).expand(len(y))", LIKELY),
    Mutant("critic_with_batch_norm", "nets.py", "h = leaky(conv(h))", "h = leaky(F.batch_norm(conv(h), None, None, training=True))", "DCGAN's own critic"),
    Mutant("critic_linear", "nets.py", "h = leaky(conv(h))", "h = conv(h)", LIKELY),
    Mutant("critic_slope_of_relu", "nets.py", "def leaky(h, slope=0.2)", "def leaky(h, slope=0.0)", LIKELY),
    # Sec. 3.4: the loop
    Mutant("fakes_not_detached", "train.py", "with torch.no_grad():\n                        fake = G.image(x)", "if True:\n                        fake = G.image(x)", LIKELY),
    Mutant("both_heads_in_critic_updates", "train.py", "fake = G.image(x)", "fake = G(x)[0]", LIKELY),
    Mutant("critic_zero_grad_missing", "train.py", "opt_f.zero_grad()\n", "pass\n", LIKELY),
    Mutant("generator_zero_grad_missing", "train.py", "opt_G.zero_grad()\n", "pass\n", LIKELY),
    Mutant("critic_moves_in_the_generators_step", "train.py", "opt_G.step() ", "opt_G.step(); opt_f.step() ", LIKELY),
    Mutant("generator_moves_in_the_critics_step", "train.py", "opt_f.step() ", "opt_f.step(); opt_G.step() ", LIKELY),
    Mutant("critic_collects_the_generators_gradient", "train.py", "omega.requires_grad_(False)", "omega.requires_grad_(True)", LIKELY),
    Mutant("critic_stays_frozen", "train.py", "omega.requires_grad_(True)\n        step", "step", LIKELY),
    Mutant("betas_of_torch", "train.py", "lr=config[\"lr_c\"], betas=(0.0, 0.9))", "lr=config[\"lr_c\"])", LIKELY),
    Mutant("learning_rates_swapped", "train.py", "lr=config[\"lr_g\"]", "lr=config[\"lr_c\"]", LIKELY),
    Mutant("optimiser_of_the_wrong_network", "train.py", "torch.optim.Adam(theta.to(device).parameters()", "torch.optim.Adam(omega.to(device).parameters()", LIKELY),
    Mutant("eps_normal", "train.py", "torch.rand(b, 1, 1, 1,", "torch.randn(b, 1, 1, 1,", "keras-team/keras-io issue 415"),
    Mutant("eps_drawn_per_pixel", "train.py", "torch.rand(b, 1, 1, 1,", "torch.rand(b, 1, d, d,", "hwalsuklee/tensorflow-generative-model-collections issue 33"),
    Mutant("phi_kept_from_the_critic", "train.py", "phi = sample_phi(b, d, streams[\"phi\"])                                         # (8)", "# (8)", RELEASED),
    Mutant("batch_kept_from_the_critic", "train.py", "x = draw(X, b, streams[\"x\"], device)                                           # (7)", "# (7)", RELEASED),
    Mutant("x_and_y_from_one_stream", "train.py", "device), draw(Y, b, streams[\"y\"], device)", "device), draw(Y, b, streams[\"x\"], device)", LIKELY),
    Mutant("x_and_y_seeded_alike", "train.py", "manual_seed(1000 * config[\"seed\"] + k)", "manual_seed(1000 * config[\"seed\"])", LIKELY),
    Mutant("real_images_from_the_input", "train.py", "y = draw(X, b, streams[\"x\"], device), draw(Y,", "y = draw(X, b, streams[\"x\"], device), draw(X,", LIKELY),
    Mutant("pi_and_uapi_swapped", "train.py", "lam, method == \"uapi\")", "lam, method == \"pi\")", LIKELY),
    Mutant("one_critic_update_too_many", "train.py", "in range(critic_updates(method, config[\"critic_steps\"], step))", "in range(critic_updates(method, config[\"critic_steps\"], step) + 1)", LIKELY),
    Mutant("critic_width_ignored", "train.py", "Critic(width=critic_width)", "Critic(width=width)", LIKELY),
    Mutant("seed_ignored_by_the_weights", "train.py", "torch.manual_seed(config[\"seed\"])", "torch.manual_seed(0)", LIKELY),
    Mutant("seed_ignored_by_the_streams", "train.py", "manual_seed(1000 * config[\"seed\"] + k)", "manual_seed(k)", LIKELY),
    # Sec. 4.2: the compared methods
    Mutant("cycle_one_way_only", "baselines.py", "cycle = (H.image(fake_y) - x).abs().mean() + (G.image(fake_x) - y).abs().mean()", "cycle = (H.image(fake_y) - x).abs().mean()", LIKELY),
    Mutant("cycle_against_the_other_domain", "baselines.py", "cycle = (H.image(fake_y) - x)", "cycle = (H.image(fake_y) - y)", LIKELY),
    Mutant("cycle_generators_swapped", "baselines.py", "fake_y, fake_x = G.image(x), H.image(y)\n    adversarial = wasserstein_generator_loss(f, fake_y) + wasserstein_generator_loss(g, fake_x)\n    cycle = (H.image",
           "fake_y, fake_x = G.image(x), H.image(y)\n    adversarial = wasserstein_generator_loss(f, fake_x) + wasserstein_generator_loss(g, fake_y)\n    cycle = (H.image", LIKELY),
    Mutant("cycle_critics_share_one_fake", "baselines.py", "(omega[\"g\"], x, theta[\"H\"].image(y))", "(omega[\"g\"], x, G.image(x))", LIKELY),
    Mutant("cycle_of_g_left_out_of_the_critics", "baselines.py", "for critic, real, fake in triples)", "for critic, real, fake in triples[:1])", LIKELY),
    Mutant("ugac_beta_multiplies", "baselines.py", "((r.abs().clamp(min=1e-6) / alpha) ** beta -", "(r.abs().clamp(min=1e-6) / alpha * beta -", "UGAC's public code"),
    Mutant("ugac_lgamma_of_beta", "baselines.py", "torch.lgamma(1 / beta)", "torch.lgamma(beta)", LIKELY),
    Mutant("ugac_log_of_alpha_over_beta", "baselines.py", "- (beta / alpha).log()", "- (alpha / beta).log()", LIKELY),
    Mutant("ugac_residual_not_kept_from_0", "baselines.py", "r.abs().clamp(min=1e-6)", "r.abs()", LIKELY),
    Mutant("ugac_maps_swapped", "baselines.py", "back_y, alpha, beta = G(fake_x)", "back_y, beta, alpha = G(fake_x)", LIKELY),
    Mutant("ugac_likelihood_one_way_only", "baselines.py", "generalized_gaussian(back_x - x, alpha_x, beta_x) + generalized_gaussian", "generalized_gaussian", LIKELY),
    Mutant("ugac_beta_from_alphas_level", "baselines.py", "self.beta_out(self.beta_up(*shared))", "self.beta_out(self.scale_up(*shared))", LIKELY),
    Mutant("ugac_beta_unbounded", "baselines.py", ".clamp(max=4)", "", LIKELY),
    Mutant("flip_up_and_down", "baselines.py", "return x.flip(-1)", "return x.flip(-2)", "rows against columns"),
    Mutant("flip_not_taken_back", "baselines.py", "    a = T(image)", "    a = image", LIKELY),
    Mutant("mirrored_real_images_missing", "baselines.py", "(omega[\"f_T\"], T(y), G", "(omega[\"f_T\"], y, G", LIKELY),
    Mutant("gcgan_one_critic_for_both", "baselines.py", "wasserstein_generator_loss(f_T, b)", "wasserstein_generator_loss(f, b)", LIKELY),
    Mutant("uagc_scale_ignored", "baselines.py", "consistency = patch_laplace(a, b, scale) if uncertainty else patch_l1(a, b)", "consistency = patch_l1(a, b)", LIKELY),
    Mutant("nce_negatives_from_the_batch", "baselines.py", "q @ k.transpose(1, 2) / tau", "q @ k.roll(1, 0).transpose(1, 2) / tau", LIKELY),
    Mutant("nce_temperature_multiplies", "baselines.py", "transpose(1, 2) / tau", "transpose(1, 2) * tau", LIKELY),
    Mutant("nce_keys_not_detached", "baselines.py", "        with torch.no_grad():\n            keys = features", "        if True:\n            keys = features", LIKELY),
    Mutant("nce_heads_without_unit_norm", "baselines.py", "nn.functional.normalize(head(vectors), dim=2)", "head(vectors)", LIKELY),
    Mutant("nce_of_y_left_out", "baselines.py", "(NCE(x, fake) + NCE(y, same)) / 2", "NCE(x, fake) / 2", LIKELY),
    Mutant("cut_places_with_replacement", "baselines.py", "torch.randperm((d // k) ** 2, generator=generator)[:most]", "torch.randint((d // k) ** 2, (min(most, (d // k) ** 2),), generator=generator)", LIKELY),
    Mutant("cut_query_and_key_swapped", "baselines.py", "NCE(x, fake) + NCE(y, same)", "NCE(fake, x) + NCE(same, y)", LIKELY),
    Mutant("cut_scored_on_y", "baselines.py", "wasserstein_generator_loss(f, fake), (NCE", "wasserstein_generator_loss(f, same), (NCE", LIKELY),
    Mutant("released_penalty_on_the_mean", "baselines.py", "(25 * critic_slope", "(critic_slope", "the paper"),
    Mutant("released_without_drift", "baselines.py", " + 5e-4 * (f_y.square() + f_fake.square()).mean()", "", "the paper"),
    Mutant("released_ratio_undamped", "baselines.py", "torch.where(t <= 2, t, 2 + (t.clamp(min=2) - 1).log())", "t", "the paper"),
    Mutant("released_where_leaks_nan", "baselines.py", "(t.clamp(min=2) - 1).log()", "(t - 1).log()", RELEASED),
    Mutant("released_whole_adversarial_terms", "baselines.py", "wasserstein_generator_loss(f, b)) / 2", "wasserstein_generator_loss(f, b))", "the paper"),
    Mutant("released_residual_not_clipped", "baselines.py", "patch(image, phi).clamp(-1, 1)", "patch(image, phi)", "the paper"),
    Mutant("released_pool_never_swaps", "baselines.py", "if place < most:", "if place < 0:", "the paper"),
    Mutant("released_phi_new_every_turn", "baselines.py", "    if turn == 0:\n        memory", "    if True:\n        memory", "the paper"),
    Mutant("released_batch_forgotten", "baselines.py", "memory.pop(\"last_x\", x), y", "x, y", "the paper"),
    Mutant("compared_fakes_not_detached", "baselines.py", "    with torch.no_grad():\n        triples", "    if True:\n        triples", LIKELY),
    Mutant("compared_critic_sees_the_mirror_of_x_only", "baselines.py", "T(y), G.image(T(x))))", "T(y), T(G.image(x))))", LIKELY),
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
    Mutant("one_noise_for_all_images", "evaluate.py", "manual_seed(first + i)", "manual_seed(first)", LIKELY),
    Mutant("pearson_without_centring", "evaluate.py", "u, v = u - u.mean(), v - v.mean()", "u, v = u, v", LIKELY),
    # Sec. 4.5 and beyond: does the map know where it is wrong?
    Mutant("expected_residual_of_the_deviation", "evaluate.py", "torch.exp(torch.lgamma(2 / beta) - torch.lgamma(1 / beta))", "torch.exp((torch.lgamma(3 / beta) - torch.lgamma(1 / beta)) / 2)", LIKELY),
    Mutant("expected_residual_without_beta", "evaluate.py", "return alpha * torch.exp(torch.lgamma(2 / beta) - torch.lgamma(1 / beta))", "return alpha", LIKELY),
    Mutant("spearman_without_mean_ranks", "evaluate.py", "(count.cumsum(0) - (count.double() - 1) / 2)[group]", "count.cumsum(0).double()[group]", "scipy.stats.rankdata(method=\"max\")"),
    Mutant("spearman_of_distinct_values", "evaluate.py", "(count.cumsum(0) - (count.double() - 1) / 2)[group]", "group.double()", "scipy.stats.rankdata(method=\"dense\")"),
    Mutant("foreground_ignored_per_pixel", "evaluate.py", "pixels = residual[inside], scale[inside]", "pixels = residual.flatten(), scale.flatten()", LIKELY),
    Mutant("foreground_mean_over_all_pixels", "evaluate.py", "(residual_sum / area)[area > 0], (scale_sum / area)[area > 0]", "residual_sum[area > 0], scale_sum[area > 0]", LIKELY),
    Mutant("most_certain_removed_first", "evaluate.py", "torch.unique(uncertainty, return_inverse", "torch.unique(-uncertainty, return_inverse", LIKELY),
    Mutant("oracle_is_the_map", "evaluate.py", "remaining(residual, residual)", "remaining(scale, scale)", LIKELY),
    Mutant("ause_in_grey_levels", "evaluate.py", "dx=1 / 20) / by_map[0])", "dx=1 / 20))", LIKELY),
    Mutant("one_sided_intervals", "evaluate.py", "return torch.special.gammainc(1 / beta.double(), ratio ** beta)", "return (1 + torch.special.gammainc(1 / beta.double(), ratio ** beta)) / 2", LIKELY),
    Mutant("ratio_times_beta", "evaluate.py", "gammainc(1 / beta.double(), ratio ** beta)", "gammainc(1 / beta.double(), ratio * beta)", "UGAC's public code: the power read as a product"),
    Mutant("coverage_outside_the_interval", "evaluate.py", "(u <= p).sum()", "(u >= p).sum()", LIKELY),
    Mutant("ece_with_signs", "evaluate.py", "(observed - LEVELS).abs().mean()", "(observed - LEVELS).mean().abs()", LIKELY),
    Mutant("factor_without_beta", "evaluate.py", "log_terms = beta.double().log() + beta *", "log_terms = beta *", LIKELY),
    Mutant("factor_fitted_where_it_is_judged", "evaluate.py", "best_factor(residual[fitting], alpha[fitting], beta[fitting])", "best_factor(residual, alpha, beta)", LIKELY),
    Mutant("halves_share_patients", "evaluate.py", "np.isin(patients, np.unique(patients)[::2])", "np.arange(len(patients)) % 2 == 0", "a split by slices"),
    Mutant("noise_against_the_residual", "evaluate.py", "correlate(noise, scale, inside)", "correlate(noise, residual, inside)", LIKELY),
    Mutant("copy_in_bold", "evaluate.py", "range(1, len(rows) - 1)", "range(1, len(rows))", LIKELY),
    Mutant("untrained_scale_judged", "evaluate.py", "if trains_scale(config):\n                parts", "if True:\n                parts", "a head that no risk reaches"),
    Mutant("residual_of_the_input", "evaluate.py", "(translation - truth).abs(), scale))", "(x - truth).abs(), scale))", LIKELY),
    Mutant("white_level_of_each_picture", "evaluate.py", "np.load(path) * (255 / white)", "np.load(path) * (255 / np.load(path).max())", "every picture viewer"),
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
