"""A real small checkpoint (260K parameters, tied embeddings, grouped heads), where it lies beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session, read_params
from saferestore.core.checkpoint.writer import reload_error, write_adapter

from .tiny import IDS, logits, peft_logits, plain_logits, save_adapter

STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260K"
pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason="no shared/models beside the checkout")


def test_a_real_base_with_an_adapter_goes_in_and_out(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", STORIES, r=6, use_rslora=True, target_modules="all-linear")
    pair = open_pair(str(STORIES), str(adapter))
    assert len(pair.target_modules) == 35
    session = open_session(pair)
    torch.testing.assert_close(logits(session.adapter().model), peft_logits(STORIES, adapter), atol=2e-5, rtol=1e-5)
    with session.base() as base:
        assert torch.equal(logits(base), plain_logits(STORIES))
    (tmp_path / "out").mkdir()
    write_adapter(tmp_path / "out", read_params(session.adapter()), pair)
    assert reload_error(tmp_path / "out", session, IDS) <= 1e-6


def test_a_real_base_writes_what_it_writes_by_transformers(tmp_path: Path) -> None:
    session = open_session(open_pair(str(STORIES), str(STORIES)))
    with session.base() as base:
        ids = session.tokenizer("Once upon a time", return_tensors="pt").input_ids
        out = base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert "there was" in session.tokenizer.decode(out[0])
