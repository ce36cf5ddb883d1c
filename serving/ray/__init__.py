"""The server on Ray Serve: the same application, gRPC service and models in every replica."""
