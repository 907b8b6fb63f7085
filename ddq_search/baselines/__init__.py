"""Other ways of choosing policies, at the same budgets and with equal training: rivals of a search, and methods.

* ``lsq-uniform``: one bitwidth for all weights and one for all activations: the widest pair of every aim, or, as a
  method of its own, every pair within the budgets.
* ``random``: random preferences, projected into the budgets.
* ``random-search``: the best of many random policies, by their loss without training: what NSGA-II must beat.
* ``greedy``: from uniform 8 bit, one tensor after the other, the one that loses least per saving.
* ``ilp``: least sum of measured single-tensor losses under the budgets, by integer programming.
* ``hawq-ilp``: the same with HAWQ's sensitivities, Hessian trace times squared quantization error.
* ``nsga2``: evolution of policies, by their loss without training and their costs.
* ``rusci``: the memory-driven rule for microcontrollers.
"""

from ddq_search.baselines.choosing import KINDS, choose, require_able
from ddq_search.baselines.runs import run_baselines, run_method
from ddq_search.baselines.sensitivity import sensitivities, take_over

__all__ = ["KINDS", "choose", "require_able", "run_baselines", "run_method", "sensitivities", "take_over"]
