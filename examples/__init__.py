"""Runnable examples on real data; `deploy-rnn demo` runs the highlighter."""
