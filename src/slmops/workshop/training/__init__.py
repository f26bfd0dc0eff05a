"""Training levers: fine-tuning, distillation and recovery, behind the job face.

`finetune`, `distill`, `recover` and `generate` hold one job function each and load torch
only when one runs. What they share lies under them: `data` reads examples without
torch, `loop` trains, `bridge` goes from GGUF to torch and back.
"""
