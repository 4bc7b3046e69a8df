"""Programs put together of the katas, as capstone and experiments are: `import views` finds the learner's file."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType

from dojo import quick
from dojo.loading import ROOT, Kata, LoadError, katas, load, public_names, spec_class

REQUIREMENTS = "requirements-experiments.txt"
INSTALLED_BY_THEM = ("sklearn", "matplotlib", "tqdm")


class _Finder(MetaPathFinder, Loader):
    """Imports each kata by its name, from the file in katas/ or from the one in another folder."""

    def __init__(self, folder: Path | None):
        self.paths = {kata.name: kata.implementation(folder) for kata in katas()}

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self.paths else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return load(self.paths[spec.name], spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass  # load has done it


@contextmanager
def importing(folder: Path | None) -> Iterator[None]:
    """While active, `import views` imports what the learner wrote, or the solution in `folder`, and as it is now."""
    finder = _Finder(folder)
    for name in finder.paths:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def module(path: Path) -> ModuleType:
    """The file as a module of its own, which may import the katas while they can be imported."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def implementation(folder: str | None) -> Path | None:
    """The folder that `--impl` names, from here or from the root; FileNotFoundError where there is none."""
    if folder is None:
        return None
    found = next((path for path in (Path(folder), ROOT / folder) if path.is_dir()), None)
    if found is None:
        raise FileNotFoundError(f"--impl={folder}: there is no such folder")
    return found.resolve()


def run(program: Callable[[], object], folder: Path | None) -> int:
    """Runs a program on the katas and returns its exit code; names what is missing, and the command that starts it."""
    files = {kata.implementation(folder): kata for kata in katas()}
    quick.leave_dynamo_out()
    try:
        with importing(folder):
            program()
        return 0
    except ModuleNotFoundError as error:
        library = error.name.partition(".")[0]
        if library not in INSTALLED_BY_THEM:
            raise
        print(f"this needs {library}: pip install -r {REQUIREMENTS}", file=sys.stderr)
    except LoadError as error:
        print(f"{error}\n  see what its specs say: {files[error.path].command}", file=sys.stderr)
    except NotImplementedError as error:
        code = _innermost(error).f_code
        kata = files.get(Path(code.co_filename))
        if kata is None:
            raise
        print(missing(code.co_qualname.split(".")[0], kata), file=sys.stderr)
    except ImportError as error:  # a name that is not in the learner's file
        kata = next((kata for kata in files.values() if kata.name == error.name), None)
        if kata is None:
            raise
        print(f"{error.msg}\n  see what its specs say: {kata.command}", file=sys.stderr)
    return 1


def missing(name: str, kata: Kata) -> str:
    """What is to be written next, and the command that starts it."""
    specs = spec_class(name, public_names(kata.stub))
    return f"{name} of kata {kata.title} is not written yet\n  start here    {kata.command}::{specs}"


def _innermost(error: BaseException) -> FrameType:
    """The frame that raised the error."""
    step = error.__traceback__
    while step.tb_next:
        step = step.tb_next
    return step.tb_frame
