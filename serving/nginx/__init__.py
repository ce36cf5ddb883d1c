"""Several server processes on one machine, behind nginx: the files that start and connect them."""
