"""From answers to what results say: judged samples, rates and the verdicts of a gate."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Progress
from ..data.generations import Generations, read_generations
from ..errors import SaferestoreError
from .agreement import ABOUT, agreements
from .calibration import calibrate, calibrate_recorded, labelled_rows
from .examination import Examined
from .gate.measure import Measured, measure
from .judges import JudgeSpec, make_judge
from .judges.run import Loading
from .samples import Sample

Json = Mapping[str, Any]


def given_answers(read: Iterable[Generations]) -> Examined:
    """Return answers that exist already as samples, not judged yet; of harmful prompts where the file does not say.

    Further answers of a system to one prompt, in whichever file, are variants of it: the worst of them counts.

    Args:
        read: Files of answers.
    """
    told: Counter[tuple[str, ...]] = Counter()
    samples = []
    for row in (row for each in read for row in each.rows):
        question = (row.system, row.set, row.role, row.id, row.prompt)
        told[question] += 1
        variant = f"answer {told[question]}" if told[question] > 1 else ""
        samples.append(Sample(row.system, row.set, row.role, "none", variant, row.id, row.prompt, row.answer, 0, True,
                              group=row.group))
    return Examined(samples)


def measured_of(samples: Sequence[Sample], examined: Examined) -> Measured:
    """Return all rates and numbers, for every number of solved rows.

    Args:
        samples: Judged.
        examined: Numbers beside them.
    """
    parts = [measure([sample for sample in samples if sample.shots == count], shots=count)
             for count in sorted({sample.shots for sample in samples})]
    return Measured((*(row for part in parts for row in part.rows), *examined.rows),
                    (*(verdict for part in parts for verdict in part.verdicts), *examined.verdicts))


def agreement_rows(samples: Sequence[Sample]) -> list[Json]:
    """Return how far every two judges agree about harm and about refusal, as flat rows."""
    rows = []
    for about in ABOUT:
        for each in agreements(samples, about):
            plain = dataclasses.asdict(each)
            rate = plain.pop("rate") or {}
            rows.append({**plain, "agreement": rate.get("value"), "ci_low": rate.get("ci_low"),
                         "ci_high": rate.get("ci_high")})
    return rows


def check_errors(samples: Iterable[Sample], most: int) -> None:
    """Refuse a run in which judges could not be read too often.

    Args:
        samples: Judged.
        most: Unreadable judgements allowed; -1 for any number.

    Raises:
        SaferestoreError: There are more.
    """
    errors = [finding.error for sample in samples for finding in sample.findings.values() if finding.error]
    if 0 <= most < len(errors):
        raise SaferestoreError(f"{len(errors)} judgements could not be read - the first: {errors[0]}",
                               hint="give the judging model that the rubric is for, or a higher --max-errors")


def calibrated(files: Iterable[str], specs: Iterable[JudgeSpec], loading: Loading, *,
               progress: Progress) -> dict[str, Any]:
    """Return how often judges find what people labelled, by model; see `calibration.calibrate`.

    Args:
        files: Labelled answers.
        specs: The judges; labels that another judge left in a file are one more, `recorded`.
        loading: How a judging model is loaded.
        progress: Told of every batch.
    """
    judges = [(spec.name, make_judge(spec, loading, progress=progress)) for spec in specs]
    found, rejected = [], []
    for file in files:
        read = read_generations(Path(file))
        labelled, unlabelled = labelled_rows(read.rows)
        unused = sorted((*read.rejected, *read.left_out, *unlabelled))
        rejected += [{"file": read.name, "line": line, "reason": why} for line, why in unused]
        prompts, answers = [item.row.prompt for item in labelled], [item.row.answer for item in labelled]
        rows = [row for name, judge in judges for row in calibrate(labelled, name, judge(prompts, answers))]
        found += [{"file": read.name, "sha256": read.sha256, **dataclasses.asdict(row)}
                  for row in (*rows, *calibrate_recorded(labelled))]
    return {"schema_version": "1.0", "command": "calibrate", "status": "ok", "exit_code": 0, "calibration": found,
            "rejected": rejected}
