"""The examples that hypothesis draws are the seed's alone: the same in every folder, and whatever else is loaded."""

import subprocess
import sys

from dojo.loading import ROOT

DRAWN = """
import sys
{before}
import hypothesis
from hypothesis import strategies as st
from dojo import strategies
strategies.use_profile()

@hypothesis.seed(0)
@hypothesis.given(st.integers(), st.integers(0, 2**40))
def draw(a, b):
    print(a, b)
draw()
"""


def test_constants_in_other_code_do_not_change_the_examples(tmp_path):
    """Else one file passes alone and fails beside another, or passes here and fails there."""
    (tmp_path / "other.py").write_text("A, B, C = 123457, 7654321, 998877665544\n")
    outputs = []
    for before in ("", f"sys.path.append({str(tmp_path)!r}); import other"):
        command = [sys.executable, "-c", DRAWN.format(before=before)]
        outputs.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert outputs[0].count("\n") > 10
    assert outputs[0] == outputs[1]
