"""Our batched generation beside `model.generate`, on the same prompts: the same batches, and batches in file order.

Usage: python docs/benchmarks/generation.py [--rounds 9] [--write]

Alternated in one process, the order turned round every time; medians of process time, so that other work on the
machine counts little. `--write` writes generation.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from saferestore.core.data.chat import chat_format
from saferestore.core.data.readers import read_records
from saferestore.core.evaluation.generation import generate, plan_batches
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__)
SAMPLE = HERE.parents[2] / "sample_data"
BATCH, LONGEST = 32, 32
PAGE = """# Generation

`python docs/benchmarks/generation.py --write`: {n} prompts of the sample ({shortest} to {longest} tokens), batches of
{batch}, at most {new} tokens each, greedy, the sample's base, float32, {threads} thread. Process time, alternated,
{rounds} rounds; the ratio is the median over rounds, its range in brackets. Commit {commit}, torch {torch},
transformers {transformers}.

| how | seconds | ratio to `model.generate` on the same batches | same answers as one at a time |
| --- | --- | --- | --- |
{rows}

`model.generate` is called with left-padded ids and a mask. "As one at a time" compares token ids with those of every
prompt answered alone.
"""


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chat = chat_format(AutoTokenizer.from_pretrained(SAMPLE / "base"))
    model = AutoModelForCausalLM.from_pretrained(SAMPLE / "base", dtype=torch.float32)
    sets = [read_records(str(SAMPLE / "records" / f"{name}.jsonl")).records for name in ("harmful", "benign")]
    pad, ends = chat.pad_id, frozenset(chat.stop_ids)
    prompts = [list(chat.prompt_ids(record)) for records in sets for record in records]

    def plain(batches: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        found: dict[int, tuple[int, ...]] = {}
        for batch in batches:
            width = max(len(prompts[i]) for i in batch)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in batch])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            out = model.generate(ids, attention_mask=mask, max_new_tokens=LONGEST, do_sample=False,
                                 pad_token_id=pad, eos_token_id=list(ends))
            found.update(zip(batch, (cut(row) for row in out[:, width:].tolist()), strict=True))
        return [found[i] for i in range(len(prompts))]

    def cut(row: Sequence[int]) -> tuple[int, ...]:
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        return tuple(row[:end])

    def ours() -> list[tuple[int, ...]]:
        return [answer.tokens for answer in generate(model, prompts, max_new_tokens=LONGEST, batch_size=BATCH,
                                                     pad_id=pad, eos_ids=tuple(ends))]

    in_order = [list(range(i, min(i + BATCH, len(prompts)))) for i in range(0, len(prompts), BATCH)]
    ways: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        "`model.generate`, the same batches": lambda: plain(plan_batches(prompts, BATCH)), "ours": ours,
        "`model.generate`, batches in file order": lambda: plain(in_order)}
    alone = plain([[i] for i in range(len(prompts))])
    same = {name: sum(a == b for a, b in zip(way(), alone, strict=True)) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds):
        for name in (list(ways) if turn % 2 else reversed(ways)):
            begin = time.process_time()
            ways[name]()
            times[name].append(time.process_time() - begin)
    unit = times["`model.generate`, the same batches"]
    lines = []
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, unit, strict=True)]
        lines.append(f"| {name} | {statistics.median(found):.2f} | {statistics.median(ratios):.3f} "
                     f"[{min(ratios):.2f}, {max(ratios):.2f}] | {same[name]} of {len(prompts)} |")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    text = PAGE.format(n=len(prompts), shortest=min(map(len, prompts)), longest=max(map(len, prompts)), batch=BATCH,
                       new=LONGEST, threads=torch.get_num_threads(), rounds=options.rounds, commit=commit.strip(),
                       torch=torch.__version__, transformers=transformers.__version__, rows="\n".join(lines))
    print(text)
    if options.write:
        HERE.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
