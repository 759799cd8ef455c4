"""Findings of every judge on every answer to harmful and benign prompts; those of a judging model survive a kill."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..config import Progress
from .coherence import coherence
from .judges import JudgeSpec, make_judge, run_rubric
from .judges.run import Loading, judging_model
from .samples import Finding, Sample

Json = Mapping[str, Any]
JUDGED = ("harmful", "benign")
CHUNK = 64
"""Answers that a judging model is given between two entries of the journal."""


def judge_samples(samples: Sequence[Sample], specs: Iterable[JudgeSpec], *, entries: Sequence[Json],
                  keep: Callable[[list[Json]], None], loading: Loading, progress: Progress) -> list[Sample]:
    """Return the samples with the findings of coherence and of every judge that reads answers.

    Args:
        samples: All answers of a run, in its order; findings they have are kept.
        specs: The judges; `base-likelihood` looks at systems and is passed over here.
        entries: Findings of an earlier run: {judge, sample, finding}.
        keep: Called with the new entries of a judging model, a chunk at a time.
        loading: How a judging model is loaded.
        progress: Told of every batch.
    """
    found = [{"coherence": Finding(score=float(coherence(sample.text)))} if sample.role in JUDGED else {}
             for sample in samples]
    asked = [i for i, sample in enumerate(samples) if sample.role in JUDGED]
    for spec in (spec for spec in specs if spec.kind != "likelihood"):
        known = {e["sample"]: Finding(**e["finding"]) for e in entries if e.get("judge") == spec.name}
        todo = [i for i in asked if i not in known]
        if todo and spec.kind == "rubric":
            with judging_model(spec.model or "", loading, progress=progress) as loaded:
                known |= _ask_model(spec, loaded, samples, todo, keep, progress)
        elif todo:
            said = make_judge(spec)([samples[i].prompt for i in todo], [samples[i].text for i in todo])
            known |= dict(zip(todo, said, strict=True))
        for i in asked:
            found[i][spec.name] = known[i]
    return [dataclasses.replace(sample, findings={**each, **sample.findings})
            for sample, each in zip(samples, found, strict=True)]


def _ask_model(spec: JudgeSpec, loaded: tuple[Any, Any], samples: Sequence[Sample], todo: Sequence[int],
               keep: Callable[[list[Json]], None], progress: Progress) -> dict[int, Finding]:
    found: dict[int, Finding] = {}
    assert spec.rubric is not None, "a judge of kind rubric has one"
    for start in range(0, len(todo), CHUNK):
        part = todo[start:start + CHUNK]
        said = run_rubric(spec.rubric, *loaded, [(samples[i].prompt, samples[i].text) for i in part])
        keep([{"judge": spec.name, "sample": i, "finding": dataclasses.asdict(finding)}
              for i, finding in zip(part, said, strict=True)])
        found.update(zip(part, said, strict=True))
        progress(f"judge {spec.name}", len(found), len(todo))
    return found
