"""A PyTorch model becomes a graph with one symbolic node for each recurrent stack."""
