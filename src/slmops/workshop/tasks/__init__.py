"""Tasks on the user's own examples: read, ask, mark, and compare with bounds.

`examples` reads them, `ask` is the job that puts them to a model, `marking` says what an
answer is worth, `metrics` and `flips` turn marks into figures with bounds, and `lm_eval`
lets EleutherAI's harness ask the same models.
"""
