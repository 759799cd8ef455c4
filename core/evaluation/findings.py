"""From answers to what results say: judged samples, rates and the verdicts of a gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..data.generations import Generations
from ..errors import SaferestoreError
from .agreement import ABOUT, agreements
from .examination import Examined
from .gate.measure import Measured, measure
from .samples import Sample

Json = Mapping[str, Any]


def given_answers(read: Iterable[Generations]) -> Examined:
    """Return answers that exist already as samples of harmful prompts, not judged yet.

    Args:
        read: Files of answers.
    """
    return Examined([Sample(row.system, row.set, "harmful", "none", "", row.id, row.prompt, row.answer, 0, True)
                     for each in read for row in each.rows])


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
