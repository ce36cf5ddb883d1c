"""The answer over HTTP to a request that failed."""

from starlette.responses import JSONResponse

from ..protocol.status import RETRY_SECONDS, status


def error_response(error: Exception) -> JSONResponse:
    error_status = status(error)
    headers = {}
    # The rest of a body that was not read to its end would be taken for the connection's next request.
    if error_status.http in (413, 504):
        headers["Connection"] = "close"
    if error_status.http == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return JSONResponse({"error": error_status.message}, error_status.http, headers)
