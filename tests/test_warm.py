"""A warm run is a cold run, sooner: the same exit code and the same output, however the learner's code ends."""

import pytest

from dojo import warm
from dojo.loading import ROOT, Kata
from tests.support import reference, save

VIEWS = Kata(ROOT / "katas" / "03_views")
LINE = "    top, left ="
ENDS = {
    "right": "",
    "wrong": "    height = 1\n",
    "exception": "    raise RuntimeError('mine')\n",
    "sys.exit": "    raise SystemExit(0)\n",
    "os._exit": "    import os\n    os._exit(0)\n",
    "signal": "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    "keyboard interrupt": "    raise KeyboardInterrupt\n",
    "recursion": "    return center_crop(images, height, width)\n",
    "hang": "    while True: pass\n",
    "stubborn hang": "    while True:\n        try:\n            while 1: pass\n        except BaseException: pass\n",
}


@pytest.mark.parametrize("ending", ENDS)
def test_verdict_exit_code_and_output_are_those_of_a_cold_run(ending, tmp_path):
    source = reference(VIEWS).replace(LINE, ENDS[ending] + LINE)
    save(tmp_path, VIEWS, source)
    arguments = ["katas/03::TestCenterCrop", f"--impl={tmp_path}", "--timeout=2", "-p", "no:cacheprovider"]
    fresh, forked = warm.cold(arguments), warm.run(arguments)
    assert forked == fresh
    assert (forked.exit_code == 0) == (ending == "right")


def test_a_run_that_outlasts_its_time_is_killed(tmp_path):
    save(tmp_path, VIEWS, "while True: pass\n")
    ended = warm.run(["katas/03", f"--impl={tmp_path}", "--timeout=0"], timeout=3)
    assert ended.exit_code == -9


def test_usage_errors_keep_their_exit_code():
    assert warm.run(["katas/99"]).exit_code == 4
