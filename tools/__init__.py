"""Programs for those who work on deploy-rnn."""
