"""Tasks of lm-evaluation-harness on a model that is in memory, folded into our rows; the harness is an extra."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from ..config import nearest
from ..data.chat import ChatFormat
from ..errors import SaferestoreError, UsageError
from .generation import quiet_model
from .intervals import wilson

Json = dict[str, Any]
JUDGE = "lm-eval"
SHARES = ("acc", "acc_norm", "exact_match")
"""Metrics that are a share of samples, so that Wilson's interval holds where value times n is a whole number."""
RESAMPLES = 1000  # the harness's 100,000 take minutes for BLEU, and nothing for means, whose error has a formula


def parse_tasks(text: str) -> tuple[str, ...]:
    """Return the tasks of `--lm-eval A,B`, each once, when the harness is there and knows them.

    Args:
        text: Names, patterns such as `mmlu_*`, or YAML files, joined by commas.

    Returns:
        The tasks, in that order.

    Raises:
        UsageError: No task, an unknown one, or no harness (the command that installs it is named).
    """
    tasks = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not tasks:
        raise UsageError(f"no task - --lm-eval {text}", hint="give for example --lm-eval arc_easy,gsm8k")
    known = _harness("lm_eval.tasks").TaskManager().all_tasks
    for task in tasks:
        if not os.path.isfile(task) and not fnmatch.filter(known, task):
            raise UsageError(f"unknown task - --lm-eval {task}", hint=_near(task, known))
    return tasks


def run_lm_eval(model: Any, chat: ChatFormat, tasks: Sequence[str], *, system: str, batch_size: int | str,
                context: int, seed: int, limit: float | None = None) -> list[Json]:
    """Return the rows of a system on tasks of lm-evaluation-harness, as they stand there.

    What the harness prints goes to stderr; the model is left as it was, and the tokenizer is a copy.

    Args:
        model: A Hugging Face causal LM or a PEFT model around one.
        chat: Its conversation format: template and system prompt are handed on.
        tasks: From `parse_tasks`.
        system: Name of the system, for the rows.
        batch_size: Rows a batch, or `auto`.
        context: Tokens a row may have.
        seed: Of few-shot examples and bootstrap.
        limit: Documents of each task at most, or their share below 1.

    Returns:
        One row a task and metric (see `fold`).

    Raises:
        SaferestoreError: The harness failed; its own words are kept.
    """
    harness, hf = _harness("lm_eval"), _harness("lm_eval.models.huggingface")
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = chat.template
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    with quiet_model(model) as inner, contextlib.redirect_stdout(sys.stderr):
        try:
            found = harness.simple_evaluate(
                model=hf.HFLM(pretrained=inner, tokenizer=tokenizer, batch_size=batch_size, max_length=context),
                tasks=list(tasks), limit=limit, log_samples=False, bootstrap_iters=RESAMPLES,
                system_instruction=chat.system, apply_chat_template=chat.template is not None, **seeds)
        except Exception as error:  # whatever a task of somebody else's may raise
            raise SaferestoreError(f"lm-evaluation-harness failed - --lm-eval {','.join(tasks)}: "
                                   f"{type(error).__name__}: {str(error)[:200]}",
                                   hint="run `lm-eval` by itself to see why, or leave out --lm-eval") from error
    return fold(found, system)


def fold(found: Mapping[str, Any], system: str) -> list[Json]:
    """Return the rows of `metrics` for what the harness found, tasks in its order, metrics by name.

    Args:
        found: Its dictionary: `results` maps task -> `METRIC,FILTER` -> value and `METRIC_stderr,FILTER`.
        system: Name of the system.

    Returns:
        Rows of set `lm-eval:TASK` and metric `lm-eval:METRIC` (with `,FILTER` where that is not `none`). Intervals are
        Wilson's for shares of samples, else 1.96 standard errors either way, else null.
    """
    return [_row(system, task, key, values, _count(found, task))
            for task, values in found["results"].items() for key in sorted(values) if _is_metric(key, values[key])]


def _row(system: str, task: str, key: str, values: Mapping[str, Any], n: int) -> Json:
    name, _, chosen = key.partition(",")
    value, error = float(values[key]), values.get(f"{name}_stderr,{chosen}")
    low, high = _interval(name, value, n, error)
    return {"system": system, "set": f"lm-eval:{task}", "role": "task", "attack": "none",
            "metric": f"lm-eval:{name}" + (f",{chosen}" if chosen not in ("", "none") else ""), "judge": JUDGE,
            "value": value, "n": n, "ci_low": low, "ci_high": high, "errors": 0}


def _is_metric(key: str, value: object) -> bool:
    return "," in key and "_stderr," not in key and _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _interval(name: str, value: float, n: int, error: object) -> tuple[float | None, float | None]:
    hits = value * n
    if name in SHARES and n and 0 <= value <= 1 and abs(hits - round(hits)) < 1e-6 * n:
        rate = wilson(round(hits), n)
        return rate.ci_low, rate.ci_high
    if not isinstance(error, int | float) or not _is_number(error):
        return None, None
    reach = float(stats.norm.ppf(0.975)) * error
    return value - reach, value + reach


def _count(found: Mapping[str, Any], task: str) -> int:
    """Return the samples of a task, of a group those of its tasks; 0 where the harness does not say."""
    own = found.get("n-samples", {}).get(task)
    if own is not None:
        return int(own["effective"])
    return sum(_count(found, part) for part in found.get("group_subtasks", {}).get(task, ()) if part != task)


def _harness(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"lm-evaluation-harness is not installed - --lm-eval: {error}",
                         hint="pip install 'saferestore[lm-eval]'") from error


def _near(task: str, known: Sequence[str]) -> str:
    """Name the nearest task; a list of all would be ten thousand names long."""
    hint = nearest(task, known)
    return hint if hint.startswith("did") else "`lm-eval ls tasks` lists them"
