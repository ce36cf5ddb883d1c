"""The text of an error as gRPC sends it, in the metadata of a call, where it has little room."""

MAX_DETAILS_BYTES = 4096
"""Of a text as it is sent. Clients refuse metadata of more than 8 KiB, and with it the whole answer."""

_CUT = "..."


def details(text: str) -> str:
    """A text of an error, cut to what fits; what UTF-8 cannot represent is written as an escape."""
    text = text[: MAX_DETAILS_BYTES + 1].encode(errors="backslashreplace").decode()
    size = 0
    for place, character in enumerate(text):
        size += _sent_bytes(character)
        if size > MAX_DETAILS_BYTES - len(_CUT):
            return text[:place] + _CUT
    return text


def _sent_bytes(character: str) -> int:
    """Bytes of a character as it is sent: all but printable ASCII takes three for each of its own, as %0A does."""
    if " " <= character <= "~" and character != "%":
        return 1
    return 3 * len(character.encode())
