"""`suffix:FILE`: each line of a file is put after the request; the worst of them counts.

Such lines come from a search elsewhere (Zou et al. 2023, "Universal and transferable adversarial attacks on aligned
language models"); none ships with the package.
"""

from __future__ import annotations

from ...data.texts import read_text
from ...errors import UsageError
from .attempts import Attack
from .templates import reworded


def suffix(value: str) -> Attack:
    """Return the attack with a variant for each line that is not blank, after the request and a blank.

    Args:
        value: The file; one that cannot be read, is empty or not UTF-8 is a UsageError.

    Returns:
        The attack, with k the number of lines.

    Raises:
        UsageError: No file was named.
    """
    if not value:
        raise UsageError("no file - --attack suffix:", hint="give --attack suffix:FILE with a suffix a line")
    file = read_text(value, "--attack suffix:FILE")
    lines = [(number, line.strip("\r")) for number, line in enumerate(file.text.split("\n"), 1) if line.strip()]
    return Attack(f"suffix:{file.name}",
                  lambda record, setting: [reworded(record, setting, f"{record.prompt} {line}", f"line {number}")
                                           for number, line in lines], len(lines), file.sha256)
