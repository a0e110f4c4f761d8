from torch import tensor

from flowfactory.flow import DPMSolverConfig

solver = DPMSolverConfig().build("dynamics").make_solver()
first = solver.step(tensor([[1.0]]), tensor([[1.0]]), 0.8, 0.5, ask=None)
second = solver.step(tensor([[0.0]]), first, 0.5, 0.2, ask=None)
print(first, second)
# > tensor([[0.7000]]) tensor([[0.8500]])
