"""A stub is its reference without the bodies: nothing else is lost, and nothing of the solution stays."""

import ast

import pytest

from dojo import stubs
from tests.support import KATAS, reference

SOURCE = '''"""What it is about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LIMIT = 3  # given
_SECRET = 5


@dataclass(frozen=True)
class Info:
    """Given."""

    size: int


def f(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Does it.

    >>> f(torch.ones(1), [1])
    """
    # a hint
    return x * math.prod(shape) * _SECRET


# a helper's comment
def _helper():
    return nn.ReLU()


class Layer(nn.Module):
    """A layer."""

    def __init__(
        self,
        size: int,  # of what
    ):
        # a hint
        super().__init__()
        self.size = size

    def _private(self):
        return 1

    def forward(self, x: Tensor) -> Tensor:
        """Applies it."""
        return _helper()(x)

    def _last(self):
        return 1


def g():
    return 1
'''

WANTED = '''"""What it is about."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LIMIT = 3  # given


@dataclass(frozen=True)
class Info:
    """Given."""

    size: int


def f(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Does it.

    >>> f(torch.ones(1), [1])
    """
    raise NotImplementedError


class Layer(nn.Module):
    """A layer."""

    def __init__(
        self,
        size: int,  # of what
    ):
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Applies it."""
        raise NotImplementedError


def g():
    raise NotImplementedError
'''


def test_bodies_private_names_and_their_imports_go_and_all_else_stays():
    assert stubs.derive(SOURCE) == WANTED


def test_a_stub_is_its_own_stub():
    assert stubs.derive(WANTED) == WANTED


def public(source: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """The public functions, classes and methods of a source, by name."""
    found = {}
    for node in ast.parse(source).body:
        for member in (node, *(node.body if isinstance(node, ast.ClassDef) else ())):
            if isinstance(member, (ast.FunctionDef, ast.ClassDef)) and not stubs._is_private(member.name):
                found[f"{getattr(node, 'name', '')}.{member.name}"] = member
    return found


@pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.folder.name)
def test_signatures_and_docstrings_are_the_references(kata):
    def outline(source):
        return {
            name: (ast.get_docstring(node), ast.unparse(node.args) if isinstance(node, ast.FunctionDef) else "")
            for name, node in public(source).items()
        }

    assert outline(stubs.derive(reference(kata))) == outline(reference(kata))


@pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.folder.name)
def test_every_public_signature_names_its_shapes(kata):
    for name, node in public(reference(kata)).items():
        if isinstance(node, ast.FunctionDef):
            for argument in node.args.args + node.args.kwonlyargs:
                text = ast.unparse(argument.annotation) if argument.annotation else ""
                assert text not in ("Tensor", "torch.Tensor"), f"{name}({argument.arg}) says no shape"
