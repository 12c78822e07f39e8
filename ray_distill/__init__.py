"""Dataset distillation by random truncated backpropagation through time, orchestrated by Ray."""
