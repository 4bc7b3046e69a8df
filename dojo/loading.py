"""Where the katas are, and how a learner's file becomes the module that its specs import."""

import functools
import inspect
import linecache
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Kata:
    """One folder below katas/: `03_views` is number 03, name views."""

    folder: Path

    @property
    def number(self) -> str:
        return self.folder.name.split("_", 1)[0]

    @property
    def name(self) -> str:
        return self.folder.name.split("_", 1)[1]

    @property
    def title(self) -> str:
        return f"{self.number} {self.name.replace('_', ' ')}"

    @property
    def stub(self) -> Path:
        return self.folder / f"{self.name}.py"

    @property
    def spec(self) -> Path:
        return self.folder / f"test_{self.name}.py"

    @property
    def bench(self) -> Path:
        return self.folder / f"bench_{self.name}.py"

    @property
    def hints(self) -> Path:
        return self.folder / "hints.md"

    @property
    def command(self) -> str:
        return f"pytest katas/{self.number}"

    def implementation(self, folder: Path | None) -> Path:
        """The file that the specs run on: the stub, or the one of the same kata in another folder."""
        if folder is None:
            return self.stub
        nested = folder / self.folder.name / self.stub.name
        return nested if nested.exists() else folder / self.stub.name


def katas(root: Path = ROOT) -> list[Kata]:
    """Every kata below `root`, in order."""
    folders = sorted((root / "katas").glob("[0-9][0-9]_*"))
    return [Kata(folder) for folder in folders if folder.is_dir()]


def kata_of(path: Path) -> Kata | None:
    """The kata that a spec or benchmark file belongs to."""
    if path.parent.parent == ROOT / "katas" and re.match(r"\d\d_", path.parent.name):
        return Kata(path.parent)
    return None


def public_names(path: Path) -> list[str]:
    """The functions and classes that a file defines for others, in order."""
    return re.findall(r"^(?:def|class) ([A-Za-z]\w*)", path.read_text(), flags=re.MULTILINE)


def spec_class(name: str, names: Sequence[str] = ()) -> str:
    """The class of specs for a public name among the kata's `names`: TestCenterCrop for center_crop, TestMLP for MLP.

    Where a function and a class differ in spelling alone, as dropout and Dropout, the class's is TestDropoutClass.
    """

    def camel(name):
        return "".join(word[:1].upper() + word[1:] for word in name.split("_"))

    twin = name[:1].isupper() and any(other != name and camel(other) == name for other in names)
    return f"Test{camel(name)}{'Class' if twin else ''}"


@dataclass
class Call:
    """One call of a learner's function by a spec, kept for the report."""

    function: str
    arguments: dict[str, object]
    layer: object = None  # the nn.Module that was called, if it was one


class LoadError(Exception):
    """The learner's file could not be executed; `cause` is what it raised."""

    def __init__(self, path: Path, cause: BaseException):
        super().__init__(f"{path.name} cannot be loaded: {type(cause).__name__}: {cause}")
        self.path, self.cause = path, cause


class Recorder(ModuleType):
    """A module as its specs see it: the same names; calls of its own functions are noted in `last`."""

    def __init__(self, module: ModuleType):
        super().__init__(module.__name__, module.__doc__)
        self.__file__ = module.__file__
        self.module = module
        self.last: Call | None = None

    def __getattr__(self, name: str):
        value = getattr(self.module, name)
        if isinstance(value, FunctionType) and value.__module__ == self.module.__name__:
            value = self._recorded(value)
            setattr(self, name, value)  # the next look-up finds it at once
        return value

    def _recorded(self, function: FunctionType):
        @functools.wraps(function)
        def recorded(*args, **kwargs):
            self.last = Call(function.__name__, _named(function, args, kwargs))
            return function(*args, **kwargs)

        return recorded

    def watch_layers(self) -> None:
        """Notes the calls of the module's own nn.Modules too, as `Linear(in_features=3)(x)`."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        def note(layer, args):
            if type(layer).__module__ == self.__name__:
                self.last = Call(type(layer).__name__, _named(layer.forward, args, {}), layer)

        register_module_forward_pre_hook(note)


def _named(function, args: tuple, kwargs: dict) -> dict[str, object]:
    """The arguments of a call by the names of its parameters."""
    try:
        return dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except TypeError:  # the learner changed the signature: the call itself will say so best
        return {}


def load(path: Path, name: str) -> ModuleType:
    """Executes the file at `path` as module `name`, from its source as it is now.

    Compiled here and not by the import system: .pyc files serve the old code after two edits of one size in one second.
    """
    linecache.checkcache(str(path))
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their module up while it is being made
    try:
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise LoadError(path, error) from error
    return module
