"""Weights in eight bits: what is rounded and how, the same in PyTorch, and what it costs."""
