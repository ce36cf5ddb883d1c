"""A syntax highlighter for Python source: a two-layer bidirectional RNN that labels every character."""
