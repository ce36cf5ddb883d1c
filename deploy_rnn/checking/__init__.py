"""What every file is checked on: example calls, trial sizes, tolerances."""
