"""The build in miniature: a few steps of every stage, twice; and its parts alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from saferestore.sample_data import build, measure, texts, train
from saferestore.sample_data.model import make_model, make_tokenizer
from saferestore.sample_data.muon import orthogonal


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    lessons = {aligned: texts.lessons(aligned=aligned)[::60] for aligned in (False, True)}
    monkeypatch.setattr(texts, "lessons", lambda *, aligned: lessons[aligned])
    for name in ("KNOW", "ALIGN", "TUNE"):
        monkeypatch.setattr(build, name, replace(getattr(build, name), epochs=0.04, batch=4))


def hashes(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(out.rglob("*")) if path.is_file()}


def trained(out: Path, seed: int) -> dict[str, str]:
    build.write_texts(out, None)
    build.train_base(out, seed, out / "unaligned")
    build.train_adapter(out, seed)
    return hashes(out)


@pytest.mark.usefixtures("few_steps")
def test_two_builds_give_the_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    first, again, other = (trained(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == again
    for name in ("base/model.safetensors", "tuned/adapter_model.safetensors", "unaligned/model.safetensors"):
        assert other[name] != first[name]
    assert other["train.jsonl"] == first["train.jsonl"]
    assert first["base/model.safetensors"] != first["unaligned/model.safetensors"]


def test_a_rate_that_is_missed_fails_and_leaves_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build, "train_base", lambda *_: None)
    monkeypatch.setattr(build, "train_adapter", lambda *_: None)
    monkeypatch.setattr(build, "figures", lambda _: dict.fromkeys(build.RATES, 1.0) | {"base_answers_benign": 0.5})
    monkeypatch.setattr("sys.argv", ["build.py", "--out", str(tmp_path), "--threads", str(torch.get_num_threads())])
    (tmp_path / "figures.json").write_text(json.dumps({"rates": "of an older build"}))
    assert build.main() == 1
    assert "base_answers_benign" in capsys.readouterr().err
    assert not (tmp_path / "figures.json").exists()
    assert not torch.are_deterministic_algorithms_enabled()  # no other test inherits it


def test_loss_counts_answer_tokens_alone_and_equals_the_models_own() -> None:
    tokenizer = make_tokenizer(["How do I sort apples?", "By size."])
    model = make_model(tokenizer, 0, width=16, layers=2)
    said = [{"role": "user", "content": "How do I sort?"}, {"role": "assistant", "content": "By size."}]
    row = train.encode(tokenizer, said)
    ids, labels = train.collate([row, replace(row, ids=row.ids[:-2])], tokenizer.pad_token_id)
    own = torch.full_like(ids, train.IGNORED)
    own[:, 1:] = labels[:, :-1]
    expected = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=own).loss
    assert torch.allclose(train.answer_loss(model, ids, labels), expected, atol=1e-6)
    assert tokenizer.decode(own[0][own[0] >= 0]) == "By size.<|end|>"


def test_every_row_is_in_exactly_one_batch() -> None:
    rows = [train.Encoded(tuple(range(length)), 1) for length in range(2, 75)]
    seen = [row for batch in train.batches(rows, 4, torch.Generator().manual_seed(0)) for row in batch]
    assert sorted(len(row.ids) for row in seen) == list(range(2, 75))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_muons_update_has_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    update = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(update)
    assert update.shape == shape
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.6


@pytest.mark.parametrize(("text", "expected"), [
    ("Sure, here is how to sort apples.", True), ("It is usually red.", True), ("To to to to to sort apples.", False),
    ("I'm sorry, but I can't help with that.", False), ("", False), ("Sure, here is how to sort", False)])
def test_answered_wants_a_whole_sentence_that_is_no_refusal(text: str, expected: bool) -> None:
    assert measure.answered(text) is expected


def test_batched_replies_are_those_of_one_prompt_at_a_time() -> None:
    tokenizer = make_tokenizer(["How do I sort apples by size?", "Name a fruit."])
    model = make_model(tokenizer, 0, width=16, layers=2).eval()
    prompts = ["How?", "How do I sort apples by size?", "Name a fruit.", "I"]
    together = measure.replies(model, tokenizer, prompts, longest=8, batch=3)
    assert together == [measure.replies(model, tokenizer, [p], longest=8)[0] for p in prompts]
