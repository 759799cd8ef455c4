"""Edits against what defines them: what they are at either end of the knob, and their formulas written out."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel, read_params, write_params
from saferestore.core.params import axpy, norm
from saferestore.core.restoration.methods import edits
from saferestore.core.restoration.methods.activations import grams, squared_norms
from saferestore.core.restoration.methods.inputs import Edit
from torch import Tensor

from ... import dense
from ...cases import WIDTH, live_model
from .given import RETAIN, answered, inputs, weights_of

UNTOUCHED = {"scale": (edits.toward_base, 0.0), "random": (edits.random_step, 0.0),
             "prune-random": (edits.prune_random, 0.0), "antidote": (edits.antidote, 0.0),
             "ssd": (edits.ssd, 1e30), "datainf": (edits.datainf, 0.0)}
BASE = {"scale": edits.toward_base, "prune-random": edits.prune_random, "antidote": edits.antidote}


def base_logits(live: LiveModel) -> Tensor:
    with live.model.disable_adapter():
        return live.model(input_ids=RETAIN[0].input_ids, attention_mask=RETAIN[0].attention_mask).logits


@pytest.mark.parametrize("name", UNTOUCHED)
def test_at_the_weak_end_an_edit_returns_its_input_bit_for_bit(name: str) -> None:
    make, value = UNTOUCHED[name]
    given = inputs()
    start, found = read_params(given.problem.live), make(given)(value)
    assert all(torch.equal(found.params[key], t) for key, t in start.items()) and found.lost == 0


@pytest.mark.parametrize("name", BASE)
def test_at_the_strong_end_the_change_is_gone_and_the_logits_are_the_bases_exactly(name: str) -> None:
    given = inputs()
    live = given.problem.live
    write_params(live, BASE[name](given)(1.0).params)
    with torch.no_grad():
        now = live.model(input_ids=RETAIN[0].input_ids, attention_mask=RETAIN[0].attention_mask).logits
        assert torch.equal(now, base_logits(live))


def test_scale_halfway_halves_every_change() -> None:
    given = inputs()
    before, after = weights_of(read_params(given.problem.live)), weights_of(edits.toward_base(given)(0.5).params)
    for module, change in before.items():
        torch.testing.assert_close(after[module], 0.5 * change)


def test_a_random_step_is_as_long_as_asked_in_norms_of_the_adapter() -> None:
    given = inputs(seed=5)
    start = read_params(given.problem.live)
    moved = axpy(-1.0, start, edits.random_step(given)(0.25).params)
    assert norm(moved) == pytest.approx(0.25 * norm(start), rel=1e-12)


def pruned(edit: Edit, share: float) -> dict[str, Tensor]:
    """Which entries of a full-rank adapter's change an edit has set to zero."""
    return {module: change.abs() < 1e-9 for module, change in weights_of(edit(share).params).items()}


def test_the_change_of_a_transposed_weight_loses_the_entries_of_the_highest_scores() -> None:
    stored = torch.arange(1.0, 13.0).reshape(3, 4)
    scores = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    after = edits._without_top(stored.T, scores, 0.25)
    gone = set(map(tuple, (after == 0).nonzero().tolist()))
    largest = sorted(((float(scores[i, j]), (i, j)) for i in range(4) for j in range(3)), reverse=True)[:3]
    assert gone == {place for _, place in largest} and torch.equal(after[after != 0], stored.T[after != 0])
    assert stored.min() == 1.0  # the change itself is left as it was


@pytest.mark.parametrize("make", [edits.prune_random, edits.antidote])
def test_a_larger_share_prunes_the_entries_of_a_smaller_one_and_leaves_the_rest(make) -> None:
    given = inputs(live_model(rank=WIDTH))
    edit, before = make(given), weights_of(read_params(given.problem.live))
    small, large = pruned(edit, 0.2), pruned(edit, 0.6)
    for module, gone in small.items():
        assert int(gone.sum()) == round(0.2 * gone.numel()) and bool(large[module][gone].all())
        after = weights_of(edit(0.2).params)[module]
        torch.testing.assert_close(after[~gone], before[module][~gone])


def test_antidote_prunes_the_largest_wanda_scores_on_harmful_rows() -> None:
    live = live_model(rank=WIDTH)
    given = inputs(live)
    gone = pruned(edits.antidote(given), 0.1)
    for module, change in weights_of(read_params(live)).items():
        seen = torch.zeros(change.shape[1], dtype=torch.float64)

        calls: list[Tensor] = []

        def keep(_: object, args: tuple[Tensor, ...], calls: list[Tensor] = calls) -> None:
            calls.append(args[0].detach())

        handle = live.model.get_base_model().get_submodule(module).register_forward_pre_hook(keep)
        for batch in answered(12):
            live.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
                for token in range(length):  # one by one, padding left out
                    seen += calls[-1][row, token] ** 2
        handle.remove()
        scores = change.abs() * seen.sqrt()
        assert float(scores[gone[module]].min()) >= float(scores[~gone[module]].max())


