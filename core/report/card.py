"""The model card (README.md) of a restored adapter: what it is, what was measured, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config import RestoreConfig
from . import rows
from .share import command_line

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")

CARD = """---
{front}---

# Restored adapter for {carrier}

Fine-tuning had taken refusals of harmful requests away from this model; `saferestore` put them back into the adapter
by {means}, held to a budget of drift from the fine-tuned model. Verdict: **{verdict}**. It
stopped because {stopped}.

## Held-out results

{table}

Rates with 95% Wilson intervals, losses in nats per token. {notes}

Drift from the fine-tuned model on held-out retain rows: {drift} nats per token (budget {budget}).
{gate}{controls}{relearning}
## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({load!r})
model = PeftModel.from_pretrained(model, "PATH_TO_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained({words!r})
```

## Limits

Restored refusals are measured on the prompts and with the judge named in `saferestore.json`; nothing is known about
other prompts, attacks or further fine-tuning.{warnings}

## Made by

```
{command}
```

Settings, versions and checksums stand in `reproduce/`; `report.html` shows the whole report.
"""


def model_card(report: Mapping[str, Any], config: RestoreConfig) -> str:
    """Return the card for the report of a finished run.

    Args:
        report: A valid report with `status: ok`; its `run` object is not used.
        config: The settings of the run; its references decide what is a hub id and what a local path.

    Returns:
        Markdown with a YAML front matter. Text from models and files is escaped; `base_model` is given only where
        that model is known by a hub id.
    """
    hub_id = carrier_hub_id(report, config)
    carrier = hub_id or "PATH_TO_THE_MODEL_IT_SITS_ON"
    return CARD.format(
        front=yaml.safe_dump(_front(hub_id), sort_keys=True),
        carrier=escaped(report["inputs"][_carrier(report)]["ref"]),
        means=_means(report), verdict=report["verdict"], stopped=escaped(rows.stopped_text(report)),
        table=_table(report),
        notes=_notes(report), drift=rows.drift_text(report["drift"]),
        budget=rows.number_text(report["drift"]["budget_nats_per_token"]), gate=_gate(report),
        controls=_controls(report), relearning=_relearning(report),
        load=carrier, words="PATH_TO_THIS_FOLDER" if "tokenizer_config.json" in report["outputs"] else carrier,
        warnings=_warnings(report),
        command=_fenced(command_line(config)))


def carrier_hub_id(report: Mapping[str, Any], config: RestoreConfig) -> str | None:
    """Return the hub id of the model that the adapter sits on, or None where that is, or may be, a local path.

    Args:
        report: A valid report. The adapter sits on the base, for a full checkpoint on the tuned model.
        config: The settings; a reference that exists on this disk is no hub id, whatever it looks like.

    Returns:
        `owner/name` or None.
    """
    given = getattr(config, _carrier(report)).split("@")[0]
    name = report["inputs"][_carrier(report)]["ref"].split("@")[0]
    is_local = Path(name).exists() or (given != "-" and Path(given).exists())
    return name if HUB_ID.fullmatch(name) and not is_local else None


def _carrier(report: Mapping[str, Any]) -> str:
    return "tuned" if report["inputs"]["tuned"]["kind"] == "full" else "base"


def _means(report: Mapping[str, Any]) -> str:
    """Return by what the change was made."""
    method = report.get("method", {})
    return f"the method `{method['name']}` ({method['source']})" if "source" in method else (
        "damped curvature-aware steps")


def escaped(text: str) -> str:
    """Return text of unknown origin as one line of Markdown that shows it literally."""
    line = " ".join(rows.plain(text).split())
    return MARKDOWN.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _front(hub_id: str | None) -> dict[str, object]:
    front: dict[str, object] = {"library_name": "peft", "tags": ["lora", "safety", "saferestore"]}
    return {**front, "base_model": hub_id, "base_model_relation": "adapter"} if hub_id else front


def _table(report: Mapping[str, Any]) -> str:
    header = ["measure", *rows.SYSTEMS.values(), "n"]
    body = [[label, *(rows.cell_text(report[system], key) for system in rows.SYSTEMS), rows.sample_size(report, key)]
            for key, label in rows.MEASURES.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *body))


def _notes(report: Mapping[str, Any]) -> str:
    notes = [f"{label.capitalize()}: not given, {escaped(reason)}." for label, reason in rows.reasons(report)]
    names = rows.judges(report)
    return " ".join([*notes, *([rows.JUDGE_CAVEAT.format(judge=f"`{escaped(rows.joined(names))}`")] if names else [])])


def _gate(report: Mapping[str, Any]) -> str:
    lines = [f"- {escaped(line)}" for line in rows.gate_texts(report)]
    return f"\n{rows.gate_title(report)}.\n\n" + "\n".join(lines) + "\n" if lines else ""


def _controls(report: Mapping[str, Any]) -> str:
    lines = [f"- {control['name']}: harmful answers {rows.rate_text(control['harmful_rate'])}, "
             f"drift {rows.number_text(control['task_kl_nats_per_token'])}" for control in report["controls"]]
    return "\nControls at the same drift:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _relearning(report: Mapping[str, Any]) -> str:
    found = rows.relearning_text(report)
    return f"\n{found[0].upper()}{found[1:]}.\n" if found else ""


def _warnings(report: Mapping[str, Any]) -> str:
    lines = [f"- {w['code'].replace('_', chr(92) + '_')}: {escaped(w['message'])}" for w in report["warnings"]]
    return "\n\n" + "\n".join(lines) if lines else ""


def _fenced(text: str) -> str:
    """Return text for a fenced block: one that holds a fence itself cannot end it."""
    return rows.plain(text).replace("```", "'''")
