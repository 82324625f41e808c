"""Reads an ONNX model as an FX graph: its pathways are found, and its gates calibrated, by the same rules as others."""
