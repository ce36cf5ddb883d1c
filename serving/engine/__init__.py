"""One call of a model: checks, graph, cores. No queue and no network."""
