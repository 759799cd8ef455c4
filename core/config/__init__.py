"""Settings of a run as frozen dataclasses, checked when made, read from and written to YAML (no torch here)."""

from .checks import nearest, rows_a_batch
from .common import DTYPES, GATE_MODES, CommonConfig, Progress, no_progress
from .evaluation import SYSTEM_NAMES, EvalConfig
from .files import AnyConfig, read_yaml, to_yaml
from .landscape import UNRELATED, CompareConfig, ProbeConfig
from .names import CURVATURE, ENGINES, NEED_UNALIGNED, OBJECTIVES, PAIRS, PUBLISHED
from .restore import RestoreConfig
from .score import AUTO_POINT, AUTO_WAY, SCORE_WAYS, ScoreConfig, score_of

__all__ = ["AUTO_POINT", "AUTO_WAY", "CURVATURE", "DTYPES", "ENGINES", "GATE_MODES", "NEED_UNALIGNED", "OBJECTIVES",
           "PAIRS", "PUBLISHED", "SCORE_WAYS", "SYSTEM_NAMES", "UNRELATED", "AnyConfig", "CommonConfig",
           "CompareConfig", "EvalConfig", "ProbeConfig", "Progress", "RestoreConfig", "ScoreConfig",
           "nearest", "no_progress", "read_yaml", "rows_a_batch", "score_of", "to_yaml"]
