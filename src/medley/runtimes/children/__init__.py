"""What runs inside the engine processes: tensors, tensor sockets, files. One kind of engine a file."""
