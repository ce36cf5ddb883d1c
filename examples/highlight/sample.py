def headline(text: str, width: int = 60) -> str:
    """The text in capitals, in the middle of a line."""
    if not text.strip():  # white space only
        raise ValueError(f"{text!r} has no words; give some.")
    return text.upper().center(width, "=")
