"""The gRPC face of the controller: one module for each service, and one for errors."""
