"""Keeps out of a run what is slow to import and changes nothing that a kata is about."""

from torch.optim import Optimizer


def leave_dynamo_out() -> None:
    """Lets an optimizer be made without torch._dynamo, which costs as much as torch again.

    Optimizer's methods are wrapped to be left out when code is compiled, and import it to know how. Here nothing is
    compiled: each is said to be left out already.
    """
    for method in vars(Optimizer).values():
        function = getattr(method, "__wrapped__", None)
        if function is not None and not hasattr(function, "__dynamo_disable"):
            setattr(function, "__dynamo_disable", function)  # as torch's wrapper does: the name is not mangled there
