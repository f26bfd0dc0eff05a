"""Names for what torch, transformers and peft hand out: their types are not checked.

Checking would need them installed wherever this project is checked.
"""

from typing import Any

Tensor = Any
"""``torch.Tensor``."""
Module = Any
"""``torch.nn.Module``: a model of transformers, or peft's wrapper around one."""
Tokenizer = Any
"""A tokenizer of transformers."""
