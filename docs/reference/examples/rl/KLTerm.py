from flowfactory.rl import KLTerm

term = KLTerm.model_validate({"coefficient": 0.01, "gate": {"share": 0.2}})
print(term.coefficient, term.gate.share, term.refresh)
# > 0.01 0.2 None
