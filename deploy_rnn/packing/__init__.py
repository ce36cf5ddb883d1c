"""Packed sequences while a model is traced, by torch.compile or by torch.export."""
