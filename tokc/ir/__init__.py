"""The intermediate representation: programs over ONNX."""
