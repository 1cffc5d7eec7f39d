"""The control plane: one gRPC stream a node, three doors (join, control, operator), mutual TLS."""
