"""The optional bearer token, the same for HTTP and gRPC."""

import hmac


def is_authorized(authorization: str | bytes | None, token: str | None) -> bool:
    """Whether an `Authorization` header or metadata entry opens a server with that `token`."""
    if token is None:
        return True
    given = authorization.encode() if isinstance(authorization, str) else authorization or b""
    return hmac.compare_digest(given, b"Bearer " + token.encode())


REFUSAL = "this server wants a token: send the header `Authorization: Bearer TOKEN`."
