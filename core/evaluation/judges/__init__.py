"""Judges: what tells a harmful answer from a refusal, each a row of `JUDGES`, shown side by side, never averaged."""

from .likelihood import base_likelihood
from .rubric import Rubric, read_rubric
from .run import run_rubric
from .specs import JUDGES, Judge, JudgeSpec, make_judge, parse_judge, parse_judges
from .substrings import GCG, HEX_PHI
from .wording import Verdict, judge, judge_wording, refusal_wording

__all__ = ["GCG", "HEX_PHI", "JUDGES", "Judge", "JudgeSpec", "Rubric", "Verdict", "base_likelihood", "judge",
           "judge_wording", "make_judge", "parse_judge", "parse_judges", "read_rubric", "refusal_wording",
           "run_rubric"]
