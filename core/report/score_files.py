"""The files of a score: document, page, every row's line, and a training file without the rows found."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ..data.hub import as_json_lines, hub_set
from ..data.readers import file_of
from ..errors import UsageError
from ..evaluation.scoring import ScoredRows
from ..evaluation.training_rows import TrainingRows
from ..influence.clean import without
from . import rows as words
from .score import RankedRows
from .write import report_text

Json = dict[str, Any]
SHADES = 9
"""Steps of grey in the heat strip; each cell has its number, too."""


def write_score(folder: Path, found: Mapping[str, Any], lines: Sequence[Json]) -> None:
    """Write `report.json`, `report.html` and, where rows were scored, `scores.jsonl`.

    Args:
        folder: The staged folder.
        found: A valid document.
        lines: Every scored row; none without a training file.
    """
    files = {"report.json": report_text(found), "report.html": page(found)}
    if found["rows"] is not None:
        files["scores.jsonl"] = "".join(json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n" for line in lines)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def check_clean(clean: Path | None, spec: str | None, *, force: bool) -> None:
    """Refuse a clean file that could not be written at the end.

    Args:
        clean: The file; None where none is asked for.
        spec: The training file.
        force: Whether an existing file may be replaced.

    Raises:
        UsageError: There is no training file, it would be overwritten, or the file exists.
    """
    if clean is None:
        return
    if spec is None:
        raise UsageError("no training file - --write-clean", hint="add --train FILE")
    if clean.exists() and file_of(spec).exists() and clean.samefile(file_of(spec)):
        raise UsageError(f"it would replace the training file - --write-clean {clean}", hint="give another name")
    for path in (clean, removed_file(clean)):
        if path.exists() and not force:
            raise UsageError(f"file exists - --write-clean {path}", hint="give another name, or --force")
    if not clean.resolve().parent.is_dir():
        raise UsageError(f"no such folder - --write-clean {clean}", hint="make the folder first")


def removed_file(clean: Path) -> Path:
    """Return where the list of removed rows lies: beside the clean file."""
    return clean.with_name(f"{clean.name}.removed.jsonl")


def write_clean(clean: Path, spec: str, training: TrainingRows, scored: ScoredRows, ranked: RankedRows, *,
                offline: bool = False) -> None:
    """Write the training file without the rows above the threshold, and those rows with the reason.

    The list has the rows themselves in chat form, so that `restore --harmful` reads it. Of a data set of the hub the
    clean file is JSON lines.

    Args:
        clean: Where to.
        spec: The training file, read again: no copy of its text is held while rows are scored.
        training: Its rows.
        scored: Their scores.
        ranked: Which of them go.
        offline: Take a data set of the hub from the cache only.

    Raises:
        UsageError: It is no longer what was scored.
    """
    result, content = training.result, _content(spec, offline=offline)
    if hashlib.sha256(content).hexdigest() != result.sha256:
        raise UsageError(f"it changed while it was scored - --train {result.name}",
                         hint="score it again; no clean file is written")
    encoding = "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"
    text = content.decode(encoding)
    starts = sorted({line for _, line in result.places} | {line for line, _ in (*result.rejected, *result.left_out)})
    gone = [result.places[row] for row in ranked.removed]
    removed = "".join(json.dumps(_removed(row, training, scored, ranked), ensure_ascii=False) + "\n"
                      for row in ranked.removed)
    kept = without(text, result.name, starts, gone).encode(encoding)
    for path, written in ((clean, kept), (removed_file(clean), removed.encode())):
        staging = path.with_name(f".{path.name}.staging")
        staging.write_bytes(written)
        staging.replace(path)


def _content(spec: str, *, offline: bool) -> bytes:
    path = file_of(spec)
    found = None if path.exists() else hub_set(str(path))
    return path.read_bytes() if found is None else as_json_lines(found, offline=offline)


def _removed(row: int, training: TrainingRows, scored: ScoredRows, ranked: RankedRows) -> Json:
    record, influence = training.result.records[row], scored.influences[row]
    turns = [{"role": m.role, "content": m.content} for m in record.messages]
    return {"messages": [*turns, {"role": "assistant", "content": record.answer}], "line": training.line(row),
            "influence_nats_per_token": influence,
            "reason": f"training on it is predicted to raise S by {influence:.3g} nats per token, above "
                      f"{ranked.threshold:.3g}"}


def page(found: Mapping[str, Any]) -> str:
    """Return the document as one HTML page without scripts, every text escaped; `run` is not shown."""
    text = resources.files("saferestore.core.report").joinpath("score.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
                                     undefined=jinja2.StrictUndefined,
                                     finalize=lambda value: words.plain(value) if type(value) is str else value)
    environment.filters["number"] = words.number_text
    environment.filters["percent"] = words.percent
    return environment.from_string(text).render(found=found, heat=heat_strip(found), shades=SHADES,
                                                   layers={row["name"]: row for row in found["layers"]})


def heat_strip(found: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[tuple[float | None, int]]]]]:
    """Return the heat strip of safety gains: names of columns, and (layer, cells) rows.

    A column is the last part of modules' names; a cell is (gain or None, shade from 0 to `SHADES` - 1).
    """
    columns = list(dict.fromkeys(sorted(m["module"].rpartition(".")[2] for m in found["modules"])))
    gains: dict[str, dict[str, float]] = {}
    for module in found["modules"]:
        layer = "none" if module["layer"] is None else str(module["layer"])
        row, column = gains.setdefault(layer, {}), module["module"].rpartition(".")[2]
        row[column] = row.get(column, 0.0) + module["safety_gain_nats_per_token"]
    largest = max((gain for row in gains.values() for gain in row.values()), default=0.0) or 1.0
    order = sorted(gains, key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0))
    return columns, [(layer, [(gains[layer].get(c), shade(gains[layer].get(c), largest)) for c in columns])
                     for layer in order]


def shade(gain: float | None, largest: float) -> int:
    """Return a step of the heat strip."""
    return 0 if gain is None else min(SHADES - 1, max(0, round((SHADES - 1) * gain / largest)))
