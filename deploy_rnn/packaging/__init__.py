"""A model as one file that runs without Python source."""
