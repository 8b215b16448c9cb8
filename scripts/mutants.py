"""Do the tests catch the field's usual mistakes? Plants each in a copy of the tree and runs the test that should fail.

    JAX_PLATFORMS=cpu uv run scripts/mutants.py [WORD ...]      writes docs/traps.md

With WORDs only the mistakes that have one of them in their line are planted; the other rows stay as they are.

A mistake that no test catches (the mutant survives) makes the exit code 1.
"""

import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Trap(NamedTuple):
    """A mistake in one line, the test that catches it, and, if it can be planted, its text: file, before, after."""

    what: str
    test: str
    file: str = ""
    before: str = ""
    after: str = ""


TRAPS = (
    Trap(
        "Augmentation hidden together with the class: changed images pass for plain ones, and leak",
        "tests/test_augmentations.py::test_training_is_told_and_samples_are_told_nothing_was_done",
        "jaxdiff/objectives/base.py",
        "len(hide)), hide) | augment",
        "len(hide)), hide)",
    ),
    Trap(
        "A rotation told to the network with the wrong sign",
        "tests/test_augmentations.py::test_edm_tells_all_that_it_does_and_leaves_alone_what_it_tells_nothing_of",
        "jaxdiff/augmentations.py",
        "jnp.cos(theta) - 1, jnp.sin(theta)]",
        "jnp.cos(theta) - 1, -jnp.sin(theta)]",
    ),
    Trap(
        "A sum of two branches that is not of magnitude 1",
        "tests/models/test_edm2.py::test_magnitudes_of_a_new_network_are_1_and_it_predicts_zero",
        "jaxdiff/models/edm2.py",
        "((1 - share) * a + share * b) / math.hypot(1 - share, share)",
        "(1 - share) * a + share * b",
    ),
    Trap(
        "Learned uncertainty without the term that keeps it from growing",
        "tests/losses/test_weightings.py::test_learned_uncertainty_finds_the_loss_of_each_noise_level",
        "jaxdiff/objectives/denoising.py",
        "return losses / jnp.exp(u) + u",
        "return losses / jnp.exp(u)",
    ),
    Trap(
        "An evaluation that a stop put off is never made: the resumed run's curve has a hole",
        "tests/test_evaluations.py::test_training_is_as_without_it_and_resumes_exactly",
        "jaxdiff/job/evaluations.py",
        "due = isinstance(self.every, int) and step > 0 and step % self.every == 0",
        "due = False",
    ),
    Trap(
        "Validation loss with another noise for every batch size",
        "tests/test_evaluations.py::test_validation_loss_of_a_new_network_is_the_variance_of_noise_and_of_no_batching",
        "jaxdiff/job/validation.py",
        "numbers = put((start + kept).astype(np.int32), self._rows)",
        "numbers = put(kept.astype(np.int32), self._rows)",
    ),
    Trap(
        "A picture that stands in for a corrupt one, under the caption of the corrupt one",
        "tests/training/test_sources.py::test_captions_stay_with_their_images_whatever_is_left_out_or_substituted",
        "jaxdiff/data/sources.py",
        'captions[index] = captions[record["record"]]',
        "captions[index] = captions[index]",
    ),
    Trap(
        "Captions drawn with the bits of the flips: one caption always mirrored",
        "tests/training/test_data.py::test_each_row_has_one_of_its_records_captions_drawn_by_seed_step_and_row",
        "jaxdiff/data/batches.py",
        "_SHUFFLE, _FLIP, _CAPTION = 0, 1, 2",
        "_SHUFFLE, _FLIP, _CAPTION = 0, 1, 1",
    ),
    Trap(
        "Held-out pictures that are, to the pixel, training pictures under another caption",
        "tests/test_prepare_emoji.py::test_the_set_is_whole_matched_and_the_same_twice",
        "jaxdiff/job/prepare_emoji.py",
        'if name.startswith("heldout") and pixels in trained:',
        'if name.startswith("heldout") and code in trained:',
    ),
    Trap(
        "A style held out of an emoji whose skin tones are trained in it",
        "tests/test_prepare_emoji.py::test_what_is_held_out_is_known_in_its_parts",
        "jaxdiff/job/prepare_emoji.py",
        "if one.base not in toned and one.group",
        "if not one.tones and one.group",
    ),
    Trap(
        "A tar shard that was cut between two members, taken for a whole one",
        "tests/training/test_captions.py::test_a_shard_that_was_cut_anywhere_loses_what_is_missing_and_nothing_else",
        "jaxdiff/data/webdataset.py",
        "is_whole = _content(file, Part(archive.offset, tarfile.BLOCKSIZE)) == bytes(tarfile.BLOCKSIZE)",
        "is_whole = True",
    ),
    Trap(
        "A caption's padding takes part in its mean",
        "tests/test_text.py::test_padding_changes_nothing_of_what_the_encoder_says",
        "jaxdiff/models/caption_encoder.py",
        "pooled = (x * counted).sum(1) / counted.sum(1)",
        "pooled = x.mean(1)",
    ),
    Trap(
        "A caption's words attend to its padding",
        "tests/test_text.py::test_padding_changes_nothing_of_what_the_encoder_says",
        "jaxdiff/models/caption_encoder.py",
        "(x, None, None, mask)",
        "(x, None, None, None)",
    ),
    Trap(
        "The text encoder runs at every step of a walk",
        "tests/test_text.py::test_the_encoder_is_called_once_a_walk",
        "jaxdiff/diffusion.py",
        "if recipe.conditioner.encoder is not None:",
        "if False:",
    ),
    Trap(
        "Pictures of one text are told apart by the contrastive loss",
        "tests/test_judge.py::test_the_loss_is_the_cross_entropy_of_both_ways_without_pairs_of_one_text",
        "jaxdiff/objectives/contrastive.py",
        "jnp.where(same & ~own, -jnp.inf, scores)",
        "jnp.where(same & ~own, scores, scores)",
    ),
    Trap(
        "A tie with the judge's best text counts as a hit",
        "tests/test_judge.py::test_a_tie_is_no_hit",
        "jaxdiff/evaluation/prompts.py",
        "(scores[:, 1:] >= scores[:, :1])",
        "(scores[:, 1:] > scores[:, :1])",
    ),
    Trap(
        "Pictures are judged by their neighbours' texts",
        "tests/test_judge.py::test_a_judge_finds_the_texts_of_real_pictures_and_not_of_noise",
        "jaxdiff/evaluation/prompts.py",
        "row[0], row[1:] = numbers[text],",
        "row[0], row[1:] = (numbers[text] + 1) % len(pool),",
    ),
    Trap(
        "Skips of the hourglass are left out",
        "tests/models/test_hourglass.py::test_fine_detail_goes_by_the_skips",
        "jaxdiff/models/hourglass.py",
        "y = skips[i] + depth_to_space(",
        "y = 0 * skips[i] + depth_to_space(",
    ),
    Trap(
        "RoPE of rows alone: columns are told apart by nothing",
        "tests/models/test_dit.py::test_rope_sees_the_offsets_of_rows_and_columns_alone",
        "jaxdiff/models/dit.py",
        "np.indices((h, w)).reshape(2, -1, 1) * frequencies, axis=1)",
        "np.indices((h, w))[[0, 0]].reshape(2, -1, 1) * frequencies, axis=1)",
    ),
    Trap(
        "QK-norm of the queries alone, or of the keys",
        "tests/models/test_dit.py::test_norms_see_only_directions_and_swiglu_is_linear_in_its_values",
        "jaxdiff/models/attention.py",
        "query, key = (norm(x).astype(value.dtype) for",
        "_, key = (norm(x).astype(value.dtype) for",
    ),
    Trap(
        "SwiGLU with its gate and its values exchanged, which no weights of others survive",
        "tests/models/test_dit.py::test_norms_see_only_directions_and_swiglu_is_linear_in_its_values",
        "jaxdiff/models/dit.py",
        "gate, y = jnp.split(y, 2, axis=-1)",
        "y, gate = jnp.split(y, 2, axis=-1)",
    ),
    Trap(
        "The shared modulation's table left out: all blocks alike",
        "tests/models/test_dit.py::test_shared_modulation_is_that_of_blocks_with_equal_projections",
        "jaxdiff/models/dit.py",
        'each = emb + self.param("modulation_bias", ZEROS, (6 * width,), jnp.float32)[None]',
        'each = emb + 0 * self.param("modulation_bias", ZEROS, (6 * width,), jnp.float32)[None]',
    ),
    Trap(
        "Steps paired by arithmetic on the stride instead of by the list of times",
        "tests/samplers/test_order.py::test_ddim_on_standard_normal_data_is_a_product_of_cosines",
        "jaxdiff/samplers/base.py",
        "(steps, times[:-1], times[1:])",
        "(steps, times[:-1], times[:-1] + times[1] - times[0])",
    ),
    Trap(
        "A grid by floating-point `arange`: one step too many for some N",
        "tests/test_times.py::test_every_number_of_steps_of_a_continuous_schedule",
        "jaxdiff/times.py",
        "return np.arange(num_steps, 0, -1) / num_steps",
        "return np.arange(1.0, 0.0, -1 / num_steps)",
    ),
    Trap(
        "Leading spacing never shows the network pure noise: kept as published, exactly, and said so",
        "tests/test_times.py::test_spacings_are_what_they_say",
        "jaxdiff/times.py",
        "* (top // num_steps) + 1) / top",
        "* (top // num_steps)) / top",
    ),
    Trap(
        "Two steps on the same entry of the table, where rounding made their times equal",
        "tests/test_times.py::test_every_number_of_steps_of_a_discrete_schedule",
        "jaxdiff/times.py",
        "np.maximum.accumulate(np.maximum(rising, rank) - rank) + rank",
        "np.maximum(rising, 1)",
    ),
    Trap(
        "Only the numbers of steps that divide T are taken",
        "tests/test_times.py::test_every_number_of_steps_of_a_discrete_schedule",
        "jaxdiff/times.py",
        "num_steps < 1 or (top is not None and num_steps > top)",
        "num_steps < 1 or (top is not None and top % num_steps)",
    ),
    Trap(
        "Times outside the schedule clamp or wrap silently",
        "tests/test_schedules.py::test_t_outside_0_and_1_never_passes_silently",
        "jaxdiff/schedules/base.py",
        "jnp.where(_inside(t), a, jnp.nan)",
        "a",
    ),
    Trap(
        "A strided ancestral step with the coefficients of t's neighbour in the table",
        "tests/samplers/test_law.py::test_law_on_a_point[ddpm small]",
        "jaxdiff/samplers/ddpm.py",
        "posterior(p.x_0, x, m_s, m_t)",
        "posterior(p.x_0, x, schedule(t - 0.001), m_t)",
    ),
    Trap(
        "The index of a time truncated instead of rounded",
        "tests/test_schedules.py::test_every_index_is_exact_in_float32",
        "jaxdiff/schedules/base.py",
        "jnp.round(t * num_steps)",
        "jnp.floor(t * num_steps)",
    ),
    Trap(
        "DDIM's direction with eta^2 in place of the step's variance",
        "tests/samplers/test_law.py::test_law_on_a_point[ddim eta=0.5]",
        "jaxdiff/samplers/ddim.py",
        "(1.0 - ratio) * (1.0 + ratio)",
        "1.0 - eta * eta",
    ),
    Trap(
        "Clean data that is not quite clean: a first entry of the table with noise in it",
        "tests/test_schedules.py::test_clean_at_0_and_amplitudes_never_cross",
        "jaxdiff/schedules/base.py",
        "np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])",
        "np.concatenate([[np.log1p(-betas[0])], np.cumsum(np.log1p(-betas))])",
    ),
    Trap(
        "Noise added in the last step",
        "tests/samplers/test_law.py::test_steps_to_clean_data_add_no_noise",
        "jaxdiff/samplers/ddpm.py",
        "jnp.where(m_s.sigma > 0, spread, 0.0)",
        "spread",
    ),
    Trap(
        "eta > 0 without less of the predicted noise: too much variance",
        "tests/samplers/test_law.py::test_law_on_a_point[ddim eta=0.5]",
        "jaxdiff/samplers/ddim.py",
        "direction * p.noise",
        "m_s.sigma * p.noise",
    ),
    Trap(
        "eta that is the stochasticity at 0 and 1 only",
        "tests/samplers/test_law.py::test_eta_scales_the_noise_of_the_ancestral_step",
        "jaxdiff/samplers/ddim.py",
        "ratio = eta * ",
        "ratio = eta**2 * ",
    ),
    Trap(
        "One key for every step: the same noise each time",
        "tests/samplers/test_law.py::test_each_step_draws_new_noise",
        "jaxdiff/samplers/base.py",
        "jax.random.fold_in(key, index))(step_keys)",
        "key)(step_keys)",
    ),
    Trap(
        "One key for the whole batch: samples that depend on the batch, or are equal",
        "tests/samplers/test_base.py::test_example_i_depends_on_its_own_key_alone",
        "jaxdiff/samplers/base.py",
        "jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)",
        "jax.random.normal(keys[0], x.shape, x.dtype)",
    ),
    Trap(
        "Learned variance interpolated between variances instead of their logs",
        "tests/test_process.py::test_learned_variance_interpolates_the_logs",
        "jaxdiff/process.py",
        "return log_beta + (1.0 - fraction) * jnp.log(ratio)",
        "return log_beta + jnp.log(fraction + (1.0 - fraction) * ratio)",
    ),
    Trap(
        "`split(x, c)` into c parts, or the wrong half for the variance",
        "tests/test_denoisers.py::test_learned_variance_is_the_second_half_of_the_channels",
        "jaxdiff/denoisers.py",
        "output, raw = jnp.split(output, 2, axis=-1)",
        "raw, output = jnp.split(output, 2, axis=-1)",
    ),
    Trap(
        "The log of the first posterior variance, which is 0",
        "tests/test_process.py::test_learned_variance_of_the_last_step_is_finite",
        "jaxdiff/process.py",
        "jnp.where(m_s.sigma > 0, jnp.square(m_s.sigma / m_t.sigma), 0.5)",
        "jnp.square(m_s.sigma / m_t.sigma)",
    ),
    Trap(
        "A fixed large variance is that of the step taken, on any grid; never that of the neighbour",
        "tests/samplers/test_law.py::test_large_variance_is_exact_on_standard_normal_data",
        "jaxdiff/samplers/ddpm.py",
        "large = jnp.square(transition(m_s, m_t).sigma)",
        "large = jnp.square(transition(schedule(t - 0.001), m_t).sigma)",
    ),
    Trap(
        "x_0 clipped, and the noise left as it was",
        "tests/test_denoisers.py::test_thresholds_take_the_noise_along",
        "jaxdiff/denoisers.py",
        "noise=prediction.noise - ratio * (x_0 - prediction.x_0)",
        "noise=prediction.noise",
    ),
    Trap(
        "Linear betas scaled by 1000/T beyond 1",
        "tests/test_schedules.py::test_refusals_name_the_legal_range",
        "jaxdiff/schedules/discrete.py",
        "default_end * scale >= 1",
        "default_end * scale >= 2",
    ),
    Trap(
        "Noise prediction where nothing is left of the data: a division by 0",
        "tests/test_denoisers.py::test_noise_without_signal_is_refused",
        "jaxdiff/denoisers.py",
        "if PREDICTIONS[prediction].needs_signal and no_signal",
        'if prediction == "score" and no_signal',
    ),
    Trap(
        "Noise tables by products in float32",
        "tests/test_schedules.py::test_linear_reaches_the_closed_values",
        "jaxdiff/schedules/base.py",
        "np.cumsum(np.log1p(-betas))",
        "np.log(np.cumprod((1 - betas).astype(np.float32)).astype(np.float64))",
    ),
    Trap(
        "Higher order in the last step, where log-SNR is infinite",
        "tests/samplers/test_order.py::test_whole_grid[dpmpp_2m-trailing]",
        "jaxdiff/samplers/dpmpp_2m.py",
        "interior(m_t, m_s) & (past.usable(lam, h, full_order) > 0)",
        "past.count > 0",
    ),
    Trap(
        "A multistep method that starts with a past",
        "tests/samplers/test_base.py::test_multistep_pasts_start_empty",
        "jaxdiff/samplers/exponential.py",
        "jnp.zeros((), jnp.int32)",
        "jnp.ones((), jnp.int32)",
    ),
    Trap(
        "A past in the wrong order",
        "tests/samplers/test_order.py::test_order[deis 3]",
        "jaxdiff/samplers/exponential.py",
        "jnp.concatenate([value[None].astype(self.values.dtype), self.values])[:length]",
        "jnp.concatenate([self.values, value[None].astype(self.values.dtype)])[-length:]",
    ),
    Trap(
        "DPM-Solver++(3M) with half of the second derivative: order 2",
        "tests/samplers/test_order.py::test_order[dpmpp_3m compat=False]",
        "jaxdiff/samplers/dpmpp_3m.py",
        "1.0 if compat else 2.0",
        "1.0",
    ),
    Trap(
        "The released UniPC weight in place of the exact one for a weight that stands alone: caught where it matters",
        "tests/samplers/test_order.py::test_order[unipc 2]",
        "jaxdiff/samplers/unipc.py",
        'if coefficients != "exact" and len(nodes) == 1:',
        "if len(nodes) <= 2:",
    ),
    Trap(
        "min-SNR on a v loss without the division by SNR + 1",
        "tests/losses/test_weightings.py::test_published_forms",
        "jaxdiff/process.py",
        "_shared(of_noise, of_x_0, a, s) / jnp.square(jnp.square(a) + jnp.square(s))",
        "of_x_0",
    ),
    Trap(
        "Guidance scale counted from another convention: 1 is not the conditional model",
        "tests/test_guidance.py::test_scale_1_is_conditional_and_0_unconditional[vp]",
        "jaxdiff/guidance.py",
        "return (1.0 - scale) * start + scale * end",
        "return end + scale * (end - start)",
    ),
    Trap(
        "A golden value that froze a bug: eta = 1 is compared with the ancestral step, not with a snapshot",
        "tests/samplers/test_law.py::test_eta_1_is_the_ancestral_step",
        "jaxdiff/samplers/ddim.py",
        "m_s.sigma * ratio * normal_like",
        "m_s.sigma * ratio * 0.9 * normal_like",
    ),
    Trap(
        "The trajectory kept without being asked for",
        "tests/samplers/test_base.py::test_memory_does_not_grow_with_the_steps",
        "jaxdiff/samplers/base.py",
        "step, lambda carry: carry, carry), None",
        "step, lambda carry: carry, carry), carry[0]",
    ),
    Trap(
        "An average of parameters that is off by one step",
        "tests/training/test_ema.py::test_the_decay_warms_up_to_its_limit",
        "jaxdiff/training/ema.py",
        "(1 + step) / (10 + step)",
        "(2 + step) / (11 + step)",
    ),
    Trap(
        "A resumed run whose noise starts again: keys that do not follow the step",
        "tests/training/test_step.py::test_keys_follow_step_and_row_alone",
        "jaxdiff/training/step.py",
        "step_key = jax.random.fold_in(key, state.step)",
        "step_key = jax.random.fold_in(key, 0 * state.step)",
    ),
    Trap(
        "A resumed run that repeats a step, saved before the counter moved",
        "tests/training/test_step.py::test_a_step_is_the_optimizers_update_of_the_mean_gradient",
        "jaxdiff/training/step.py",
        "return TrainState(state.step + 1, *after), metrics",
        "return TrainState(state.step, *after), metrics",
    ),
    Trap(
        "A resumed run that lost the history of loss-aware time sampling",
        "tests/training/test_step.py::test_loss_aware_times_follow_the_loss_whatever_the_accumulation_and_restarts",
        "jaxdiff/training/checkpoints.py",
        "jax.tree.unflatten(jax.tree.structure(abstract_state), flat.values()), meta",
        "jax.tree.unflatten(jax.tree.structure(abstract_state), "
        "[v * ('objective' not in n) for n, v in flat.items()]), meta",
    ),
    Trap(
        "Loss-aware sampling by the losses of one device",
        "tests/training/test_parallel.py::test_loss_aware_times_do_not_depend_on_the_layout[1-pmap-8]",
        "jaxdiff/training/step.py",
        "jax.lax.all_gather(seen, axis_name, tiled=True)",
        "seen",
    ),
    Trap(
        "Times within a step that a table rounds always to one side: order 2 in place of 3",
        "tests/samplers/test_order.py::test_order_on_a_table",
        "jaxdiff/samplers/exponential.py",
        "at = r - 1e-3 / jnp.maximum(length * schedule.num_steps, 1.0)",
        "at = r - 1e-3 * length / length",
    ),
    Trap(
        "An average that is never stepped",
        "tests/training/test_step.py::test_a_step_is_the_optimizers_update_of_the_mean_gradient",
        "jaxdiff/training/step.py",
        "ema(state.ema_params, params, state.step)",
        "state.ema_params",
    ),
    Trap(
        "Weight decay on embeddings, and on norms and biases of stacked layers",
        "tests/training/test_optimizer.py::"
        "test_decay_and_muon_spare_norms_biases_embeddings_and_tokens_however_stacked",
        "jaxdiff/training/optimizer.py",
        'leaf.ndim > 1 and not _NOT_DECAYED.search(leaf_name(path).rpartition("/")[2])',
        "leaf.ndim > 1",
    ),
    Trap(
        "A cosine that goes on falling from the first step, under the warm-up",
        "tests/training/test_optimizer.py::test_a_schedule_is_optaxs_own_after_its_warm_up[cosine]",
        "jaxdiff/training/optimizer.py",
        "        xp = n.__array_namespace__()\n        part = xp.clip((n - warmup_steps) / length, 0.0, 1.0)",
        "        xp = n.__array_namespace__()\n        part = xp.clip(n / (warmup_steps + length), 0.0, 1.0)",
    ),
    Trap(
        "Checkpoints by the clock of each process: at different steps",
        "tests/training/test_loop.py::test_by_time_all_processes_do_it_after_the_same_step_and_ask_rarely",
        "jaxdiff/training/hooks.py",
        "processes.from_first(",
        "list(",
    ),
    Trap(
        "A learning rate in the log that steps without an update move",
        "tests/training/test_loop.py::"
        "test_a_line_says_how_fast_where_the_time_went_the_mean_loss_and_the_rate_of_its_update",
        "jaxdiff/training/hooks.py",
        'step - 1 - metrics["skipped"]',
        "step - 1",
    ),
    Trap(
        "Samples drawn with the parameters instead of their average",
        "tests/test_cli.py::test_samples_are_drawn_from_the_average_as_the_run_says",
        "jaxdiff/job/trained.py",
        'params = state.ema_params if weights == "ema" else state.params',
        "params = state.params",
    ),
    Trap(
        "A resumed run that reads the data from their beginning",
        "tests/test_cli.py::test_a_run_in_two_pieces_ends_in_the_same_bits",
        "jaxdiff/job/training.py",
        "batches.iterate(start.first)",
        "batches.iterate(0)",
    ),
    Trap(
        "A run of one's own data that begins with their first batches again when it goes on",
        "tests/test_runs.py::test_own_loss_goes_on_bit_for_bit",
        "jaxdiff/job/fit.py",
        "in whole(start.first))",
        "in whole(0))",
    ),
    Trap(
        "Weights taken over for a new run that its average does not begin with",
        "tests/test_runs.py::test_a_new_run_begins_with_the_weights_of_another",
        "jaxdiff/assembly/training_program.py",
        "given.get(leaf_name(path), new)",
        "new",
    ),
    Trap(
        "A resumed run that loses the optimizer's state",
        "tests/test_cli.py::test_a_run_in_two_pieces_ends_in_the_same_bits",
        "jaxdiff/training/checkpoints.py",
        "return jax.tree.unflatten(jax.tree.structure(abstract_state), flat.values()), meta",
        "return jax.tree.unflatten(jax.tree.structure(abstract_state), [\n                jax.numpy.zeros_like(x) if "
        "n.startswith('opt_state') else x for n, x in flat.items()]), meta",
    ),
    Trap(
        "A checkpoint that counts, and costs an older one, before it was read back",
        "tests/training/test_checkpoints.py::test_a_save_that_cannot_be_read_back_ends_the_run_and_costs_no_older_checkpoint",
        "jaxdiff/training/checkpoints.py",
        "        wrong = self._verified.result()\n",
        "        wrong = ''\n",
    ),
    Trap(
        "A workdir's name taken for a pattern: checkpoints saved without their index, files of others deleted",
        "tests/training/test_checkpoints.py::test_a_path_is_a_path_whatever_is_in_it",
        "jaxdiff/training/epath_glob.py",
        "glob.iglob(pattern, root_dir=os.fspath(self))",
        "glob.iglob(os.path.join(os.fspath(self), pattern))",
    ),
    Trap(
        "A loss averaged per device and summed over devices",
        "tests/training/test_parallel.py::test_the_numbers_do_not_depend_on_the_layout[1-pmap-1]",
        "jaxdiff/training/step.py",
        "jax.lax.pmean((loss, grads), axis_name)",
        "jax.lax.psum((loss, grads), axis_name)",
    ),
    Trap(
        "Samples of a last, padded batch that are counted",
        "tests/test_cli.py::test_a_ragged_last_batch_compiles_nothing",
        "jaxdiff/diffusion.py",
        "np.concatenate(batches)[:num]",
        "np.concatenate(batches)",
    ),
    Trap(
        "Files and lines of every process instead of the first one's",
        "tests/training/test_processes.py::test_process_0_alone_speaks_logs_and_draws",
        "jaxdiff/job/training.py",
        "if jax.process_index() == 0:\n            grid",
        "if True:\n            pictures.write_whole(workdir / 'samples' / f'of_{jax.process_index()}', b'')\n"
        "            grid",
    ),
    Trap(
        "A consistency loss that hardly sees small noise: what it distils keeps it",
        "tests/losses/test_consistency.py::test_widest_gap_is_the_denoising_loss",
        "jaxdiff/losses/consistency.py",
        "/ (gap * sine**2)",
        "/ gap",
    ),
    Trap(
        "MeanFlow: the tangent of the earlier time is 1",
        "tests/losses/test_mean_flow.py::test_the_gradient_vanishes_at_the_mean_velocity_and_not_beside_it",
        "jaxdiff/losses/mean_flow.py",
        "(v, jnp.zeros_like(r), jnp.ones_like(t))",
        "(v, jnp.ones_like(r), jnp.ones_like(t))",
    ),
    Trap(
        "MeanFlow: the derivative along the flow with the wrong sign",
        "tests/losses/test_mean_flow.py::test_the_gradient_vanishes_at_the_mean_velocity_and_not_beside_it",
        "jaxdiff/losses/mean_flow.py",
        "v - like(t - r, v) * slope",
        "v + like(t - r, v) * slope",
    ),
    Trap(
        "MeanFlow: a goal that is not held constant",
        "tests/losses/test_mean_flow.py::test_the_gradient_vanishes_at_the_mean_velocity_and_not_beside_it",
        "jaxdiff/losses/mean_flow.py",
        "goal = jax.lax.stop_gradient(v - like(t - r, v) * slope)",
        "goal = v - like(t - r, v) * slope",
    ),
    Trap(
        "MeanFlow: guidance that goes the other way",
        "tests/losses/test_mean_flow.py::test_the_gradient_vanishes_at_the_mean_velocity_and_not_beside_it",
        "jaxdiff/losses/mean_flow.py",
        "w * v + (1.0 - w) * u(x_t, t, t, away)",
        "w * v + (w - 1.0) * u(x_t, t, t, away)",
    ),
    Trap(
        "A flow map that is not told where its step leads",
        "tests/losses/test_mean_flow.py::test_a_small_network_of_a_mixture_samples_it_in_one_step",
        "jaxdiff/samplers/mean_flow.py",
        "denoise(x, Span(t, s))",
        "denoise(x, Span(t, t))",
    ),
    Trap(
        "Shortcut: a goal that is not held constant",
        "tests/losses/test_shortcut.py::test_the_others_learn_the_velocity_and_goals_are_held",
        "jaxdiff/losses/shortcut.py",
        "jax.lax.stop_gradient(goal))",
        "goal)",
    ),
    Trap(
        "Shortcut: the second half step taken from where the first began",
        "tests/losses/test_shortcut.py::test_the_mean_velocity_is_where_steps_agree",
        "jaxdiff/losses/shortcut.py",
        "small(drawn.x_t - like(half, x_0) * first, t - half)",
        "small(drawn.x_t, t - half)",
    ),
    Trap(
        "Progressive distillation: both half steps of the teacher from the first time",
        "tests/losses/test_progressive.py::test_zero_of_the_walk_in_half_as_many_steps[flow-flow]",
        "jaxdiff/losses/progressive.py",
        "teacher(x, middle)",
        "teacher(x, t)",
    ),
    Trap(
        "Continuous consistency: the derivative in time without the rate of the angle",
        "tests/losses/test_continuous_consistency.py::test_distillation_is_zero_at_the_end_of_the_flow",
        "jaxdiff/losses/continuous_consistency.py",
        "drawn.m.alpha * drawn.m.sigma / rate",
        "drawn.m.alpha * drawn.m.sigma",
    ),
    Trap(
        "Continuous consistency: the tangent with the wrong sign",
        "tests/losses/test_continuous_consistency.py::test_distillation_is_zero_at_the_end_of_the_flow",
        "jaxdiff/losses/continuous_consistency.py",
        "- warm * (both * x_t + slope)",
        "+ warm * (both * x_t + slope)",
    ),
    Trap(
        "Continuous consistency: a goal that is not held constant",
        "tests/losses/test_continuous_consistency.py::test_training_stands_still_at_the_same_function",
        "jaxdiff/losses/continuous_consistency.py",
        "jax.lax.stop_gradient(f + g)",
        "f + g",
    ),
    Trap(
        "Latent consistency: a goal that is not held constant",
        "tests/losses/test_latent_consistency.py::test_distance_and_its_held_goal",
        "jaxdiff/losses/latent_consistency.py",
        "goal = jax.lax.stop_gradient(jnp.where(m_s.like(x_0).sigma > 0, f(x_s, s).x_0, x_s))",
        "goal = jnp.where(m_s.like(x_0).sigma > 0, f(x_s, s).x_0, x_s)",
    ),
    Trap(
        "Latent consistency: the teacher guided by one scale for all",
        "tests/losses/test_latent_consistency.py::test_zero_of_the_guided_walk_at_every_scale[v]",
        "jaxdiff/losses/latent_consistency.py",
        "teacher(scale)(drawn.x_t, t)",
        "teacher(jnp.full_like(scale, high))(drawn.x_t, t)",
    ),
    Trap(
        "Progressive distillation: a teacher that is never replaced",
        "tests/test_families.py::test_an_objective_of_few_steps_is_the_same_on_every_layout[progressive]",
        "jaxdiff/objectives/progressive.py",
        "new = step % self.halve_every == 0",
        "new = step < 0",
    ),
    Trap(
        "LCM's network told the scale and not the scale less one",
        "tests/interop/test_latent.py::test_unet_computes_what_theirs_does[lcm]",
        "jaxdiff/models/layers.py",
        'cond["guidance"].astype(jnp.float32) - 1.0',
        'cond["guidance"].astype(jnp.float32)',
    ),
    Trap(
        "LCM's steps from even ones of the whole process and not of the grid that it was distilled on",
        "tests/test_stable_diffusion.py::test_images_are_those_of_diffusers[pipeline_lcm]",
        "jaxdiff/interop/scheduler_steps.py",
        "endpoint=False)).astype(int)]",
        "endpoint=False)).astype(int) // 2]",
    ),
    Trap(
        "One key for time and noise",
        "tests/losses/test_denoising.py::test_time_and_noise_are_drawn_with_different_keys",
        "jaxdiff/losses/denoising.py",
        "time_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)",
        "time_keys = noise_keys = keys",
    ),
    Trap(
        "sigma^2 in float32 where sigma is 1e-20: the last step forgets the image",
        "tests/test_process.py::test_posterior_where_squares_of_sigma_underflow",
        "jaxdiff/process.py",
        "m_t.sigma * jnp.where(new > 0, jnp.sqrt(jnp.where(new > 0, new, 1.0)), 0.0)",
        "jnp.sqrt(jnp.maximum(jnp.square(m_t.sigma) - jnp.square(alpha * m_s.sigma), 0.0))",
    ),
    Trap(
        "A network in bfloat16 that rounds after its norm and again after SiLU",
        "tests/models/test_unet.py::test_bfloat16_policy",
        "jaxdiff/models/layers.py",
        'nn.silu(group_norm(x.astype(jnp.float32), "norm1", self.norms))',
        'nn.silu(group_norm(x, "norm1", self.norms))',
    ),
    Trap(
        "A network in bfloat16 whose estimates stay bfloat16 in the sampler",
        "tests/test_denoisers.py::test_network_sees_one_time_an_example_and_the_condition",
        "jaxdiff/denoisers.py",
        "conditions).astype(x_t.dtype), None",
        "conditions), None",
    ),
    Trap(
        "Weights of a reconstructed average that do not sum to 1, and scale the network where snapshots are few",
        "tests/training/test_posthoc.py::test_the_combination_is_the_nearest_profile_of_those_that_sum_to_1[0.15-3]",
        "jaxdiff/training/posthoc.py",
        "weights[pivot] = 1.0 - weights.sum()",
        "weights = np.linalg.lstsq(gram, wanted, rcond=None)[0]",
    ),
    Trap(
        "Two times closer than float32 can tell apart: a gap of 0 or less, and a negative or infinite loss",
        "tests/losses/test_consistency.py::test_the_gap_of_a_continuous_schedule_stays_where_float32_sees_it[flow]",
        "jaxdiff/losses/consistency.py",
        "gap = jnp.maximum(gap, 1.0 / FINEST)",
        "gap = jnp.maximum(gap, 0.0)",
    ),
    Trap(
        "Density and coverage that count the surface of the balls: 1.2 of a set against itself",
        "tests/evaluation/test_neighbours.py::test_points_on_the_surface[0.0]",
        "jaxdiff/evaluation/neighbours.py",
        "dense[rows] = np.sum(squares < far, axis=1)",
        "dense[rows] = np.sum(squares <= far, axis=1)",
    ),
    Trap(
        "Ties of distances that rounding decides, and differences of large squares",
        "tests/evaluation/test_neighbours.py::test_a_set_against_itself_has_density_and_coverage_1[0.1-1000.1]",
        "jaxdiff/evaluation/neighbours.py",
        "squares[i, close[i]] = _exact(x[i], y[close[i]])",
        "pass",
    ),
    Trap(
        "An error bar of two blocks as if they were many",
        "tests/evaluation/test_kernel.py::test_the_error_bar_covers_what_it_says_with_few_blocks_too[2]",
        "jaxdiff/evaluation/kernel.py",
        "stdtrit(blocks - 1, 0.975) / ndtri(0.975)",
        "1.0",
    ),
    Trap(
        "Samples of all classes alike where the data's are not",
        "tests/test_evaluate.py::test_samples_are_of_the_classes_of_the_data",
        "jaxdiff/job/comparison.py",
        'everything["label"] = self._known[1]["label"]',
        "pass",
    ),
    Trap(
        "The flow's network asked below the first time that it was trained at",
        "tests/test_evaluate.py::test_bits_of_the_flow_ask_no_time_below_the_first_trained",
        "jaxdiff/job/likelihood.py",
        "first = 1.0 / (schedule.num_steps or math.inf)",
        "first = 0.0",
    ),
    Trap(
        "One key for a run's training and for what is drawn from it: noise that the network has seen",
        "tests/test_keys.py::test_samples_are_drawn_with_no_key_of_the_run",
        "jaxdiff/job/sampling.py",
        'purpose_key(request.seed, "sample")',
        'jax.random.key(request.seed, impl="threefry2x32")',
    ),
    Trap(
        "EDM's output formula, and a network that sees x_t as it is: of standard deviation 80",
        "tests/test_denoisers.py::test_edm_is_preconditioned_as_published[edm]",
        "jaxdiff/process.py",
        "x_t if row.scale is None else",
        "x_t if True else",
    ),
    Trap(
        "One time as the default end of grids, whatever the schedule: sigma 8e-20 on EDM's",
        "tests/test_times.py::test_the_default_ends_are_noise_levels[edm]",
        "jaxdiff/times.py",
        "(1.0 / top if top else clean_time(schedule))",
        "(1.0 / top if top else 1e-3)",
    ),
    Trap(
        "A multistep method that keeps its order into a leap of log-SNR: worse than DDIM below 20 steps",
        "tests/samplers/test_few_steps.py::test_an_order_falls_before_a_leap_and_only_there",
        "jaxdiff/samplers/exponential.py",
        "near = ((steps[:-1] <= RATIO * steps[1:]) | (steps[:-1] <= SHORT)) & (h <= limit)",
        "near = steps[:-1] + h > limit - jnp.inf",
    ),
    Trap(
        "Heun's weight e^h/2 times the rounding of x_0: finite garbage in float32",
        "tests/samplers/test_few_steps.py::test_heun_in_float32_on_edm[far too clean]",
        "jaxdiff/samplers/exponential.py",
        "return jnp.minimum(jnp.where(noisy, along, 0.0), m_s.alpha)",
        "return jnp.where(noisy, along, 0.0)",
    ),
    Trap(
        "Heun in sigma/alpha on every schedule, on rectified flow too",
        "tests/samplers/test_few_steps.py::test_heun_is_the_trapezoid_in_t_on_rectified_flow",
        "jaxdiff/samplers/exponential.py",
        "return jnp.minimum(jnp.where(noisy, along, 0.0), m_s.alpha)",
        "return jnp.minimum(jnp.where(noisy, along * m_s.alpha / jnp.maximum(m_t.alpha, 1e-9), 0.0), m_s.alpha)",
    ),
    Trap(
        "The noise form's weight e^h in a single step over a leap",
        "tests/samplers/test_few_steps.py::test_no_worse_than_ddim_and_float32_is_float64[dpm_solver_2]",
        "jaxdiff/samplers/exponential.py",
        "LEAP = 1.5",
        "LEAP = 50.0",
    ),
    Trap(
        "Under jax_enable_x64, float64 of the schedule in a float32 network's x",
        "tests/samplers/test_few_steps.py::test_types_follow_x_under_x64",
        "jaxdiff/schedules/base.py",
        "a = a.astype(dtype) if a.dtype == jnp.float64 else a",
        "a = a.astype(jnp.promote_types(a.dtype, dtype))",
    ),
    Trap(
        "A loss in the schedule's float64 where x is float32",
        "tests/losses/test_denoising.py::test_the_loss_has_the_type_of_x_under_x64",
        "jaxdiff/losses/denoising.py",
        "return (weight * loss).astype(x_0.dtype)",
        "return weight * loss",
    ),
)


