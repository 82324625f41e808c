"""Exports a gated graph as an ONNX model whose gates are standard operators of ONNX Runtime."""
