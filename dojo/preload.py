"""What the warm process loads once, before it forks a run. No tensor operation may run here: it would start threads."""

import gc
import importlib
import warnings

MODULES = [
    "torch",
    "torch.utils._python_dispatch",
    "torch.utils.backend_registration",
    "jaxtyping",
    "pytest",
    "hypothesis.strategies",
    "hypothesis.internal.conjecture.engine",
    "_hypothesis_pytestplugin",
    "pytest_timeout",
    "pytest_benchmark.plugin",
    "xdist.plugin",
    "xdist.looponfail",
    "unittest.mock",
]

gc.disable()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch misses NumPy aloud
    for _name in MODULES:
        importlib.import_module(_name)
gc.freeze()