def copy_tree(to: Path) -> None:
    """The files of the working tree that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run(tree: Path, *tests: str) -> bool:
    """Whether the tests pass in that tree; anything but pass and fail is an error of this script."""
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-m", "", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{tests} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def caught(tree: Path, trap: Trap) -> bool:
    """Whether the test fails once the mistake is planted."""
    file = tree / trap.file
    text = file.read_text()
    if text.count(trap.before) != 1:
        raise SystemExit(f"{trap.file} must hold this once: {trap.before}")
    file.write_text(text.replace(trap.before, trap.after))
    try:
        return not run(tree, trap.test)
    finally:
        file.write_text(text)


PAGE = """# Traps

Where implementations of this field go wrong, and the test that catches it here. "Caught" means that the mistake was
planted in a copy of the tree by replacing its text, and the test failed; without it, every test named here passed. This
page is written by

    JAX_PLATFORMS=cpu uv run scripts/mutants.py

in about ten minutes (the last time: {date}): {caught} of {planted} planted mistakes were caught.

| the mistake | the test | planted |
| --- | --- | --- |
{rows}
"""


def main() -> int:
    """Plants, runs, prints and writes."""
    words, page = sys.argv[1:], ROOT / "docs" / "traps.md"
    chosen = [trap for trap in TRAPS if not words or any(word in f"{trap}" for word in words)]
    before = {line.split(" | ")[0]: line for line in page.read_text().splitlines()} if page.exists() else {}
    rows = {trap: before.get(f"| {trap.what}", "") for trap in TRAPS}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        if not run(tree, *dict.fromkeys(trap.test for trap in chosen)):
            raise SystemExit("a test fails as it is; see pytest")
        for trap in chosen:
            result = ("caught" if caught(tree, trap) else "SURVIVED") if trap.file else "–"
            rows[trap] = f"| {trap.what} | `{trap.test.removeprefix('tests/')}` | {result} |"
            print(f"{result}: {trap.what}", flush=True)
    ends = [row.split(" | ")[-1] for row in rows.values() if row]
    good, planted = ends.count("caught |"), len(ends) - ends.count("– |")
    lines = "\n".join(row for row in rows.values() if row)
    page.write_text(PAGE.format(date=datetime.date.today(), caught=good, planted=planted, rows=lines))
    print(f"{good} of {planted} planted mistakes caught")
    return int(good < planted)


if __name__ == "__main__":
    raise SystemExit(main())
