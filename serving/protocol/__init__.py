"""The Open Inference Protocol, apart from how HTTP and gRPC carry it."""