@pytest.mark.parametrize("family", ["llama", "opt", "head"])
def test_grams_of_inputs_are_sums_over_rows_run_one_by_one_without_padding(family: str) -> None:
    live = live_model(family, every_module=True)
    modules = [name.removesuffix(".lora_A.weight") for name in live.leaves if name.endswith(".lora_A.weight")]
    wanted = {module: torch.zeros(()) for module in modules}
    for batch in RETAIN:
        predicting = sorted({token for _, token, _ in dense.answer_positions(batch)})
        for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
            seen: dict[str, Tensor] = {}
            handles = [live.model.get_base_model().get_submodule(module).register_forward_pre_hook(
                lambda _, args, name=module, seen=seen: seen.__setitem__(name, args[0].detach())) for module in modules]
            live.model(input_ids=batch.input_ids[row:row + 1, :length])
            for handle in handles:
                handle.remove()
            for module, x in seen.items():
                each = x.reshape(length, -1)
                each = each[[token for token in predicting if token < length]] if module == "lm_head" else each
                wanted[module] = wanted[module] + each.T @ each
    found = grams(live, RETAIN)
    assert list(found) and set(found) == set(modules)
    for module in modules:
        torch.testing.assert_close(found[module], wanted[module], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(squared_norms(live, RETAIN)[module], found[module].diagonal())


def row_gradients(live: LiveModel, batches: list) -> list[Tensor]:
    """The gradient of each row's summed log-likelihood, one row at a time."""
    found = []
    for batch in batches:
        for row in sorted(batch.rows.tolist()):
            theta = dense.flat(live.leaves).requires_grad_()
            all_logits, places = dense.logits_of(live, theta, batch), list(dense.answer_positions(batch))
            total = sum(all_logits[i][label] - torch.logsumexp(all_logits[i], 0)
                        for i, (place, _, label) in enumerate(places) if int(batch.rows[place]) == row)
            found.append(torch.autograd.grad(total, theta)[0])
    return found


@pytest.mark.parametrize("alpha", [3.0, 0.3])
def test_ssd_damps_by_the_ratio_of_mean_squared_row_gradients_where_it_is_large(alpha: float) -> None:
    given = inputs()
    live = given.problem.live
    start = dense.flat(read_params(live))
    forget, keep = (torch.stack(row_gradients(live, batches)).square().mean(0) for batches in (answered(12), RETAIN))
    wanted = [float(t) * min(float(k) / float(f), 1.0) if f > alpha * k else float(t)
              for t, f, k in zip(start, forget, keep, strict=True)]
    found = dense.flat(edits.ssd(given)(alpha).params)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    assert 0 < int((found != start).sum()) < len(start)


def test_datainf_moves_against_the_mean_of_inverses_block_by_block() -> None:
    given = inputs()
    live, start = given.problem.live, read_params(given.problem.live)
    tokens = sum(batch.answer_tokens for batch in RETAIN)
    rows = [dense.unflat(-g * len(row_gradients(live, RETAIN)) / tokens, start) for g in row_gradients(live, RETAIN)]
    slope = dense.unflat(dense.gradient(lambda t: dense.cross_entropy(live, t, answered(11)),
                                        dense.flat(live.leaves)), start)
    wanted = {}
    for name, v in slope.items():
        blocks = torch.stack([row[name].reshape(-1) for row in rows])
        damping = 0.1 * float(blocks.square().mean())  # the paper's
        inverses = [torch.linalg.inv(torch.outer(g, g) + damping * torch.eye(len(g)).double()) for g in blocks]
        wanted[name] = (sum(inverses) / len(inverses) @ v.reshape(-1)).view_as(v)
    moved = dense.flat(axpy(-1.0, start, edits.datainf(given)(0.3).params))
    expected = -dense.flat(wanted)
    assert float(moved.norm()) == pytest.approx(0.3 * norm(start), rel=1e-9)
    assert float(moved @ expected / moved.norm() / expected.norm()) == pytest.approx(1, abs=1e-9)


def test_passes_of_an_edit_are_counted() -> None:
    for make, passes, scores in ((edits.ssd, 1, 0), (edits.datainf, 3, 2), (edits.antidote, 0, 0)):
        given = inputs()
        make(given)
        assert (given.cost.gradient_passes, given.cost.score_passes) == (passes, scores)
