"""Model in, measured variants out: import, plan, quantize, evaluate, select."""
