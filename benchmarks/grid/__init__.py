"""The standard grid: every way to run a recurrent layer, side by side."""
