"""The learner's screens, written down in tests/screens: what a run prints, for each way that it can end."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dojo import stubs
from dojo.loading import Kata
from tests.support import reference, run

SCREENS = Path(__file__).parent / "screens"


@dataclass
class Scene:
    """One state of a kata's stub, and the command that is typed."""

    name: str
    edits: dict[str, str] = field(default_factory=dict)  # of the reference; none and no start: the untouched stub
    start: str = "reference"
    command: tuple[str, ...] = ("katas/03",)
    exit_code: int = 1
    kata: str = "03_views"


CROP = "    top, left = (h - height) // 2, (w - width) // 2\n"
SCENES = [
    Scene("untouched", start="stub"),
    Scene("untouched-hint", start="stub", command=("katas/03", "--hint")),
    Scene("partly-done", {"def center_crop(": "def centre_crop(images, height, width): ...\n\n\ndef center_crop("},
          start="three functions"),
    Scene("wrong-value", {"(h - height) // 2": "(h - height + 1) // 2"}),
    Scene("wrong-value-two-hints", {"(h - height) // 2": "(h - height + 1) // 2"}, command=("katas/03", "--hint=2")),
    Scene("wrong-shape", {"left : left + width]": "left : left + width - 1]"}),
    Scene("wrong-dtype", {"dim=1).flatten(0, 1)": "dim=1).flatten(0, 1).double()"}),
    Scene("input-modified", {"    return torch.stack((a, b)": "    b *= 1\n    return torch.stack((a, b)"},
          command=("katas/03::TestInterleave", "-k", "leaves_its_arguments")),
    Scene("a-copy-where-a-view-is-asked", {"left : left + width]": "left : left + width].clone()"}),
    Scene("refused-operation", {"    *batch, down, right = x.stride()\n": "    return x.diagonal(0, -2, -1)\n"}),
    Scene("exception", {CROP: CROP + "    images[99, 99]\n"}),
    Scene("printed", {CROP: "    print(images.shape, height)\n" + CROP, "top : top + height": "top : height"}),
    Scene("no-error-raised", {"1 <= height <= h and": "height <= h and"}),
    Scene("syntax-error", {"    top, left = (": "    top, left = (("}),
    Scene("failing-import", {"import math\n": "import maths\n"}),
    Scene("missing-function", {"def center_crop(": "def centre_crop("}),
    Scene("endless-loop", {CROP: CROP + "    while True:\n        pass\n"}, command=("katas/03", "--timeout=1")),
    Scene("endless-loop-at-import", {"import math\n": "import math\n\nwhile True:\n    pass\n"},
          command=("katas/03", "--timeout=1")),
    Scene("hypothesis-example", {"*batch, stride = x.stride()": "*batch, stride = x.stride()\n    step %= 4"}),
    Scene("hard-exit", {CROP: CROP + "    import os\n\n    os._exit(0)\n"}),
    Scene("quiet-exit", {CROP: CROP + "    import pytest\n\n    pytest.exit('done', 0)\n"}),
    Scene("skipped-by-the-learner", {CROP: CROP + "    import pytest\n\n    pytest.skip('later')\n"}),
    Scene("wrong-layer", {"y = x @ self.weight.T": "y = 2 * x @ self.weight.T"}, command=("katas/05",),
          kata="05_modules"),
    Scene("wrong-backward", {"return grad * 2 * x": "return 2 * x"}, command=("katas/04",), kata="04_gradients"),
    Scene("several-katas", start="stub", command=("katas",)),
    Scene("selected", command=("katas/03", "-k", "crop"), exit_code=0),
    Scene("all-green", exit_code=0),
    Scene("spanish-untouched", start="stub", command=("katas/03", "--lang=es", "--hint")),
    Scene("spanish-wrong-value", {"(h - height) // 2": "(h - height + 1) // 2"}, command=("katas/03", "--lang=es")),
    Scene("spanish-several-katas", start="stub", command=("katas", "--lang=es")),
    Scene("spanish-selected", command=("katas/03", "-k", "crop", "--lang=es"), exit_code=0),
    Scene("spanish-all-green", command=("katas/03", "--lang=es"), exit_code=0),
]  # fmt: skip


def write(scene: Scene, house: Path) -> None:
    """Puts the state of the scene into its stub, and every other stub back."""
    stubs.write(house)
    kata = Kata(house / "katas" / scene.kata)
    solution, stub = reference(kata), kata.stub.read_text()
    text = stub if scene.start == "stub" else solution
    if scene.start == "three functions":
        text = solution[: solution.index("def try_view")] + stub[stub.index("def try_view") :]
    for find, replace in scene.edits.items():
        assert text.count(find) == 1, find
        text = text.replace(find, replace)
    kata.stub.write_text(text)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_the_screen_is_the_one_written_down(scene, house, request):
    write(scene, house)
    ended = run(*scene.command, folder=house)
    count = r"\d+(?= specs? (?:passed|not|skipped|pasan|sin|omitidos))"
    seen = re.sub(rf"(?<=\.py:)\d+|{count}", "N", ended.output)
    golden = SCREENS / f"{scene.name}.txt"
    if request.config.getoption("--rewrite-screens"):
        golden.write_text(seen)
    assert ended.exit_code == scene.exit_code
    assert seen == golden.read_text()
    lines = ended.output.splitlines()
    assert len(lines) <= 15, "a first screen has 15 lines at most"
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in ended.output, "no colours in a pipe"
