"""What is slow to import stays out, and what it wraps works all the same."""

import subprocess
import sys

from dojo.loading import ROOT

USE_AN_OPTIMIZER = """
import sys, torch
from dojo import quick
quick.leave_dynamo_out()

class Halving(torch.optim.Optimizer):
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(group["factor"])

one, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
optimizer = Halving([one], {"factor": 0.5})
optimizer.add_param_group({"params": [other], "factor": 0.25})
optimizer.step()
one.grad = torch.ones(2)
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print(one.tolist(), other.tolist(), one.grad, "torch._dynamo" in sys.modules)
"""


def test_an_optimizer_works_without_dynamo():
    ran = subprocess.run([sys.executable, "-c", USE_AN_OPTIMIZER], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "[0.5, 0.5] [0.25, 0.25] None False\n", ran.stderr
