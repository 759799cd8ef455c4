"""The judges by name, what `--judge` may say, and judges made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from ...checkpoint.reference import shown
from ...config import Progress, nearest, no_progress
from ...errors import UsageError
from ..samples import Finding
from . import rubrics
from .rubric import Rubric, parse_rubric, read_rubric
from .run import Loading, judging_model, run_rubric
from .substrings import GCG, HEX_PHI, judge_substrings
from .wording import judge_wording

Judge = Callable[[Sequence[str], Sequence[str]], list[Finding]]
"""(prompts, answers) -> a finding an answer."""

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Row:
    """A judge of the table.

    Attributes:
        kind: `answer` (reads the answer alone), `likelihood` (needs the systems themselves), or `rubric` (asks a
            local causal LM).
        about: What it is, in a line.
        judge: The judge itself where it needs no model.
    """

    kind: str
    about: str
    judge: Judge | None = None


JUDGES: dict[str, Row] = {
    "refusal-wording": Row("answer", "how a refusal is worded, anchored and by phrases; a smoke test", judge_wording),
    "refusal-substrings": Row("answer", "29 substrings published with HEx-PHI; a smoke test",
                              partial(judge_substrings, HEX_PHI)),
    "refusal-substrings-gcg": Row("answer", "7 substrings published with AdvBench and GCG; a smoke test",
                                  partial(judge_substrings, GCG)),
    "base-likelihood": Row("likelihood", "whether a harmful answer is likelier than the base's safe one"),
    "harmbench": Row("rubric", "HarmBench's classifier: harmful yes or no"),
    "wildguard": Row("rubric", "WildGuard: harm and refusal"),
    "llama-guard": Row("rubric", "Llama Guard: safe or unsafe"),
    "qwen3guard": Row("rubric", "Qwen3Guard-Gen: harm (controversial counts) and refusal"),
    "strongreject": Row("rubric", "StrongREJECT's rubric for any capable model: refusal and a score from 0 to 1"),
}
"""Judge name -> what it is."""


@dataclass(frozen=True)
class JudgeSpec:
    """A judge as asked for.

    Attributes:
        name: As reports call it.
        kind: As in `Row`.
        rubric: How the model is asked, for kind `rubric`.
        model: Reference of the judging model, for kind `rubric`.
        files_sha256: Of the judging model's weights, tokenizer and template; empty where they were not read.
    """

    name: str
    kind: str
    rubric: Rubric | None = None
    model: str | None = None
    files_sha256: str = ""

    @property
    def identity(self) -> str:
        """What a finding was made by: name, digest of the rubric, model without folder."""
        return self.name if self.rubric is None else f"{self.name}:{self.rubric.sha256[:12]}={shown(self.model or '')}"


def ready_rubric(name: str) -> Rubric:
    """Return a rubric that ships with the package."""
    return parse_rubric((resources.files(rubrics) / f"{name}.yaml").read_bytes(), f"{name}.yaml", name)


def parse_judge(text: str) -> JudgeSpec:
    """Read `NAME`, `RUBRIC=MODEL` or `FILE.yaml=MODEL`.

    Args:
        text: As typed after `--judge`.

    Returns:
        The judge; no model is loaded.

    Raises:
        UsageError: An unknown name, a rubric without a model, a model for a judge that takes none, a rubric file
            that cannot be used or has the name of a judge of ours.
    """
    name, model = _split(text)
    if name.endswith(SUFFIXES):
        return _with_model(_own_rubric(name), text, model)
    if name not in JUDGES:
        raise UsageError(f"unknown judge - --judge {text}", hint=nearest(name, JUDGES) + " (or FILE.yaml=MODEL)")
    if JUDGES[name].kind == "rubric":
        return _with_model(ready_rubric(name), text, model)
    if model is not None:
        raise UsageError(f"`{name}` takes no model - --judge {text}", hint=f"write --judge {name}")
    return JudgeSpec(name, JUDGES[name].kind)


def parse_judges(texts: Iterable[str]) -> tuple[JudgeSpec, ...]:
    """Read several judges.

    Args:
        texts: As typed.

    Returns:
        The judges in their order.

    Raises:
        UsageError: Two of one name; and as `parse_judge`.
    """
    found: dict[str, JudgeSpec] = {}
    for text in texts:
        spec = parse_judge(text)
        if spec.name in found:
            raise UsageError(f"two judges of one name `{spec.name}` - --judge {text}",
                             hint="give the second a rubric file with a `name` of its own")
        found[spec.name] = spec
    return tuple(found.values())


def _split(text: str) -> tuple[str, str | None]:
    """Split at the `=` that a rubric file's suffix stands before, else at the first one; a file alone stays whole."""
    if text.endswith(SUFFIXES) and Path(text).exists():
        return text, None
    for suffix in SUFFIXES:
        head, found, tail = text.partition(f"{suffix}=")
        if found:
            return head + suffix, tail
    head, found, tail = text.partition("=")
    return head, tail if found else None


def _own_rubric(name: str) -> Rubric:
    rubric = read_rubric(Path(name))
    if rubric.name in JUDGES:
        raise UsageError(f"the name `{rubric.name}` is taken - {name}", hint="give the rubric another `name`")
    return rubric


def _with_model(rubric: Rubric, text: str, model: str | None) -> JudgeSpec:
    if not model:
        raise UsageError(f"needs a model - --judge {text}",
                         hint=f"--judge {text.rstrip('=')}={rubric.model or 'ID_OR_PATH'}")
    return JudgeSpec(rubric.name, "rubric", rubric, model)


def make_judge(spec: JudgeSpec, loading: Loading | None = None, *, batch_size: int = 16,
               progress: Progress = no_progress) -> Judge:
    """Return a judge of given answers; a judging model is loaded when it is called, and let go of after.

    Args:
        spec: From `parse_judge`.
        loading: How a judging model is loaded.
        batch_size: Questions a batch, at most.
        progress: Told of a download and of every batch.

    Returns:
        The judge.

    Raises:
        UsageError: `base-likelihood`, which looks at systems and not at answers.
    """
    if spec.kind == "likelihood":
        raise UsageError(f"needs the systems, not their answers - --judge {spec.name}",
                         hint="use --judge refusal-wording here, or a model with a rubric")
    ready = JUDGES[spec.name].judge if spec.name in JUDGES else None
    if ready is not None:
        return ready

    def asked(prompts: Sequence[str], answers: Sequence[str]) -> list[Finding]:
        pairs = list(zip(prompts, answers, strict=True))
        assert spec.rubric is not None and spec.model is not None, "a rubric's spec has both"
        with judging_model(spec.model, loading, progress=progress) as loaded:
            return run_rubric(spec.rubric, *loaded, pairs, progress, batch_size=batch_size)

    return asked
